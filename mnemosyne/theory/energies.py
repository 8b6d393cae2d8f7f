"""What an associative memory can hold (paper §4, App. A.2): energies, dynamics, capacity, variances.

Memories are vectors ξ^μ ∈ {−1, +1}^N. An energy has its minima near them, and a corrupted input β rolls downhill:

    energy = regular(memories)                             # Eq. 6, stores every memory
    energy = compact(store(memories, omega, phi), omega, phi)  # Eq. 8, stores m numbers whatever M is
    beta = descend(energy, beta, key, sweeps=2)            # Eq. 7, again and again

Energies grow like e^N and are therefore kept as logarithms: an energy here is the function β ↦ log(−E(β)), which
is larger where E is lower. Closed forms are in NumPy and float64, since they subtract large numbers.
"""

import math
from collections.abc import Callable
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnemosyne.memory.features import FeatureMap

LogEnergy = Callable  # β [*b N] → log(−E(β)) [*b]


def check_memories(memories: Array) -> Array:
    """Return the memories, [M N] and ±1, or say what is wrong with them."""
    if np.ndim(memories) != 2 or 0 in np.shape(memories):
        raise ValueError(
            f"memories must be a matrix of M ≥ 1 rows of N ≥ 1 signs, got shape {np.shape(memories)}; "
            "store at least one, and a single one as xi[None, :]"
        )
    if not isinstance(memories, jax.core.Tracer) and not np.all(np.abs(np.asarray(memories, np.float64)) == 1):
        wrong = np.asarray(memories, np.float64)
        raise ValueError(
            f"memories must be ±1, got {wrong[np.abs(wrong) != 1][0]:g}; binarise first, as in "
            "jnp.where(images > threshold, 1.0, -1.0)"
        )
    return memories


def regular(memories: Float[Array, "M n"]) -> LogEnergy:
    """The regular exponential memory (Eq. 6): E(β) = −Σ_μ exp(βᵀξ^μ).

    Args:
        memories: ξ^μ, rows of ±1. All of them are kept: O(MN) numbers and O(MN) time per query.

    Returns:
        β [*b N] ↦ log(−E(β)) [*b].

    Raises:
        ValueError: if there is no memory, one is not ±1, or an input has another length.
    """
    xi = jnp.asarray(check_memories(memories), jnp.float32)

    def log_energy(beta: Array) -> Array:
        _check_length(beta, xi.shape[1])
        return jax.nn.logsumexp(beta @ xi.T, axis=-1)

    return log_energy


def store(memories: Float[Array, "M n"], omega: Float[Array, "r n"], phi: FeatureMap) -> Float[Array, "m"]:
    """Sum the features of all memories: log M̄ = log Σ_μ φ(ξ^μ) (Eq. 8).

    Storing another memory is `jnp.logaddexp(store(new, …), log_sum)`, O(Nr).

    Args:
        memories: ξ^μ, rows of ±1.
        omega: the projections.
        phi: any positive map.

    Returns:
        log M̄, of the same size whatever M is. To query it, ω (or its seed) must be kept too.

    Raises:
        ValueError: if there is no memory, one is not ±1, or they do not fit ω.
    """
    xi = jnp.asarray(check_memories(memories), jnp.float32)
    return jax.nn.logsumexp(phi.log_features(xi, omega), axis=0)


def compact(log_sum: Float[Array, "m"], omega: Float[Array, "r n"], phi: FeatureMap) -> LogEnergy:
    """The compact memory (Eq. 8): E(β) = −φ(β)ᵀ M̄, O(Nr) per query whatever M is.

    Args:
        log_sum: log M̄, from `store` with the same ω and φ.
        omega: the projections.
        phi: FAVOR++ in the paper; any positive map.

    Returns:
        β [*b N] ↦ log(−E(β)) [*b].

    Raises:
        ValueError: if sum and projections do not belong together, or an input has another length.
    """
    if log_sum.shape[0] != phi.per_projection * omega.shape[0]:
        raise ValueError(
            f"a sum of {log_sum.shape[0]} features does not belong to {omega.shape[0]} projections, of which this map "
            f"makes {phi.per_projection * omega.shape[0]}; store and query with the same ω and φ"
        )

    def log_energy(beta: Array) -> Array:
        _check_length(beta, omega.shape[1])
        phi_beta = phi.log_features(beta, omega)
        return jax.nn.logsumexp(phi_beta + log_sum.reshape(*(1,) * (beta.ndim - 1), -1), axis=-1)

    return log_energy


def restore(log_energy: LogEnergy, beta: Float[Array, "n"]) -> Float[Array, "n"]:
    """All asynchronous updates of one input, each by itself: T_j(β)_j for every j (Eq. 7).

        T_j(β)_j = sgn( E(β with β_j = −1) − E(β with β_j = +1) )

    Args:
        log_energy: an energy of vectors of N signs.
        beta: the input, ±1.

    Returns:
        [N] of ±1, and 0 where the two energies are equal: a tie restores nothing. A ValueError if β is not ±1.
    """
    _check_signs(beta)
    flipped = beta[None] * (1.0 - 2.0 * jnp.eye(beta.shape[0]))
    return beta * jnp.sign(log_energy(beta) - log_energy(flipped))


def descend(log_energy: LogEnergy, beta: Float[Array, "n"], key: Array, sweeps: int = 2) -> Float[Array, "n"]:
    """Run the dynamics of Eq. 7: sweeps · N updates of coordinates drawn independently at random; ties stay.

    Returns:
        The vector of ±1 reached, [N]. A ValueError if β is not one vector of ±1.
    """
    _check_signs(beta)
    n = beta.shape[0]

    def update(carry, j):
        beta, here = carry
        other = beta.at[j].multiply(-1.0)
        there = log_energy(other)
        better = there > here
        return (jnp.where(better, other, beta), jnp.where(better, there, here)), None

    order = jax.random.randint(key, (sweeps * n,), 0, n)
    return jax.lax.scan(update, (beta, log_energy(beta)), order)[0][0]


def hopfield(beta: Float[Array, "*b n"], memories: Float[Array, "M n"], sharpness: float = 1.0) -> Float[Array, "*b n"]:
    """One step of modern-Hopfield retrieval: Σ_μ ξ^μ softmax_μ(κ βᵀξ^μ), Eq. 5's fraction with the exact kernel.

    Returns:
        A convex combination of memories; its sign is a vector of ±1.
    """
    xi = jnp.asarray(check_memories(memories), jnp.float32)
    _check_length(beta, xi.shape[1])
    if not sharpness > 0:
        raise ValueError(f"the sharpness κ must be above 0, got {sharpness}")
    return jax.nn.softmax(sharpness * beta @ xi.T, axis=-1) @ xi


def ball(n: int, radius: int) -> np.ndarray:
    """Every way to flip at most `radius` of n signs: ±1 factors [P n], the Hamming ball of Def. 4.1."""
    flips = [c for size in range(radius + 1) for c in combinations(range(n), size)]
    signs = np.ones((len(flips), n))
    for row, c in zip(signs, flips, strict=True):
        row[list(c)] = -1.0
    return signs


def margins(pattern: np.ndarray, beta: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How clearly the regular memory restores each bit of a pattern, as other memories are added one by one.

        m_j(M) = Σ_{μ ≤ M} ξ_j ξ^μ_j exp(βᵀξ^μ − β_j ξ^μ_j),    ξ^1 = ξ

    T_j(β)_j = ξ_j exactly if m_j > 0: E with β_j = −1 less E with β_j = +1 is 2 sinh(1) Σ_μ ξ^μ_j exp(…).

    Args:
        pattern: ξ, [n] of ±1.
        beta: the input, [n] of ±1.
        others: ξ^2, ξ^3, …, [M−1 n] of ±1.

    Returns:
        m [M n] in units of e^N, float64, for memories of 1, 2, …, M patterns.
    """
    xi = np.concatenate([pattern[None], np.reshape(others, (-1, len(pattern)))]).astype(np.float64)
    exponents = (xi @ beta)[:, None] - beta[None] * xi - len(pattern)
    return np.cumsum(pattern[None] * xi * np.exp(exponents), axis=0)


def first_failure(pattern: np.ndarray, beta: np.ndarray, others: np.ndarray) -> int | None:
    """The number of memories at which some T_j(β)_j no longer restores ξ_j; None if `others` run out first."""
    failed = np.any(margins(pattern, beta, others) <= 0, axis=1)
    return int(np.argmax(failed)) + 1 if failed.any() else None


def capacity(memories: Float[Array, "M n"], radius: int = 0) -> int:
    """The capacity of Def. 4.1, measured: how many of these memories, in their order, the regular memory stores.

    Storing the first M means that for every ξ^l among them, every β within `radius` flips of it and every j,
    T_j(β)_j = ξ^l_j. All inputs are tried: the cost is O(M² N · ball).

    Args:
        memories: rows of ±1, in the order in which they come.
        radius: ρN, the flips that must be undone.

    Returns:
        The largest M such that the first 1, 2, …, M memories are all stored.
    """
    xi = np.asarray(check_memories(memories), np.float64)
    if not 0 <= radius < xi.shape[1] / 2:
        raise ValueError(f"ρN must be in [0, N/2), that is below {xi.shape[1] / 2:g}, got {radius}")
    flips, stored = ball(xi.shape[1], radius), len(xi)
    for i, pattern in enumerate(xi):
        for signs in flips:
            if i < stored:  # the pattern itself is there from the (i+1)-th on
                failed = np.any(margins(pattern, signs * pattern, np.delete(xi[:stored], i, axis=0)) <= 0, axis=1)
                stored = i + int(np.argmax(failed[i:])) if failed[i:].any() else stored
    return stored


def memory_bound(n: int, tau: float, rho: float) -> float:
    """How many memories Theorem 4.3 allows: M ≤ exp(2N(τ − 2ρ)) (1 − e^{−2}) / 2e².

    Args:
        n: N.
        tau: τ, the smallest distance between two memories is τN.
        rho: ρ ∈ (0, τ/2), the input is within ρN of its memory.
    """
    if not 0 < rho < tau / 2 <= 0.5:
        raise ValueError(f"Theorem 4.3 needs 0 < ρ < τ/2 and τ ≤ 1, got ρ = {rho}, τ = {tau}")
    return math.exp(2 * n * (tau - 2 * rho)) * (1 - math.exp(-2)) / (2 * math.exp(2))


def relative_variance(s: np.ndarray, n: int, rho: float | np.ndarray = 1.0, antithetic: bool = False) -> np.ndarray:
    """r · Var(φ(x)ᵀφ(y)) / K(x, y)² for i.i.d. projections, with s = ‖x+y‖² (App. A.1).

        ((1+ρ)/2√ρ)^N e^{ρs} − 1                   FAVOR++;   FAVOR+ at ρ = 1
        ((1+ρ)/2√ρ)^N (e^{ρs} + e^{−s})/2 − 1      hyperbolic FAVOR++;   hyperbolic at ρ = 1

    Minimising the first over ρ gives Eq. 11, see `features.best_rho`.

    Args:
        s: ‖x+y‖².
        n: N.
        rho: ρ ∈ (0, 1].
        antithetic: whether each ω is used with both signs.
    """
    s, rho = np.asarray(s, np.float64), np.asarray(rho, np.float64)
    if np.any(s < 0) or np.any(rho <= 0) or np.any(rho > 1):
        raise ValueError(f"variances need s ≥ 0 and ρ in (0, 1], got s = {s}, ρ = {rho}")
    growth = _log_growth(n, rho)
    if not antithetic:
        return np.expm1(growth + rho * s)
    # expm1 twice, so that nothing cancels at small s, where both terms are close to one.
    return 0.5 * (np.expm1(growth + rho * s) + np.expm1(growth - s))


def energy_change(memories: np.ndarray, beta: np.ndarray, i: int) -> float:
    """ΔE(β, i) = E(β̂) − E(β) of the regular memory, β̂ being β flipped at i; the mean of ΔE_rand (Theorem 4.3)."""
    _check_length(beta, np.shape(check_memories(memories))[1])
    _check_signs(beta)
    overlaps = np.asarray(memories, np.float64) @ np.asarray(beta, np.float64)
    other = overlaps - 2 * np.asarray(memories, np.float64)[:, i] * float(beta[i])
    return float(np.sum(np.exp(overlaps)) - np.sum(np.exp(other)))


def energy_change_variance(
    memories: np.ndarray, beta: np.ndarray, i: int, rho: float, r: int = 1, pair_sum: Callable | None = None
) -> float:
    """The variance of ΔE_rand(β, i) over FAVOR++'s projections (Theorem A.1).

    The theorem's six double sums over memories are quadratic forms. With γ = B²/2(1+8Â) = (1+ρ)/4,
    a_μ = exp(4γ βᵀξ^μ), â_μ the same for β̂, and G_μν = exp(2γ ξ^μᵀξ^ν),

        V1 + V2 − 2V3 = ((1+ρ)/2√ρ)^N e^{(6γ−2)N} ( aᵀGa + âᵀGâ − 2e^{−4γ} √(aâ)ᵀ G √(aâ) ),
        V4 + V5 − 2V6 = (ΔE_reg)²,

    which takes O(M²N) once and, on the ±1 cube, O(N 2^N) whatever M is; the cheaper is chosen.

    Args:
        memories: [M N] of ±1.
        beta: [N] of ±1.
        i: the coordinate that is flipped.
        rho: FAVOR++'s ρ ∈ (0, 1).
        r: number of independent projections.
        pair_sum: (memories, a, γ) → aᵀGa, `pair_sum_direct` or `pair_sum_walsh`; the cheaper by default.

    Raises:
        ValueError: for memories or inputs that are not ±1, r < 1, ρ outside (0, 1), or N beyond float64.
    """
    if r < 1 or not 0 < rho < 1:
        raise ValueError(f"the variance needs r ≥ 1 projections and ρ in (0, 1), got r = {r}, ρ = {rho}")
    change = energy_change(memories, beta, i)
    xi, beta = np.asarray(check_memories(memories), np.float64), np.asarray(beta, np.float64)
    m, n = xi.shape
    pair_sum = pair_sum or (pair_sum_walsh if n * 2.0**n < m * m else pair_sum_direct)
    gamma = (1 + rho) / 4
    flipped = beta.copy()
    flipped[i] *= -1
    # e^{−4γN} is taken out of every a and put back in the constant, which is the last to overflow.
    a, b = (np.exp(4 * gamma * (xi @ x - n)) for x in (beta, flipped))
    forms = [pair_sum(xi, v, gamma) for v in (a, b, np.sqrt(a * b))]
    log_constant = _log_growth(n, rho) + (16 * gamma - 2) * n
    if log_constant > 700:
        raise ValueError(f"the variance at N = {n} and ρ = {rho} is beyond float64; compare at a smaller N")
    second = math.exp(log_constant) * (forms[0] + forms[1] - 2 * math.exp(-4 * gamma) * forms[2])
    return (second - change**2) / r


def pair_sum_direct(memories: np.ndarray, a: np.ndarray, gamma: float) -> float:
    """Σ_{μν} a_μ a_ν e^{2γ(ξ^μᵀξ^ν − N)} by pairs, O(M²N)."""
    return float(a @ np.exp(2 * gamma * (memories @ memories.T - memories.shape[1])) @ a)


def pair_sum_walsh(memories: np.ndarray, a: np.ndarray, gamma: float) -> float:
    """The same sum by a fast Walsh–Hadamard transform, O(N 2^N) whatever M is.

    The kernel depends on ξ^μ ⊙ ξ^ν alone, so the transform makes it diagonal, with eigenvalues
    (1 + e^{−4γ})^{N−w} (1 − e^{−4γ})^w at the frequencies with w bits.
    """
    n = memories.shape[1]
    at = (memories < 0) @ (1 << np.arange(n))
    f = np.bincount(at, weights=a, minlength=2**n)
    for bit in range(n):
        f = f.reshape(-1, 2, 2**bit)
        f = np.stack([f[:, 0] + f[:, 1], f[:, 0] - f[:, 1]], axis=1)
    bits = np.bitwise_count(np.arange(2**n)).astype(np.float64)
    small = math.exp(-4 * gamma)
    return float(np.sum(f.reshape(-1) ** 2 * (1 + small) ** (n - bits) * (1 - small) ** bits) / 2**n)


def _log_growth(n: int, rho: float | np.ndarray) -> np.ndarray:
    """N log((1+ρ)/2√ρ), what boundedness costs."""
    return n * (np.log1p(rho) - np.log(2.0) - 0.5 * np.log(rho))


def _check_signs(beta: Array) -> None:
    known = not isinstance(beta, jax.core.Tracer)
    if np.ndim(beta) != 1 or (known and not np.all(np.abs(np.asarray(beta, np.float64)) == 1)):
        raise ValueError(f"an input must be one vector of ±1, got shape {np.shape(beta)}; vmap over several")


def _check_length(beta: Array, n: int) -> None:
    if jnp.ndim(beta) < 1 or beta.shape[-1] != n:
        raise ValueError(f"an input of shape {jnp.shape(beta)} does not fit memories of N = {n} signs")
