"""The theory by experiment: kernels and energies over many draws of ω, retrieval over many random memories (§4)."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mnemosyne.memory.features import FeatureMap, best_rho, exact, favor_plus_plus, independent_projections
from mnemosyne.theory import energies
from mnemosyne.types import Theta

BATCH = 5_000  # draws held in memory at once


def keys_of(seeds: Sequence[int], offset: int = 0) -> Array:
    """A key for each seed, [s]; another offset gives other keys."""
    return jnp.stack([jax.random.fold_in(jax.random.key(seed), offset) for seed in seeds])


def kernel_draws(
    phi: FeatureMap,
    x: Float[Array, "p n"],
    y: Float[Array, "p n"],
    r: int,
    keys: Array,
    draws: int,
    draw: Callable = independent_projections,
) -> np.ndarray:
    """Estimate K(x, y) with r projections, `draws` times over, for p pairs at once.

    Returns:
        φ(x)ᵀφ(y) / K(x, y), [s draws p] for s keys, of mean 1 for an unbiased map; float64.
    """
    (drawn,) = kernels_draws((phi,), x, y, r, keys, draws, draw)
    return drawn


def kernels_draws(
    maps: Sequence[FeatureMap],
    x: Float[Array, "p n"],
    y: Float[Array, "p n"],
    r: int,
    keys: Array,
    draws: int,
    draw: Callable = independent_projections,
) -> Iterator[np.ndarray]:
    """As `kernel_draws`, for several maps in one program: all see the same projections. Yields an array for each."""
    drawn = _many(_kernels(tuple(maps), r, draw), keys, draws, x, y)
    return (drawn[:, :, i].astype(np.float64) for i in range(len(maps)))


@lru_cache(maxsize=32)
def _kernels(maps: tuple[FeatureMap, ...], r: int, draw: Callable) -> Callable:
    """(keys, x, y) → estimates over K, [keys maps p]; kept, so that other pairs of as many compile nothing."""

    def one(key, x, y):
        omega = draw(key, r, x.shape[-1])
        return jnp.stack([phi.kernel(x, y, omega) for phi in maps]) / exact(x, y)[None]

    return jax.jit(jax.vmap(one, (0, None, None)))


def energy_change_draws(
    memories: Float[Array, "M n"], beta: Float[Array, "n"], i: int, rho: float, r: int, keys: Array, draws: int
) -> np.ndarray:
    """ΔE_rand(β, i) = E(β̂) − E(β) with r independent FAVOR++ projections (Theorem A.1), [s draws] for s keys."""
    return _many(_plain_change(r), keys, draws, memories, beta, i, rho).astype(np.float64)


@cache
def _plain_change(r: int) -> Callable:
    """(keys, memories, β, i, ρ) → ΔE_rand with r projections, [keys]; one program for every memory of a shape."""

    def one(key, memories, beta, i, rho):
        omega = independent_projections(key, r, beta.shape[0])
        return _energy_change(memories, beta, i, favor_plus_plus(rho), omega)

    return jax.jit(jax.vmap(one, (0, None, None, None, None)))


def weighted_energy_change_draws(
    memories: Float[Array, "M n"], beta: Float[Array, "n"], i: int, rho: float, keys: Array, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same with one projection, drawn where (ΔE)² is large and weighed back (importance sampling).

    (ΔE)² N(ω; 0, I) is a sum of Gaussians of variance ρI, the largest at 2Bρ(ξ^μ + β) and 2Bρ(ξ^μ + β̂). Half of
    the draws are from Gaussians of twice that variance there, half from N(0, I). Plain draws hardly ever get there.

    Returns:
        (ΔE, weights of mean one), both [s draws]: the mean of weight · ΔE^p estimates E ΔE^p.
    """
    drawn = _many(_weighted_change, keys, draws, memories, beta, i, rho).astype(np.float64)
    return drawn[..., 0], drawn[..., 1]


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None, None, None))
def _weighted_change(key: Array, memories: Array, beta: Array, i: Array, rho: Array) -> Array:
    """(ΔE, weight) of one draw."""
    n, b = beta.shape[0], (0.5 * (1 / rho + 1)) ** 0.5
    both = jnp.stack([beta, beta.at[i].multiply(-1.0)])
    centres = 2.0 * b * rho * (memories[:, None] + both[None]).reshape(-1, n)
    log_normal = lambda x, v: -0.5 * jnp.sum(x * x, axis=-1) / v - 0.5 * n * jnp.log(2 * jnp.pi * v)
    of_kind, of_centre, of_noise = jax.random.split(key, 3)
    noise = jax.random.normal(of_noise, (n,))
    there = centres[jax.random.randint(of_centre, (), 0, len(centres))] + (2 * rho) ** 0.5 * noise
    omega = jnp.where(jax.random.bernoulli(of_kind), there, noise)
    near = jax.nn.logsumexp(log_normal(omega[None] - centres, 2 * rho)) - jnp.log(len(centres))
    plain = log_normal(omega, 1.0)
    change = _energy_change(memories, beta, i, favor_plus_plus(rho), omega[None])
    return jnp.stack([change, jnp.exp(plain - jnp.logaddexp(near, plain) + jnp.log(2.0))])


def _energy_change(memories: Array, beta: Array, i: int, phi: FeatureMap, omega: Array) -> Array:
    """E(β̂) − E(β) (Eq. 8)."""
    both = jnp.stack([beta, beta.at[i].multiply(-1.0)])
    here, there = jnp.exp(energies.compact(energies.store(memories, omega, phi), omega, phi)(both))
    return here - there


def _many(run: Callable, keys: Array, draws: int, *args: Array) -> np.ndarray:
    """run(keys, *args), a compiled function of `BATCH` keys, for `draws` keys made of each key given, [s draws …]."""
    split = jax.jit(jax.random.split, static_argnums=1)
    batches = [[run(split(k, BATCH), *args) for k in split(key, -(-draws // BATCH))] for key in keys]
    return np.stack([np.concatenate([np.asarray(b) for b in of_seed])[:draws] for of_seed in batches])


def retrievals(
    recalls: dict[str, Callable],
    keys: Array,
    trials: int,
    *,
    n: int,
    memories: int,
    wrong: int,
    pool: Array | None = None,
) -> dict[str, np.ndarray]:
    """Corrupt the first of some random memories and ask for it back, many times.

    Args:
        recalls: by name, (key, memories [M n], input [n]) → answer [n] of ±1, for instance functions below. All
            are asked the same.
        keys: s random keys.
        trials: how many times for each key, every time with other memories, corruption and projections.
        n: N.
        memories: M.
        wrong: how many signs of the input are flipped.
        pool: patterns [P n] to draw the memories from; random signs by default.

    Returns:
        By name, the number of wrong bits in each answer, [s trials].
    """

    (answers,) = retrievals_at(recalls, keys, trials, n=n, memories=memories, wrongs=[wrong], pool=pool)
    return answers


def retrievals_at(
    recalls: dict[str, Callable],
    keys: Array,
    trials: int,
    *,
    n: int,
    memories: int,
    wrongs: Sequence[int],
    pool: Array | None = None,
) -> list[dict[str, np.ndarray]]:
    """As `retrievals`, for each of several numbers of flipped signs, in one program."""

    def one(wrong, key):
        of_memories, of_input, of_recall = jax.random.split(key, 3)
        if pool is None:
            xi = jax.random.rademacher(of_memories, (memories, n), jnp.float32)
        else:
            xi = pool[jax.random.choice(of_memories, pool.shape[0], (memories,), replace=False)]
        beta = corrupt(xi[0], of_input, wrong)
        return {name: jnp.sum(recall(of_recall, xi, beta) != xi[0]) for name, recall in recalls.items()}

    run = jax.jit(lambda keys, wrong: jax.lax.map(partial(one, wrong), keys))
    found = []
    for wrong in wrongs:
        answers = [run(jax.random.split(k, trials), wrong) for k in keys]
        found.append({name: np.stack([np.asarray(a[name]) for a in answers]) for name in recalls})
    return found


def corrupt(pattern: Float[Array, "n"], key: Array, wrong: int | Int[Array, ""]) -> Float[Array, "n"]:
    """Flip `wrong` randomly chosen signs."""
    return jnp.where(jax.random.permutation(key, pattern.shape[0]) < wrong, -pattern, pattern)


def updates_of(energy_of: Callable) -> Callable:
    """Recall by Eq. 7 at every coordinate, as Def. 4.1 asks; `energy_of`: (key, memories) → energy."""
    return lambda key, xi, beta: energies.restore(energy_of(key, xi), beta)


def dynamics_of(energy_of: Callable) -> Callable:
    """Recall by running Eq. 7 downhill from the input for 8 sweeps; `energy_of`: (key, memories) → energy."""

    def recall(key, xi, beta):
        of_energy, of_order = jax.random.split(key)
        return energies.descend(energy_of(of_energy, xi), beta, of_order, sweeps=8)

    return recall


def hebbian(memories: Float[Array, "M n"]) -> Callable:
    """The classical Hopfield memory: E(β) = −Σ_μ (βᵀξ^μ)²/2N = −½ βᵀWβ with W = ΞᵀΞ/N, N² numbers whatever M is.

    It is a compact memory with the square kernel, whose features ξξᵀ are exact. Its capacity is below N, not e^N.
    """
    xi = jnp.asarray(energies.check_memories(memories), jnp.float32)
    w = xi.T @ xi / xi.shape[1]

    return lambda beta: jnp.log(0.5 * jnp.sum((beta @ w) * beta, axis=-1))


def regular_energy(key: Array, xi: Float[Array, "M n"]) -> Callable:
    """The regular memory's energy (Eq. 6), which needs no key."""
    return energies.regular(xi)


def compact_energy(phi: FeatureMap, r: int) -> Callable:
    """(key, memories) → the compact memory's energy with r fresh independent projections (Eq. 8)."""

    def energy_of(key, xi):
        omega = independent_projections(key, r, xi.shape[1])
        return energies.compact(energies.store(xi, omega, phi), omega, phi)

    return energy_of


def cam_read(
    phi: FeatureMap,
    r: int,
    sharpness: float,
    centre: Float[Array, "n"] | float = 0.0,
    draw: Callable = independent_projections,
) -> Callable:
    """Recall by the fraction of Eq. 5: the sign of Σ_μ ξ^μ φ(q)ᵀφ(k^μ) / Σ_μ φ(q)ᵀφ(k^μ).

    Queries and keys are √κ (β − b) and √κ (ξ − b): W_Q = W_K = √κ I, with a bias b as in any attention layer.
    """

    def recall(key, xi, beta):
        omega = draw(key, r, xi.shape[1])
        of_keys = phi.log_features(sharpness**0.5 * (xi - jnp.broadcast_to(centre, beta.shape)[None]), omega)
        of_query = phi.log_features(sharpness**0.5 * (beta - centre), omega)
        weights = jax.nn.softmax(jax.nn.logsumexp(of_keys + of_query[None], axis=-1))
        return _signs(weights @ xi)

    return recall


def hopfield_read(sharpness: float, centre: Float[Array, "n"] | float = 0.0) -> Callable:
    """Recall by one step of the modern Hopfield network: the same fraction with the exact kernel.

    A bias in the keys adds the same to every score, so it need only be taken from the query.
    """
    return lambda key, xi, beta: _signs(energies.hopfield(beta - centre, xi, sharpness))


def identity_maps(omega: Float[Array, "r n"]) -> Theta:
    """θ of a memory with W_Q = W_K = W_V = I, for which q = k = address and Eq. 5 is a Hopfield network."""
    n = omega.shape[1]
    same = {"w": n**0.25 * jnp.eye(n), "b": jnp.zeros(n)}  # undoes the memory's N^{-1/4}
    return {"query": same, "key": same, "value": jnp.eye(n), "omega": omega}


def oracle_reads(omega: Float[Array, "r n"], xi: Float[Array, "t n"], content: Float[Array, "t n"]) -> Array:
    """FAVOR++ as it would read with each query's own best ρ, recomputing the features of all keys (App. A.1.1).

    It is what a thickened memory approaches with a fine grid, at the price of storing the past.
    """
    squares, times = jnp.sum(xi * xi, -1), jnp.arange(len(xi))

    def read(t):
        past = times <= t  # a mask rather than a slice: one shape for every t
        mean = lambda x: jnp.sum(jnp.where(past[:, None], x, 0.0), axis=0) / jnp.sum(past)
        s = squares[t] + mean(squares[:, None])[0] + 2 * xi[t] @ mean(xi)
        phi = favor_plus_plus(best_rho(s, xi.shape[1]))
        weights = jnp.where(past, phi.features(xi, omega) @ phi.query(xi[t], omega), 0.0)
        return weights @ content / weights.sum()

    return jax.lax.map(read, times)


def separated(vectors: np.ndarray, distance: int, limit: int | None = None) -> np.ndarray:
    """Go through ±1 vectors in order and keep each that differs in ≥ `distance` places from all kept before it."""
    left, kept = np.asarray(vectors, np.int8), []
    while len(left) and (limit is None or len(kept) < limit):
        kept.append(left[0])
        left = left[(left != left[0]).sum(axis=1) >= distance]
    return np.array(kept, np.float64)


def cube(n: int) -> np.ndarray:
    """All 2^N vectors of ±1, [2^N N], int8."""
    return (1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)).astype(np.int8)


def _signs(x: Array) -> Array:
    return jnp.where(x > 0, 1.0, -1.0)


def flops(f: Callable, *args) -> float:
    """Floating-point operations of a function as XLA compiles it: a cost without a clock's noise."""
    return float(jax.jit(f).lower(*args).compile().cost_analysis()["flops"])
