"""CAM with FAVOR++: a compact memory for each of a grid of ρ, since the best is known only later (App. A.1.1)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mnemosyne.memory.compact import CAMState, attend, read, write
from mnemosyne.memory.contract import (
    Memory,
    check_memory,
    check_pattern,
    init_with_projections,
    queries_and_keys,
)
from mnemosyne.memory.features import FeatureMap, best_rho, favor_plus_plus, orthogonal_projections
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
        discount: λ from 0 to 1 per step.
        rhos: the grid Ω, each in (0, 1). State and time are proportional to its length, not to t.
        family: ρ → feature map, `favor_plus_plus` or `hyperbolic_plus_plus`.
        draw: how to draw ω, shared by all slices.

    Returns:
        A `Memory` with the same θ as `cam`'s.

    Raises:
        ValueError: if the grid is empty, a ρ is outside (0, 1), projections < 1 or discount is no number from 0 to 1.

    Numerics: as `cam`. The choice of a slice is piecewise constant and passes no gradient.
    """
    check_memory(discount, projections)
    if not len(rhos):
        raise ValueError("a thickened memory needs at least one ρ in (0, 1), got an empty grid")
    maps = [family(rho) for rho in rhos]
    features = maps[0].per_projection * projections

    def state(shape: tuple, address: int, content: int) -> ThickState:
        g = len(rhos)
        zeros = lambda *size: jnp.zeros((*shape, *size), jnp.float32)
        slices = CAMState(zeros(g, content, features), zeros(g, features))
        return ThickState(slices, CAMState(zeros(address + 1, 1), zeros(1)))

    def embed(theta: Theta, address: Array) -> tuple[Array, Array, Array, Array]:
        (q, k), omega = queries_and_keys(theta, address), jax.lax.stop_gradient(theta["omega"])
        phi_q = jnp.stack([phi.query(q, omega) for phi in maps], axis=-2)
        phi_k = jnp.stack([phi.features(k, omega) for phi in maps], axis=-2)
        return q, jnp.concatenate([k, jnp.sum(k * k, -1, keepdims=True)], -1), phi_q, phi_k

    def step(theta: Theta, state: ThickState, address: Array, content: Array) -> tuple[ThickState, Array]:
        check_pattern(theta, address, content)
        q, key, phi_q, phi_k = embed(theta, address)
        one = jnp.ones((*q.shape[:-1], 1), jnp.float32)
        state = ThickState(
            write(state.slices, phi_k, _copies(content, len(rhos)), discount), write(state.keys, one, key, discount)
        )
        i = nearest_slice(q, read(state.keys, one), rhos)
        return state, _pick(read(state.slices, phi_q), i) @ theta["value"]

    def window(theta: Theta, state: ThickState, address: Array, content: Array) -> Array:
        check_pattern(theta, address, content)
        q, key, phi_q, phi_k = embed(theta, address)
        one = jnp.ones((*q.shape[:-1], 1), jnp.float32)
        i = nearest_slice(q, attend(state.keys, one, one, key, discount), rhos)
        return _pick(attend(state.slices, phi_q, phi_k, _copies(content, len(rhos)), discount), i) @ theta["value"]

    return Memory(init_with_projections(projections, draw), state, step, window)


def nearest_slice(q: Float[Array, "*s n"], means: Float[Array, "*s k"], rhos: tuple[float, ...]) -> Int[Array, "*s"]:
    """Index of the ρ nearest to Eq. 11's for queries q and the means of (k, ‖k‖²), k = n + 1 numbers."""
    s = jnp.sum(q * q, -1) + means[..., -1] + 2.0 * jnp.sum(q * means[..., :-1], -1)
    rho = best_rho(jax.lax.stop_gradient(s), q.shape[-1])[..., None]
    return jnp.argmin(jnp.abs(rho - jnp.array(rhos, jnp.float32).reshape(*(1,) * (rho.ndim - 1), -1)), axis=-1)


def _copies(content: Float[Array, "*s c"], g: int) -> Float[Array, "*s g c"]:
    return jnp.broadcast_to(content[..., None, :], (*content.shape[:-1], g, content.shape[-1]))


def _pick(candidates: Float[Array, "*s g c"], i: Int[Array, "*s"]) -> Float[Array, "*s c"]:
    return jnp.take_along_axis(candidates, i[..., None, None], axis=-2)[..., 0, :]
