"""Other memories under the contract of `memory.Memory`: the same question put to another memory is one argument.

`thick_cam` is CAM with FAVOR++ (App. A.1.1) and `attention` is what CAM replaces: regular attention over a cache
(App. B.2). Both answer, as CAM does, with an average of what they were shown, weighted by kernel and age.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mnemosyne.features import FeatureMap, best_rho, favor_plus_plus, orthogonal_projections
from mnemosyne.memory import (
    CAMState,
    Memory,
    attend,
    check_memory,
    check_pattern,
    init_with_projections,
    linear_maps,
    queries_and_keys,
    read,
    write,
)
from mnemosyne.types import Theta

RHOS = tuple((i + 0.5) / 8 for i in range(8))
"""Ω of App. A.1.1: (0, 1) cut into eight, by its midpoints."""


class ThickState(NamedTuple):
    """A compact memory for each ρ of a grid, and what choosing among them needs (App. A.1.1)."""

    slices: CAMState  # N [*s g c m], Psi [*s g m] for g values of ρ
    keys: CAMState  # N [*s n+1 1]: discounted sums of (k, ‖k‖²); Psi [*s 1]: their count


def thick_cam(
    *,
    projections: int = 16,
    discount: float = 0.1,
    rhos: tuple[float, ...] = RHOS,
    family: Callable[[float], FeatureMap] = favor_plus_plus,
    draw: Callable = orthogonal_projections,
) -> Memory:
    """Compact associative memory with FAVOR++, which must know ρ before it knows the queries (App. A.1.1).

    The best ρ depends on keys and query, and keys are gone when the query comes. So the memory is kept once for
    each ρ of a grid, along with the sums of k and ‖k‖², and each query reads the slice nearest to its own best:

        s_t = ‖q‖² + mean ‖k‖² + 2 qᵀ mean k,     ρ_t = best_rho(s_t, N)  (Eq. 11)

    The means are over the past, discounted like the memory itself; λ = 0 is the paper's plain mean.

    Args:
        projections: r ≥ 1; each slice has m = r features, or 2r for a hyperbolic family.
        discount: λ ≥ 0 per step.
        rhos: the grid Ω, each in (0, 1). State and time are proportional to its length, not to t.
        family: ρ → feature map, `favor_plus_plus` or `hyperbolic_plus_plus`.
        draw: how to draw ω, shared by all slices.

    Returns:
        A `Memory` with the same θ as `cam`'s.

    Raises:
        ValueError: if the grid is empty, a ρ is outside (0, 1), projections < 1 or discount is no number ≥ 0.

    Numerics: as `cam`. The choice of a slice is piecewise constant and passes no gradient.
    """
    check_memory(discount, projections)
    if not len(rhos):
        raise ValueError("a thickened memory needs at least one ρ in (0, 1), got an empty grid")
    maps = [family(rho) for rho in rhos]
    features = maps[0].per_projection * projections

    def state(shape: tuple, address: int, content: int) -> ThickState:
        g = len(rhos)
        slices = CAMState(jnp.zeros((*shape, g, content, features)), jnp.zeros((*shape, g, features)))
        return ThickState(slices, CAMState(jnp.zeros((*shape, address + 1, 1)), jnp.zeros((*shape, 1))))

    def embed(theta: Theta, address: Array) -> tuple[Array, Array, Array, Array]:
        (q, k), omega = queries_and_keys(theta, address), jax.lax.stop_gradient(theta["omega"])
        phi_q = jnp.stack([phi.query(q, omega) for phi in maps], axis=-2)
        phi_k = jnp.stack([phi.features(k, omega) for phi in maps], axis=-2)
        return q, jnp.concatenate([k, jnp.sum(k * k, -1, keepdims=True)], -1), phi_q, phi_k

    def step(theta: Theta, state: ThickState, address: Array, content: Array) -> tuple[ThickState, Array]:
        check_pattern(theta, address, content)
        q, key, phi_q, phi_k = embed(theta, address)
        one = jnp.ones((*q.shape[:-1], 1))
        state = ThickState(
            write(state.slices, phi_k, _copies(content, len(rhos)), discount), write(state.keys, one, key, discount)
        )
        i = nearest_slice(q, read(state.keys, one), rhos)
        return state, _pick(read(state.slices, phi_q), i) @ theta["value"]

    def window(theta: Theta, state: ThickState, address: Array, content: Array) -> Array:
        check_pattern(theta, address, content)
        q, key, phi_q, phi_k = embed(theta, address)
        one = jnp.ones((*q.shape[:-1], 1))
        i = nearest_slice(q, attend(state.keys, one, one, key, discount), rhos)
        return _pick(attend(state.slices, phi_q, phi_k, _copies(content, len(rhos)), discount), i) @ theta["value"]

    return Memory(init_with_projections(projections, draw), state, step, window)


def nearest_slice(q: Float[Array, "*s n"], means: Float[Array, "*s k"], rhos: tuple[float, ...]) -> Int[Array, "*s"]:
    """Index of the ρ nearest to Eq. 11's for queries q and the means of (k, ‖k‖²), k = n + 1 numbers."""
    s = jnp.sum(q * q, -1) + means[..., -1] + 2.0 * jnp.sum(q * means[..., :-1], -1)
    rho = best_rho(jax.lax.stop_gradient(s), q.shape[-1])[..., None]
    return jnp.argmin(jnp.abs(rho - jnp.array(rhos).reshape(*(1,) * (rho.ndim - 1), -1)), axis=-1)


def _copies(content: Float[Array, "*s c"], g: int) -> Float[Array, "*s g c"]:
    return jnp.broadcast_to(content[..., None, :], (*content.shape[:-1], g, content.shape[-1]))


def _pick(candidates: Float[Array, "*s g c"], i: Int[Array, "*s"]) -> Float[Array, "*s c"]:
    return jnp.take_along_axis(candidates, i[..., None, None], axis=-2)[..., 0, :]


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
        discount: λ ≥ 0 per step; 0, the default, is regular attention.

    Returns:
        A `Memory`.

    Raises:
        ValueError: if cache < 1 or discount is not a number ≥ 0.

    Numerics: scores are shifted by their largest before they are exponentiated, which is exact.
    """
    check_memory(discount)
    if cache < 1:
        raise ValueError(f"attention needs a cache of at least one pattern, got cache = {cache}")

    def init(key: Array, address: int, content: int, out: int) -> Theta:
        return linear_maps(jax.random.split(key, 4)[:3], address, content, out)

    def state(shape: tuple, address: int, content: int) -> CacheState:
        empty = jnp.full((*shape, cache), _EMPTY)
        return CacheState(jnp.zeros((*shape, cache, address)), jnp.zeros((*shape, cache, content)), empty)

    def step(theta: Theta, state: CacheState, address: Array, content: Array) -> tuple[CacheState, Array]:
        check_pattern(theta, address, content)
        q, k = queries_and_keys(theta, address)
        append = lambda old, new, axis: jnp.concatenate([old, new], axis=axis)
        newest = jnp.zeros((*q.shape[:-1], 1))
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
        written = jnp.concatenate([before, jnp.zeros((*q.shape[1:-1], q.shape[0]))], axis=-1)[None]
        weight = jnp.where((age >= 0) & (age < cache), written - discount * age, _EMPTY)
        weights = jax.nn.softmax(scores + weight, axis=-1)
        return jnp.einsum("t...u,u...c->t...c", weights, in_front(state.contents, content)) @ theta["value"]

    return Memory(init, state, step, window)
