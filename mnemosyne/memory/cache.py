"""Attention over a cache of the last h patterns: the memory that a CAM replaces (App. B.2, Fig. 12)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.memory.contract import Memory, check_memory, check_pattern, linear_maps, queries_and_keys
from mnemosyne.types import Theta


class CacheState(NamedTuple):
    """The last h patterns, newest last (App. B.2)."""

    keys: Float[Array, "*s h d"]  # float32
    contents: Float[Array, "*s h c"]  # float32
    weight: Float[Array, "*s h"]  # −λ · age, _EMPTY where nothing has been written


# Log-weight of an entry that was never written: finite, so that softmax and its gradient stay finite.
_EMPTY = -1e30


def attention(*, cache: int, discount: float = 0.0) -> Memory:
    """Regular attention over a cache of the last h patterns: what CAM is compared with (App. B.2, Fig. 12).

        out = W_V Σ_i c_i exp(qᵀk_i − λ(t−i)) / Σ_i exp(qᵀk_i − λ(t−i)),   i = t−h+1 .. t

    With h ≥ t it is Eq. 5 with the exact kernel. θ is `cam`'s without ω.

    Args:
        cache: h ≥ 1, the patterns remembered. State is h(d + c + 1) numbers, time O(h(d + c)).
        discount: λ from 0 to 1 per step; 0, the default, is regular attention.

    Returns:
        A `Memory`.

    Raises:
        ValueError: if cache < 1 or discount is not a number from 0 to 1.

    Numerics: scores are shifted by their largest before they are exponentiated, which is exact.
    """
    check_memory(discount)
    if cache < 1:
        raise ValueError(f"attention needs a cache of at least one pattern, got cache = {cache}")

    def init(key: Array, address: int, content: int, out: int) -> Theta:
        return linear_maps(jax.random.split(key, 4)[:3], address, content, out)

    def state(shape: tuple, address: int, content: int) -> CacheState:
        empty = jnp.full((*shape, cache), _EMPTY, jnp.float32)
        return CacheState(
            jnp.zeros((*shape, cache, address), jnp.float32), jnp.zeros((*shape, cache, content), jnp.float32), empty
        )

    def step(theta: Theta, state: CacheState, address: Array, content: Array) -> tuple[CacheState, Array]:
        check_pattern(theta, address, content)
        q, k = queries_and_keys(theta, address)
        append = lambda old, new, axis: jnp.concatenate([old, new], axis=axis)
        newest = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
        grown = CacheState(
            append(state.keys, k[..., None, :], -2),
            append(state.contents, content[..., None, :], -2),
            append(jnp.maximum(state.weight - discount, _EMPTY), newest, -1),
        )
        state = CacheState(grown.keys[..., 1:, :], grown.contents[..., 1:, :], grown.weight[..., 1:])
        weights = jax.nn.softmax(jnp.einsum("...d,...hd->...h", q, state.keys) + state.weight, axis=-1)
        return state, jnp.einsum("...h,...hc->...c", weights, state.contents) @ theta["value"]

    def window(theta: Theta, state: CacheState, address: Array, content: Array) -> Array:
        check_pattern(theta, address, content)
        q, k = queries_and_keys(theta, address)
        in_front = lambda old, new: jnp.concatenate([jnp.moveaxis(old, -2, 0), new])  # time first, as in q and k
        scores = jnp.einsum("t...d,u...d->t...u", q, in_front(state.keys, k))
        t, u = jnp.arange(q.shape[0])[:, None], jnp.arange(-cache, q.shape[0])[None, :]
        age = (t - u).reshape(q.shape[0], *(1,) * (q.ndim - 2), cache + q.shape[0])
        # Written entries of the cache were last weighed one step before the window began.
        before = state.weight + discount * jnp.arange(cache - 1, -1, -1.0).reshape(*(1,) * (q.ndim - 2), -1)
        written = jnp.concatenate([before, jnp.zeros((*q.shape[1:-1], q.shape[0]), jnp.float32)], axis=-1)[None]
        weight = jnp.where((age >= 0) & (age < cache), written - discount * age, _EMPTY)
        weights = jax.nn.softmax(scores + weight, axis=-1)
        return jnp.einsum("t...u,u...c->t...c", weights, in_front(state.contents, content)) @ theta["value"]

    return Memory(init, state, step, window)
