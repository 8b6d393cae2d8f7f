"""Random features of the softmax kernel K(x, y) = exp(xᵀy) (paper §3.3, App. A.1).

A feature map turns a vector z ∈ R^N and projections ω_1..ω_r ~ N(0, I_N) into φ(z) ∈ R^m such that
E[φ(x)ᵀφ(y)] = exp(xᵀy). It is what makes attention over the past a sum that can be updated in place.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class FeatureMap(NamedTuple):
    """A linearisation of the softmax kernel.

    `query` is `features` times a positive number that may differ from one z to the next. That number
    cancels in the ratio of Eq. 5, so a query can be rescaled freely to stay within float32, whereas a key
    is stored and must be exact.
    """

    features: Callable  # (z [*b N], ω [r N]) → φ(z) [*b m], for keys and kernel estimates
    query: Callable  # (z [*b N], ω [r N]) → c(z) φ(z) [*b m], c(z) > 0
    per_projection: int  # m = per_projection · r


def _positive_exponents(z: Float[Array, "*b n"], omega: Float[Array, "r n"]) -> Float[Array, "*b r"]:
    return z @ omega.T


def _hyperbolic_exponents(z: Float[Array, "*b n"], omega: Float[Array, "r n"]) -> Float[Array, "*b m"]:
    w = z @ omega.T
    return jnp.concatenate([w, -w], axis=-1)


def _at_least_float32(z: Array) -> Array:
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def _exponential_map(exponents: Callable, per_projection: int) -> FeatureMap:
    """φ(z) = m^{-1/2} exp(a(z) − ‖z‖²/2) for a map a of exponents linear in z."""

    def features(z, omega):
        z = _at_least_float32(z)
        a = exponents(z, omega)
        return jnp.exp(a - 0.5 * jnp.sum(z * z, axis=-1, keepdims=True)) / a.shape[-1] ** 0.5

    def query(z, omega):
        a = exponents(_at_least_float32(z), omega)
        return jnp.exp(a - jax.lax.stop_gradient(jnp.max(a, axis=-1, keepdims=True)))

    return FeatureMap(features, query, per_projection)


positive = _exponential_map(_positive_exponents, per_projection=1)
"""FAVOR+ (Eq. 9): φ(z) = r^{-1/2} e^{−‖z‖²/2} [e^{ω_iᵀz}]_i, r features."""

hyperbolic = _exponential_map(_hyperbolic_exponents, per_projection=2)
"""Hyperbolic cosine (Eq. 10), the default: φ(z) = (2r)^{-1/2} e^{−‖z‖²/2} [e^{ω_iᵀz}, e^{−ω_iᵀz}]_i, 2r features.

Keys never overflow: e^{ωᵀz − ‖z‖²/2} ≤ e^{‖ω‖²/2}, whatever z is.
"""

MAPS = {"hyperbolic": hyperbolic, "positive": positive}


def orthogonal_projections(key: Array, r: int, n: int) -> Float[Array, "r n"]:
    """Draw r projections in R^n in blocks of n orthogonal directions with χ_n norms (App. A.1).

    Each row is marginally N(0, I_n), so estimators stay unbiased; within a block rows are exactly
    orthogonal, which lowers the variance against independent rows.

    Args:
        key: a JAX random key.
        r: number of projections, ≥ 1; need not be a multiple of n.
        n: dimension of queries and keys, ≥ 1.

    Returns:
        Projections ω, one a row.

    Raises:
        ValueError: if r or n is below 1.
    """
    if r < 1 or n < 1:
        raise ValueError(f"projections need r ≥ 1 rows of dimension n ≥ 1, got r = {r}, n = {n}")
    directions_key, norms_key = jax.random.split(key)
    blocks = jax.random.normal(directions_key, (-(-r // n), n, n))
    q, upper = jnp.linalg.qr(blocks)
    # Without the signs of R's diagonal the rows of Q would not be uniform on the sphere.
    q = q * jnp.sign(jnp.diagonal(upper, axis1=-2, axis2=-1))[:, None, :]
    directions = jnp.swapaxes(q, -1, -2).reshape(-1, n)[:r]
    norms = jnp.linalg.norm(jax.random.normal(norms_key, (r, n)), axis=-1, keepdims=True)
    return directions * norms


def independent_projections(key: Array, r: int, n: int) -> Float[Array, "r n"]:
    """Draw r independent projections ω_i ~ N(0, I_n): the plain Monte Carlo estimator."""
    return jax.random.normal(key, (r, n))
