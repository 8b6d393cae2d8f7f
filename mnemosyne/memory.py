"""Memories: what an optimizer remembers of a sequence of patterns (paper §3.3).

A memory is a pair of pure functions. `state` makes an empty memory and `step` shows it one pattern:

    state = memory.state(shape)                                # one memory per element of `shape`
    state, out = memory.step(theta, state, address, content)   # address, content: [*shape d]

`window` is `step` over a sequence, for memories that know a faster way than one step after another.
CAM is the paper's; attention over a cache, an LSTM and S4 fit the same contract.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.features import FeatureMap, hyperbolic, orthogonal_projections
from mnemosyne.types import State, Theta

# Below every denominator φ(q)ᵀΨ that occurs; smaller, and 1/(φ(q)ᵀΨ)² overflows in the gradient.
_TINY = 1e-15


class Memory(NamedTuple):
    """The contract every memory fulfils. Patterns come split into an address and a content, both [*s d].

    The paper's pattern ξ is the special case address = content = ξ.
    """

    init: Callable[[Array, int, int, int], Theta]  # (key, address dim, content dim, output dim) → θ
    state: Callable[[tuple, int], State]  # (batch shape, content dim) → empty memory
    step: Callable[[Theta, State, Array, Array], tuple[State, Array]]  # → (state, out [*s d_out])
    window: Callable[[Theta, State, Array, Array], Array]  # sequences [t *s d] → outs [t *s d_out]


class CAMState(NamedTuple):
    """The compact associative memory's hidden state (Eq. 3). Its size does not depend on t."""

    N: Float[Array, "*s c m"]  # Σ_i e^{−λ(t−i)} c_i φ(k_i)ᵀ, the paper's N transposed, float32
    Psi: Float[Array, "*s m"]  # Σ_i e^{−λ(t−i)} φ(k_i), float32


def write(state: CAMState, phi_k: Float[Array, "*s m"], content: Float[Array, "*s c"], discount: float) -> CAMState:
    """Add one pattern to the memory (Eq. 4).

        N ← e^{−λ} N + φ(k) cᵀ        Ψ ← e^{−λ} Ψ + φ(k)

    Args:
        state: the memory before.
        phi_k: features of the key.
        content: what to remember under that key.
        discount: λ ≥ 0 per step; 0 forgets nothing.

    Returns:
        The memory after, of the same size.
    """
    keep = math.exp(-discount)
    return CAMState(N=keep * state.N + content[..., :, None] * phi_k[..., None, :], Psi=keep * state.Psi + phi_k)


def read(state: CAMState, phi_q: Float[Array, "*s m"]) -> Float[Array, "*s c"]:
    """Recall the average of all contents, weighted by kernel and discount (the fraction in Eq. 5).

        Nᵀφ(q) / (φ(q)ᵀΨ)

    A positive factor on φ(q) changes nothing. An empty memory answers zero.
    """
    # N keeps its features last because this product is then up to three times as fast on a CPU.
    numerator = jnp.einsum("...cm,...m->...c", state.N, phi_q)
    return numerator / (jnp.sum(phi_q * state.Psi, axis=-1, keepdims=True) + _TINY)


def cam(
    *,
    projections: int = 16,
    discount: float = 0.1,
    feature_map: FeatureMap = hyperbolic,
    draw: Callable = orthogonal_projections,
) -> Memory:
    """Compact associative memory: causal attention over the whole past in constant space (Eq. 2–5).

        q = W_Q a + b_Q,  k = W_K a + b_K,   out = W_V · Nᵀφ(q) / (φ(q)ᵀΨ)

    with a the address and c the content of a pattern. Values v = W_V c are linear in the content and the
    read is linear in the values, so W_V may follow the read instead of preceding the write: the output is
    exactly Eq. 5's fraction, and the state costs m(c + 1) numbers where c may be far smaller than d.
    Queries and keys carry the attention's usual 1/√N, split evenly between them.

    Args:
        projections: r ≥ 1; the map makes m = r or 2r features of them.
        discount: λ ≥ 0 per step, 0.1 in the paper (Fig. 14).
        feature_map: φ, hyperbolic in the paper.
        draw: how to draw ω; they are part of θ but never trained.

    Returns:
        A `Memory`.

    Raises:
        ValueError: if projections < 1 or discount is not a number ≥ 0.

    Numerics: state and sums in float32 whatever the input. Queries are rescaled, which is exact.

    Reference: Jain et al. 2023, §3.3; Choromanski et al. 2021 for the features.

    Example:
        memory = cam(projections=16)
        theta = memory.init(jax.random.key(0), 16, 16, 16)
        state, out = memory.step(theta, memory.state((), 16), xi, xi)
    """
    if not isinstance(discount, int | float) or not discount >= 0:
        raise ValueError(f"the discount λ must be one number ≥ 0 per step, got {discount!r}")
    if projections < 1:
        raise ValueError(f"a memory needs at least one random projection, got projections = {projections}")
    features = feature_map.per_projection * projections

    def init(key: Array, address: int, content: int, out: int) -> Theta:
        q, k, v, o = jax.random.split(key, 4)
        return {
            "query": linear_init(q, address, address),
            "key": linear_init(k, address, address),
            "value": jax.random.normal(v, (content, out)) / content**0.5,
            "omega": draw(o, projections, address),
        }

    def state(shape: tuple, content: int) -> CAMState:
        return CAMState(jnp.zeros((*shape, content, features)), jnp.zeros((*shape, features)))

    def embed(theta: Theta, address: Array) -> tuple[Array, Array]:
        omega, temper = jax.lax.stop_gradient(theta["omega"]), address.shape[-1] ** -0.25
        phi_q = feature_map.query(temper * linear(theta["query"], address), omega)
        phi_k = feature_map.features(temper * linear(theta["key"], address), omega)
        return phi_q, phi_k

    def step(theta: Theta, state: CAMState, address: Array, content: Array) -> tuple[CAMState, Array]:
        # The barrier keeps XLA from recomputing the features inside the loop over the state.
        phi_q, phi_k, content = jax.lax.optimization_barrier((*embed(theta, address), content))
        state = write(state, phi_k, content, discount)
        return state, read(state, phi_q) @ theta["value"]

    def window(theta: Theta, state: CAMState, address: Array, content: Array) -> Array:
        phi_q, phi_k = embed(theta, address)
        return _attend(state, phi_q, phi_k, content, discount) @ theta["value"]

    return Memory(init, state, step, window)


def _attend(
    state: CAMState,
    phi_q: Float[Array, "t *s m"],
    phi_k: Float[Array, "t *s m"],
    content: Float[Array, "t *s c"],
    discount: float,
) -> Float[Array, "t *s c"]:
    """Eq. 4–5 over a window of t patterns at once, as discounted causal attention; O(t²) time.

    The past before the window enters through `state`. Nothing of size t·m·c is ever made, which is what
    makes gradients through a window cheap.
    """
    t = jnp.arange(phi_q.shape[0])
    age = t[:, None] - t[None, :]
    decay = jnp.where(age >= 0, jnp.exp(-discount * jnp.maximum(age, 0)), 0.0)
    since_start = jnp.exp(-discount * (t + 1.0))
    weights = jnp.einsum("t...m,u...m->t...u", phi_q, phi_k)
    weights = weights * decay.reshape(decay.shape[0], *(1,) * (weights.ndim - 2), decay.shape[1])
    carried = since_start.reshape(-1, *(1,) * (phi_q.ndim - 1)) * phi_q
    numerator = jnp.einsum("t...u,u...c->t...c", weights, content)
    numerator += jnp.einsum("t...m,...cm->t...c", carried, state.N)
    denominator = jnp.sum(weights, axis=-1) + jnp.einsum("t...m,...m->t...", carried, state.Psi)
    return numerator / (denominator + _TINY)[..., None]


def linear_init(key: Array, fan_in: int, fan_out: int, gain: float = 1.0) -> Theta:
    """Weights of variance gain²/fan_in and a zero bias."""
    w = jax.random.normal(key, (fan_in, fan_out)) * gain / fan_in**0.5
    return {"w": w, "b": jnp.zeros(fan_out)}


def linear(theta: Theta, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
    """x W + b."""
    return x @ theta["w"] + theta["b"].reshape(*(1,) * (x.ndim - 1), -1)
