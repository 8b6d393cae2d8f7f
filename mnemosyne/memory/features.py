"""Random features of the softmax kernel K(x, y) = exp(xᵀy) (paper §3.3, App. A.1).

A feature map turns a vector z ∈ R^N and projections ω_1..ω_r ~ N(0, I_N) into φ(z) ∈ R^m such that
E[φ(x)ᵀφ(y)] = exp(xᵀy). It is what makes attention over the past a sum that can be updated in place.

    phi = hyperbolic                                  # or positive, favor_plus_plus(0.3), relu, …
    omega = orthogonal_projections(key, r, n)
    phi.features(x, omega) @ phi.features(y, omega)   # about exp(x @ y); `exact` is the truth

A relation worth knowing: with s = ‖x+y‖², one FAVOR++ feature pair has the relative second moment
((1+ρ)/2√ρ)^N e^{ρs}, of which FAVOR+ is the case ρ = 1. `energies.relative_variance` has them all.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class FeatureMap(NamedTuple):
    """A linearisation of a kernel.

    `query` is `features` times a positive number that may differ from one z to the next. That number
    cancels in the ratio of Eq. 5, so a query can be rescaled freely to stay within float32, whereas a key
    is stored and must be exact. Energies (Eq. 8) leave float32 sooner and are computed from `log_features`.

    All three accumulate in float32 or better whatever z is, and raise a ValueError where z and ω differ in N.
    """

    features: Callable  # (z [*b N], ω [r N]) → φ(z) [*b m], for keys and kernel estimates
    query: Callable  # (z [*b N], ω [r N]) → c(z) φ(z) [*b m], c(z) > 0
    log_features: Callable  # (z [*b N], ω [r N]) → log φ(z) [*b m], −∞ where φ is zero
    per_projection: int  # m = per_projection · r

    def kernel(self, x: Float[Array, "*b n"], y: Float[Array, "*b n"], omega: Float[Array, "r n"]) -> Array:
        """Estimate K(x, y) by φ(x)ᵀφ(y), [*b]."""
        return jnp.sum(self.features(x, omega) * self.features(y, omega), axis=-1)


def exact(x: Float[Array, "*b n"], y: Float[Array, "*b n"], omega: Array | None = None) -> Float[Array, "*b"]:
    """The softmax kernel itself, exp(xᵀy): the slow truth every map's `kernel` estimates. ω is not looked at."""
    return jnp.exp(jnp.sum(_at_least_float32(x) * _at_least_float32(y), axis=-1))


def _positive_exponents(z: Float[Array, "*b n"], omega: Float[Array, "r n"]) -> Float[Array, "*b r"]:
    return jnp.matmul(z, omega.T, precision="highest")


def _hyperbolic_exponents(z: Float[Array, "*b n"], omega: Float[Array, "r n"]) -> Float[Array, "*b m"]:
    # Both signs in one product: a concatenation of results would keep the exponential from being vectorised.
    return jnp.matmul(z, jnp.concatenate([omega, -omega]).T, precision="highest")


def _at_least_float32(z: Array) -> Array:
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def _ready(z: Array, omega: Array) -> tuple[Array, Array]:
    """z and ω in float32 or better, if they fit."""
    if omega.ndim != 2 or z.ndim < 1 or z.shape[-1] != omega.shape[-1]:
        raise ValueError(
            f"vectors of shape {jnp.shape(z)} do not fit projections of shape {jnp.shape(omega)}: the last axes, both "
            "N, must agree; draw ω with orthogonal_projections(key, r, N)"
        )
    return _at_least_float32(z), _at_least_float32(omega)


def _exponential_map(exponents: Callable, per_projection: int) -> FeatureMap:
    """φ(z) = m^{-1/2} exp(a(z, ω) − ‖z‖²/2) for given exponents a."""

    def features(z, omega):
        z, omega = _ready(z, omega)
        a = exponents(z, omega)
        return jnp.exp(a - 0.5 * jnp.sum(z * z, axis=-1, keepdims=True)) / a.shape[-1] ** 0.5

    def query(z, omega):
        a = exponents(*_ready(z, omega))
        return jnp.exp(a - jax.lax.stop_gradient(jnp.max(a, axis=-1, keepdims=True)))

    def log_features(z, omega):
        z, omega = _ready(z, omega)
        a = exponents(z, omega)
        return a - 0.5 * jnp.sum(z * z, axis=-1, keepdims=True) - 0.5 * jnp.log(a.shape[-1])

    return FeatureMap(features, query, log_features, per_projection)


def _plain_map(activation: Callable) -> FeatureMap:
    """φ(z) = r^{-1/2} f(ω_iᵀz), which needs no rescaling."""

    def features(z, omega):
        return activation(_positive_exponents(*_ready(z, omega))) / omega.shape[0] ** 0.5

    return FeatureMap(features, features, lambda z, omega: jnp.log(features(z, omega)), per_projection=1)


positive = _exponential_map(_positive_exponents, per_projection=1)
"""FAVOR+ (Eq. 9): φ(z) = r^{-1/2} e^{−‖z‖²/2} [e^{ω_iᵀz}]_i, r features."""

hyperbolic = _exponential_map(_hyperbolic_exponents, per_projection=2)
"""Hyperbolic cosine (Eq. 10), the default: φ(z) = (2r)^{-1/2} e^{−‖z‖²/2} [e^{ω_iᵀz}, e^{−ω_iᵀz}]_i, 2r features.

As with FAVOR+, e^{ωᵀz − ‖z‖²/2} ≤ e^{‖ω‖²/2} whatever z is: keys cannot overflow float32 where ‖ω‖² < 177, that is up
to N of about 100.
"""

relu = _plain_map(jax.nn.relu)
"""φ(z) = r^{-1/2} relu(ω_iᵀz): the arc-cosine kernel of order one, no estimate of exp(xᵀy) (App. B.4, Fig. 13)."""

square = _plain_map(jnp.square)
"""φ(z) = r^{-1/2} (ω_iᵀz)²: the kernel ‖x‖²‖y‖² + 2(xᵀy)², no estimate of exp(xᵀy) (App. B.4, Fig. 13)."""


def favor_plus_plus(rho: float | Array) -> FeatureMap:
    """FAVOR++ (App. A.1.1): r features that are bounded in ω and, where ‖x+y‖² is large, vary least.

        φ(z) = r^{-1/2} D [exp(−Â‖ω_i‖² + B ω_iᵀz − ‖z‖²/2)]_i
        Â = (1/ρ − 1)/8,   B = √(1 + 4Â),   D = (1 + 4Â)^{N/4}

    Args:
        rho: ρ ∈ (0, 1), a number; `best_rho` gives the best for a typical ‖x+y‖² (Eq. 11). ρ → 1 is FAVOR+. One that
            is traced is not checked.

    Raises:
        ValueError: if ρ is outside (0, 1).
    """
    return _exponential_map(_bounded(_positive_exponents, rho), per_projection=1)


def hyperbolic_plus_plus(rho: float | Array) -> FeatureMap:
    """Hyperbolic FAVOR++: each ω of `favor_plus_plus` is used with both signs, 2r features (end of App. A.1.1).

    With s = ‖x+y‖² and S = ((1+ρ)/2√ρ)^N, the relative variance at equal r falls from (S e^{ρs} − 1)/r to
    (S (e^{ρs} + e^{−s})/2 − 1)/r, because the two signs' squares have the mean e^{ρs} and their product e^{−s}.
    Argument and error as `favor_plus_plus`; 2r features.
    """
    return _exponential_map(_bounded(_hyperbolic_exponents, rho), per_projection=2)


def _bounded(exponents: Callable, rho: float | Array) -> Callable:
    """Exponents of the ++ maps: those of the plain map at Bz, less Â‖ω‖², plus log D."""
    traced = isinstance(rho, jax.core.Tracer)
    if isinstance(rho, np.generic | np.ndarray | jax.Array) and np.ndim(rho) == 0 and not traced:
        rho = float(rho)
    if not traced and not (isinstance(rho, int | float) and 1e-6 < rho < 1.0):
        raise ValueError(
            f"ρ must be one number in (0, 1), at least 1e-6, got {rho!r}; best_rho(s, N) gives a good one (Eq. 11)"
        )
    a = (1.0 / rho - 1.0) / 8.0

    def bounded(z, omega):
        w = exponents((1.0 + 4.0 * a) ** 0.5 * z, omega)
        damping = 0.25 * z.shape[-1] * jnp.log1p(4.0 * a) - a * jnp.sum(omega * omega, axis=-1)
        both = jnp.tile(damping, w.shape[-1] // damping.shape[-1])
        return w + both.reshape(*(1,) * (w.ndim - 1), -1)

    return bounded


def best_rho(s: Float[Array, "*b"] | float, n: int) -> Float[Array, "*b"]:
    """The ρ at which FAVOR++ varies least for pairs with ‖x+y‖² = s in R^n (Eq. 11).

        ρ* = (√((2s+N)² + 8Ns) − 2s − N) / 4s  =  2N / (√((2s+N)² + 8Ns) + 2s + N)

    The second form, used here, has no division by zero. ρ* → 1 as s → 0; what is returned stays below 1, as FAVOR++
    asks.

    Args:
        s: ‖x+y‖² ≥ 0, typically its mean over queries and keys, see `mean_square_sum`.
        n: N ≥ 1.

    Returns:
        ρ* ∈ (0, 1), of the shape of s.
    """
    if n < 1:
        raise ValueError(f"the dimension N must be at least 1, got {n}")
    a = 2.0 * jnp.maximum(jnp.asarray(s, jnp.float32), 0.0) + n
    return jnp.minimum(2.0 * n / (jnp.sqrt(a * a + 4.0 * n * (a - n)) + a), 1.0 - 1e-6)


def feature_bound(size: float, n: int, rho: float) -> float:
    """The largest value a FAVOR++ feature √r φ_i(z) takes over all ω, with ‖z‖² = size (App. A.1.1).

    D exp(‖z‖² (1/4Â + ½)), reached at ω = Bz/2Â. FAVOR+ has none.
    """
    if not 0 < rho < 1:
        raise ValueError(f"only features with ρ in (0, 1) are bounded, got ρ = {rho}")
    a = (1 / rho - 1) / 8
    return (1 + 4 * a) ** (n / 4) * np.exp(size * (1 / (4 * a) + 0.5))


def mean_square_sum(q: Float[Array, "i n"], k: Float[Array, "j n"]) -> Float[Array, ""]:
    """The mean of ‖q_i + k_j‖² over all pairs, in linear time (App. A.1.1): E‖q‖² + E‖k‖² + 2 Eqᵀ Ek."""
    return jnp.mean(jnp.sum(q * q, -1)) + jnp.mean(jnp.sum(k * k, -1)) + 2.0 * jnp.mean(q, 0) @ jnp.mean(k, 0)


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
    _check_sizes(r, n)
    directions_key, norms_key = jax.random.split(key)
    blocks = jax.random.normal(directions_key, (-(-r // n), n, n), jnp.float32)
    # Columns become rows: the same ω as the Q of a QR decomposition with a positive diagonal.
    directions = _gram_schmidt(jnp.swapaxes(blocks, -1, -2)).reshape(-1, n)[:r]
    norms = jnp.linalg.norm(jax.random.normal(norms_key, (r, n), jnp.float32), axis=-1, keepdims=True)
    return directions * norms


def _gram_schmidt(a: Float[Array, "b n n"]) -> Float[Array, "b n n"]:
    """Rows made orthonormal, each with the projections on earlier rows taken out, twice for accuracy.

    Not `jnp.linalg.qr`: a compiled program that calls it for several batches may wait for its own threads for ever
    on a CPU with two cores (jaxlib 0.10.2), and programs that initialise several memories do.
    """

    def add_row(i, q):
        row = a[:, i]
        for _ in range(2):
            row -= jnp.einsum("bk,bkn->bn", jnp.einsum("bn,bkn->bk", row, q), q)
        return q.at[:, i].set(row / jnp.linalg.norm(row, axis=-1, keepdims=True))

    return jax.lax.fori_loop(0, a.shape[1], add_row, jnp.zeros_like(a))


def independent_projections(key: Array, r: int, n: int) -> Float[Array, "r n"]:
    """Draw r independent projections ω_i ~ N(0, I_n): the plain Monte Carlo estimator."""
    _check_sizes(r, n)
    return jax.random.normal(key, (r, n), jnp.float32)


def _check_sizes(r: int, n: int) -> None:
    if r < 1 or n < 1:
        raise ValueError(f"projections need r ≥ 1 rows of dimension n ≥ 1, got r = {r}, n = {n}")
