"""The experiments of notebook 03, each as rows of a table: what a memory holds (§4, App. A.2)."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.stats import binomtest, linregress

from mnemosyne.book.bench import per_call
from mnemosyne.memory.features import best_rho, favor_plus_plus, orthogonal_projections
from mnemosyne.theory import energies, monte_carlo


def generators(offset: int, seeds: Sequence[int]) -> list[np.random.Generator]:
    """One generator of memories for each seed."""
    return [np.random.default_rng([offset, k]) for k in seeds]


def towards(n: int, distance: int, wrong: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ξ = 1, the memory at `distance` from it, and the input `wrong` flips from ξ on the way there, all [n]."""
    return np.ones(n), *(np.where(np.arange(n) < k, -1.0, 1.0) for k in (distance, wrong))


def signs_at_the_bound(cells: Sequence[tuple[int, int, int]], seeds: Sequence[int]) -> pd.DataFrame:
    """The share of coordinates whose flip changes the expected energy as Theorem 4.3 says, at M as it allows.

    Args:
        cells: (N, τN, ρN) each.
        seeds: of the random memories.
    """
    rows = []
    for n, distance, wrong in cells:
        allowed = int(energies.memory_bound(n, distance / n, wrong / n))
        pattern, worst, beta = towards(n, distance, wrong)
        cell, m = {"N": n, "τN": distance, "ρN": wrong, "M allowed": allowed}, max(1, allowed)
        one, two = energies.margins(pattern, beta, worst[None])
        rows.append({**cell, "others": "worst", "M": m, "signs right": (one + (m - 1) * (two - one) > 0).mean()})
        for rng in generators(1, seeds):
            drawn = np.concatenate([pattern[None], rng.choice([-1, 1], (4_000, n))])
            others = monte_carlo.separated(drawn, distance, limit=allowed)[1:]
            corrupted = pattern * np.where(rng.permutation(n) < wrong, -1, 1)
            right = (energies.margins(pattern, corrupted, others)[-1] > 0).mean()
            rows.append({**cell, "others": "random", "M": len(others) + 1, "signs right": right})
    return pd.DataFrame(rows)


def first_wrong_sign(ns: Sequence[int], seeds: Sequence[int]) -> pd.DataFrame:
    """The M at which a sign first fails, at τ = 1/4 and one wrong bit, beside Theorem 4.3's bound.

    `failed` is False where the memories ran out first: M is then a lower bound.
    """
    rows = []
    for n in ns:
        distance = n // 4
        pattern, worst, beta = towards(n, distance, 1)
        one, two = energies.margins(pattern, beta, worst[None])
        harm = np.where(two < one, one / np.maximum(one - two, 1e-300), np.inf)
        bound = energies.memory_bound(n, distance / n, 1 / n)
        for which, m in (("Theorem 4.3", bound), ("worst multiset", 1 + harm.min())):
            rows.append({"N": n, "which": which, "M": m, "failed": True, "seed": seeds[0]})
        for k, rng in zip(seeds, generators(2, seeds), strict=True):
            drawn = monte_carlo.cube(n) if n <= 16 else rng.choice([-1, 1], (20_000, n)).astype(np.int8)
            drawn = drawn[rng.permutation(len(drawn))]
            near = drawn[np.argsort((drawn != beta).sum(1), kind="stable")]
            for which, order in (("greedy", near), ("random", drawn)):
                order = np.concatenate([pattern[None].astype(np.int8), order])
                others = monte_carlo.separated(order, distance, limit=6_000)[1:]
                failed = energies.first_failure(pattern, beta, others)
                row = {"N": n, "which": which, "M": failed or len(others) + 1, "failed": failed is not None}
                rows.append({**row, "seed": k})
    return pd.DataFrame(rows)


def energy_changes(
    cells: Sequence[tuple[int, int, int]], maps: Sequence[tuple[float, int]], seeds: Sequence[int], draws: int
) -> pd.DataFrame:
    """Mean and variance of ΔE_rand beside Theorem A.1's, for random and for worst memories.

    Args:
        cells: (N, M, ρN) each.
        maps: (FAVOR++'s ρ, r) each.
        seeds: of the projections; the first also of the memories.
        draws: per seed, both of weighted draws of one projection and of plain draws of r.
    """
    rows, keys = [], monte_carlo.keys_of(seeds)
    for n, m, wrong in cells:
        for placed in ("random", "worst"):
            rng = np.random.default_rng([3, seeds[0], n])
            pattern, worst, beta = towards(n, n // 2, wrong)
            others = rng.choice([-1.0, 1.0], (m - 1, n)) if placed == "random" else np.tile(worst, (m - 1, 1))
            xi, i = np.concatenate([pattern[None], others]), n - 1
            mean = energies.energy_change(xi, beta, i)
            for rho, r in maps:
                args = jnp.array(xi, jnp.float32), jnp.array(beta, jnp.float32), i, rho
                plain = monte_carlo.energy_change_draws(*args, r, keys, draws)
                measured = {
                    ("weighted", 1): monte_carlo.weighted_energy_change_draws(*args, keys, draws),
                    ("plain", r): (plain, np.ones_like(plain)),
                }
                for (how, projections), (change, weight) in measured.items():
                    values = weight * change
                    rows.append(
                        {
                            **{"N": n, "M": m, "ρN": wrong, "others": placed, "ρ of FAVOR++": rho},
                            **{"draws": how, "r": projections, "ΔE_reg": mean, "mean ΔE_rand": values.mean()},
                            "z": (values.mean() - mean) / values.std() * values.size**0.5,
                            "predicted variance": energies.energy_change_variance(xi, beta, i, rho, projections),
                            "measured variance": (values * change).mean() - values.mean() ** 2,
                        }
                    )
    return pd.DataFrame(rows)


def stored_by_definition(ns: Sequence[int], seeds: Sequence[int], repeats: int = 5) -> pd.DataFrame:
    """Definition 4.1's capacity of the regular memory for random patterns, with 0 and 1 wrong bits."""
    rows = []
    for n in ns:
        for radius in (0, 1):
            for k, rng in zip(seeds, generators(4, seeds), strict=True):
                for repeat in range(repeats):
                    offered = int(60 * 2 ** (n / 2.2)) if radius == 0 else 40 * n
                    xi = rng.choice([-1.0, 1.0], (offered, n))[:20_000]
                    row = {"N": n, "ρN": radius, "seed": k, "repeat": repeat}
                    rows.append({**row, "M": energies.capacity(xi, radius)})
    return pd.DataFrame(rows)


def growth(held: pd.DataFrame, least: int = 8) -> pd.DataFrame:
    """How a capacity grows, seed by seed: log M on a line in N (exponential) and on one in log N (power law).

    Args:
        held: of `stored_by_definition`, for one number of wrong bits.
        least: the smallest N that counts.

    Returns:
        Rows (seed, slope, exponential, power): the slope of log M against N, and R² of either line.
    """
    rows = []
    for seed, of_seed in held[least <= held.N].groupby("seed"):
        log_m = np.log(np.maximum(of_seed.M, 1))
        line, power = linregress(of_seed.N, log_m), linregress(np.log(of_seed.N), log_m)
        rows.append({"seed": seed, "slope": line.slope, "exponential": line.rvalue**2, "power": power.rvalue**2})
    return pd.DataFrame(rows)


def retrieved(settings: Sequence[tuple[int, int]], rs: Sequence[int], seeds: Sequence[int], count: int) -> pd.DataFrame:
    """`all_bits_right` for several settings (N, M)."""
    return pd.DataFrame([row for n, m in settings for row in all_bits_right(n, m, rs, seeds, count)])


def all_bits_right(n: int, memories: int, rs: Sequence[int], seeds: Sequence[int], count: int) -> Iterator[dict]:
    """P(all bits right) of regular and compact memory, by energy and by read, with Wilson intervals.

    The input is a stored pattern with one wrong bit; FAVOR++ with the best ρ for s = ‖2ξ‖² = 4N.
    """
    phi = favor_plus_plus(best_rho(4.0 * n, n))
    recalls = {
        ("regular", 0): monte_carlo.updates_of(monte_carlo.regular_energy),
        ("exact read", 0): monte_carlo.hopfield_read(1.0),
    }
    recalls |= {("energy", r): monte_carlo.updates_of(monte_carlo.compact_energy(phi, r)) for r in rs}
    recalls |= {("read", r): monte_carlo.cam_read(phi, r, 1.0) for r in rs}
    named = {f"{how}/{r}": recall for (how, r), recall in recalls.items()}
    answers = monte_carlo.retrievals(named, monte_carlo.keys_of(seeds), count, n=n, memories=memories, wrong=1)
    for name, wrong_bits in answers.items():
        how, r = name.split("/")
        right, asked = int((wrong_bits == 0).sum()), wrong_bits.size
        low, high = binomtest(right, asked).proportion_ci(method="wilson")
        row = {"N": n, "M": memories, "how": how, "r": int(r)}
        yield {**row, "probability": right / asked, "low": low, "high": high}


def features_needed(compact: pd.DataFrame, share: float) -> pd.DataFrame:
    """The r at which each way to ask succeeds `share` as often as its ceiling, on a line in log r, for each N.

    The ceiling of the energy is the regular memory, that of the read is the exact read. No row where r never does.
    """
    rows = []
    for n, of_n in compact.groupby("N"):
        for how, ceiling in (("energy", "regular"), ("read", "exact read")):
            wanted = share * of_n[of_n.how == ceiling].probability.iloc[0]
            group = of_n[of_n.how == how].sort_values("r")
            p, log_r = group.probability.to_numpy(), np.log(group.r.to_numpy())
            above = int(np.argmax(p >= wanted))
            if p[above] >= wanted:
                at = slice(max(0, above - 1), above + 1)
                needed = float(np.exp(np.interp(wanted, p[at], log_r[at])))
                rows.append({"N": n, "how": how, "ceiling": wanted / share, "features": needed})
    return pd.DataFrame(rows)


def query_costs(
    counts: Sequence[int], n: int = 32, r: int = 256, batch: int = 64, rounds: int = 21
) -> tuple[pd.DataFrame, pd.Series]:
    """Operations per query as compiled, and µs per query, median of `rounds` with all taking turns."""
    phi, omega = favor_plus_plus(0.1), orthogonal_projections(jax.random.key(0), r, n)
    ask = {
        "regular": jax.jit(lambda xi, b: jax.nn.logsumexp(b @ xi.T, axis=-1)),
        "compact": jax.jit(lambda log_sum, b: energies.compact(log_sum, omega, phi)(b)),
    }
    rows, asked = [], {}
    for m in counts:
        xi = jax.random.rademacher(jax.random.key(m), (m, n), jnp.float32)
        for which, kept in (("regular", xi), ("compact", energies.store(xi, omega, phi))):
            args = kept, xi[:1] * jnp.ones((batch, 1))
            asked[which, m] = args
            rows.append({"memory": which, "M": m, "operations": monte_carlo.flops(ask[which], *args) / batch})
    spent = {name: [] for name in asked}
    for _ in range(rounds):
        for name, args in asked.items():
            spent[name].append(per_call(ask[name[0]], *args, calls=1) / batch * 1e6)
    return pd.DataFrame(rows), pd.Series({name: np.median(s) for name, s in spent.items()})


def update_costs(ns: Sequence[int], rs: Sequence[int]) -> list[float]:
    """Operations of storing one more memory, over Nr, for every N and r."""
    phi = favor_plus_plus(0.1)
    add = lambda log_sum, xi, omega: jnp.logaddexp(log_sum, phi.log_features(xi, omega))
    return [monte_carlo.flops(add, jnp.zeros(r), jnp.ones(n), jnp.ones((r, n))) / (n * r) for n in ns for r in rs]
