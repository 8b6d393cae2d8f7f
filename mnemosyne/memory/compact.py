"""The compact associative memory: causal attention over the whole past in constant space (paper §3.3, Eq. 2–5)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.memory.contract import Memory, check_memory, check_pattern, init_with_projections, queries_and_keys
from mnemosyne.memory.features import FeatureMap, hyperbolic, orthogonal_projections
from mnemosyne.types import Scalar, Theta

# Keeps an empty memory from dividing by zero. Smaller, and 1/(φ(q)ᵀΨ)² overflows in the gradient; so a key so long
# that its features vanish beside it is as good as not written, see the numerics of `cam`.
_TINY = 1e-15

# Patterns per chunk of the parallel form: the best of 16 to 512 for 32 features on a CPU.
CHUNK = 64


class CAMState(NamedTuple):
    """The compact associative memory's hidden state (Eq. 3). Its size does not depend on t."""

    N: Float[Array, "*s c m"]  # Σ_i e^{−λ(t−i)} c_i φ(k_i)ᵀ, the paper's N transposed, float32
    Psi: Float[Array, "*s m"]  # Σ_i e^{−λ(t−i)} φ(k_i), float32


def write(
    state: CAMState, phi_k: Float[Array, "*s m"], content: Float[Array, "*s c"], discount: float | Scalar
) -> CAMState:
    """Add one pattern to the memory (Eq. 4).

        N ← e^{−λ} N + φ(k) cᵀ        Ψ ← e^{−λ} Ψ + φ(k)

    Args:
        state: the memory before.
        phi_k: features of the key.
        content: what to remember under that key.
        discount: λ from 0 to 1 per step, a number and finite; 0 forgets nothing. Under `vmap` it may be one of several.

    Returns:
        The memory after, of the same size.

    Raises:
        ValueError: if the discount is not such a number.
    """
    check_memory(discount)
    keep = jnp.exp(-discount)
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
    discount: float | Scalar = 0.1,
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
        discount: λ from 0 to 1 per step, 0.1 in the paper (Fig. 14).
        feature_map: φ, hyperbolic in the paper.
        draw: how to draw ω; they are part of θ but never trained.

    Returns:
        A `Memory`.

    Raises:
        ValueError: if projections < 1 or discount is not from 0 to 1; at the first pattern, if it does not fit θ.

    Numerics: state and sums in float32 whatever the input. Queries are rescaled, which is exact; keys are not, since
    Eq. 4 adds them up. Features of keys with ‖k‖ above about 9 fall below float32's reach and are forgotten, so
    addresses should be of order one, as layer normalisation makes them.

    Reference: Jain et al. 2023, §3.3; Choromanski et al. 2021 for the features.

    Example:
        memory = cam(projections=16)
        theta = memory.init(jax.random.key(0), 16, 16, 16)
        state, out = memory.step(theta, memory.state((), 16, 16), xi, xi)
    """
    check_memory(discount, projections)
    features = feature_map.per_projection * projections

    def state(shape: tuple, address: int, content: int) -> CAMState:
        zeros = lambda *size: jnp.zeros((*shape, *size), jnp.float32)
        return CAMState(zeros(content, features), zeros(features))

    def embed(theta: Theta, address: Array) -> tuple[Array, Array]:
        (q, k), omega = queries_and_keys(theta, address), jax.lax.stop_gradient(theta["omega"])
        return feature_map.query(q, omega), feature_map.features(k, omega)

    def step(theta: Theta, state: CAMState, address: Array, content: Array) -> tuple[CAMState, Array]:
        check_pattern(theta, address, content)
        # The barrier keeps XLA from recomputing the features inside the loop over the state.
        phi_q, phi_k, content = jax.lax.optimization_barrier((*embed(theta, address), content))
        state = write(state, phi_k, content, discount)
        return state, read(state, phi_q) @ theta["value"]

    def window(theta: Theta, state: CAMState, address: Array, content: Array) -> Array:
        check_pattern(theta, address, content)
        phi_q, phi_k = embed(theta, address)
        return attend(state, phi_q, phi_k, content, discount) @ theta["value"]

    return Memory(init_with_projections(projections, draw), state, step, window)


def attend(
    state: CAMState,
    phi_q: Float[Array, "t *s m"],
    phi_k: Float[Array, "t *s m"],
    content: Float[Array, "t *s c"],
    discount: float | Scalar,
) -> Float[Array, "t *s c"]:
    """`write` and `read` over t patterns at once, as they would answer one after another (Eq. 3–5).

    The sequence is cut into chunks of `CHUNK`. Sums over each chunk give the memory at every chunk's start, and
    within a chunk the recurrence is discounted causal attention: O(t) time, no power of e^{+λ} anywhere, and
    within a chunk nothing of size t·m·c, which is what makes gradients cheap.

    Args:
        state: the memory before the first pattern.
        phi_q: features of the queries.
        phi_k: features of the keys.
        content: what is stored under them.
        discount: λ from 0 to 1 per step.

    Returns:
        What each query recalls, its own pattern included.
    """
    t = phi_q.shape[0]
    chunk = max(1, min(CHUNK, t))
    n = -(-t // chunk)
    # Padding comes after every real pattern, so that causality alone keeps it out.
    chunked = lambda x: jnp.pad(x, [(0, n * chunk - t)] + [(0, 0)] * (x.ndim - 1)).reshape(n, chunk, *x.shape[1:])
    # Ψ is one more row of N, whose content is always one.
    rows = chunked(jnp.concatenate([content, jnp.ones((*content.shape[:-1], 1), jnp.float32)], axis=-1))
    phi_q, phi_k = chunked(phi_q), chunked(phi_k)
    along = lambda x: x.reshape(1, chunk, *(1,) * (phi_q.ndim - 2))

    i = jnp.arange(chunk)
    added = jnp.einsum("nt...c,nt...m->n...cm", rows, phi_k * along(jnp.exp(-discount * (chunk - 1.0 - i))))
    start = jnp.concatenate([state.N, state.Psi[..., None, :]], axis=-2)
    _, starts = jax.lax.scan(lambda s, new: (jnp.exp(-discount * chunk) * s + new, s), start, added)

    age = i[:, None] - i[None, :]
    decay = jnp.where(age >= 0, jnp.exp(-discount * jnp.maximum(age, 0)), 0.0)
    weights = jnp.einsum("nt...m,nu...m->nt...u", phi_q, phi_k)
    weights = weights * decay.reshape(1, chunk, *(1,) * (phi_q.ndim - 3), chunk)
    sums = jnp.einsum("nt...u,nu...c->nt...c", weights, rows)
    sums += jnp.einsum("nt...m,n...cm->nt...c", phi_q * along(jnp.exp(-discount * (i + 1.0))), starts)
    outs = sums[..., :-1] / (sums[..., -1:] + _TINY)
    return outs.reshape(n * chunk, *outs.shape[2:])[:t]
