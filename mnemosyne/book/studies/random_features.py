"""The experiments of notebook 02, each as rows of a table: how accurate random features are (§3.3, App. A.1)."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from mnemosyne.evaluate import interval
from mnemosyne.memory import features
from mnemosyne.memory.cache import attention
from mnemosyne.memory.compact import cam
from mnemosyne.memory.contract import Memory, queries_and_keys
from mnemosyne.memory.features import FeatureMap
from mnemosyne.memory.layers import layer_norm, linear
from mnemosyne.memory.thick import thick_cam
from mnemosyne.theory import energies, monte_carlo
from mnemosyne.types import Theta

Maps = dict[str, FeatureMap]
DRAWS = {"independent": features.independent_projections, "orthogonal": features.orthogonal_projections}


def pairs(s: Sequence[float], n: int, seed: int) -> tuple[Float[Array, "p n"], Float[Array, "p n"]]:
    """Pairs (x, y) in R^n along fixed random directions, scaled to ‖x+y‖² = s."""
    u, v = jax.random.normal(jax.random.key(seed), (2, n))
    u, v = u / jnp.linalg.norm(u), 0.5 * v / jnp.linalg.norm(v)
    scaled = lambda direction: jnp.stack([a**0.5 * direction / 2 for a in s])
    return scaled(u + v), scaled(u - v)


@cache
def maps(rho: float) -> Maps:
    """The maps of notebook 02 by name; ρ is that of FAVOR++ and of its hyperbolic variant."""
    return {
        "FAVOR+": features.positive,
        "hyperbolic": features.hyperbolic,
        "FAVOR++": features.favor_plus_plus(rho),
        "hyperbolic FAVOR++": features.hyperbolic_plus_plus(rho),
    }


def formula(name: str, s: np.ndarray | float, n: int, rho: float) -> np.ndarray | float:
    """r Var(φ(x)ᵀφ(y))/K² of one of `maps`."""
    return energies.relative_variance(s, n, rho if "++" in name else 1.0, "hyperbolic" in name)


def unbiasedness(rho: float, s: Sequence[float], n: int, r: int, seeds: Sequence[int], draws: int) -> pd.DataFrame:
    """The mean of φ(x)ᵀφ(y)/K over all draws and seeds, and how many standard errors it is from one."""
    rows = []
    for name, kind, drawn in _drawn(rho, s, n, r, seeds, draws, offset=1):
        drawn = np.concatenate(drawn)
        error = drawn.std(axis=0, ddof=1) / len(drawn) ** 0.5
        for a, mean, e in zip(s, drawn.mean(axis=0), error, strict=True):
            row = {"map": name, "projections": kind, "s": a, "mean over K": mean, "standard error": e}
            rows.append({**row, "z": (mean - 1) / e})
    return _sorted(rows, rho)


def variances(rho: float, s: Sequence[float], n: int, r: int, seeds: Sequence[int], draws: int) -> pd.DataFrame:
    """r Var(φ(x)ᵀφ(y))/K² for each seed beside its formula."""
    rows = []
    for name, kind, drawn in _drawn(rho, s, n, r, seeds, draws, offset=2):
        for k, measured in zip(seeds, r * drawn.var(axis=1, ddof=1), strict=True):
            row = {"map": name, "projections": kind, "seed": k}
            rows += [
                {**row, "s": a, "r Var / K²": m, "formula": formula(name, a, n, rho)}
                for a, m in zip(s, measured, strict=True)
            ]
    return _sorted(rows, rho)


def _drawn(
    rho: float, s: Sequence[float], n: int, r: int, seeds: Sequence[int], draws: int, offset: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(map, projections, φ(x)ᵀφ(y)/K [seeds draws s]) for every map and way to draw."""
    x, y = pairs(s, n, seeds[0])
    for kind, draw in DRAWS.items():
        drawn = monte_carlo.kernels_draws(
            tuple(maps(rho).values()), x, y, r, monte_carlo.keys_of(seeds, offset), draws, draw
        )
        yield from ((name, kind, of_map) for name, of_map in zip(maps(rho), drawn, strict=True))


def _sorted(rows: list[dict], rho: float) -> pd.DataFrame:
    """Rows by map, as `maps` has them."""
    table, order = pd.DataFrame(rows), {name: i for i, name in enumerate(maps(rho))}
    return table.sort_values("map", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def against_features(
    rho: float, s: float, n: int, rs: Sequence[int], seeds: Sequence[int], draws: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The variance for each r and seed, and the fitted log-log slope of each map, ± its 95% interval."""
    x, y = pairs((s,), n, seeds[0])
    rows = []
    for r in rs:
        drawn = monte_carlo.kernels_draws(tuple(maps(rho).values()), x, y, r, monte_carlo.keys_of(seeds, 3), draws)
        for name, of_map in zip(maps(rho), drawn, strict=True):
            values = of_map[..., 0].var(axis=1)
            rows += [{"map": name, "seed": k, "r": r, "variance": v} for k, v in zip(seeds, values, strict=True)]
    table = _sorted(rows, rho)
    fit = lambda g: np.polyfit(np.log(g.r), np.log(g.variance), 1)[0]
    slopes = [
        (name, *interval([fit(g) for _, g in of_map.groupby("seed")]))
        for name, of_map in table.groupby("map", sort=False)
    ]
    return table, pd.DataFrame(slopes, columns=["map", "log-log slope against r", "±"])


def largest_features(rho: float, z: Sequence[float], seed: int, draws: int) -> pd.DataFrame:
    """The largest √m φ_i(z) among the first 10, …, `draws` projections."""
    omega = features.independent_projections(jax.random.key(seed + 1), draws, len(z))
    rows = []
    for name, phi in maps(rho).items():
        values = np.asarray(phi.features(jnp.array(z), omega)).reshape(phi.per_projection, draws).max(axis=0)
        values = values * (phi.per_projection * draws) ** 0.5
        rows += [{"map": name, "draws": int(n), "largest": values[: int(n)].max()} for n in np.geomspace(10, draws, 25)]
    return pd.DataFrame(rows)


def costs(s: np.ndarray, ns: Sequence[int]) -> dict[str, np.ndarray]:
    """The relative variance of each map times its number of features, [N s], at its best ρ.

    FAVOR++ uses Eq. 11; the hyperbolic variant the best of Eq. 11 and a grid of 400 values.
    """
    rhos = np.geomspace(0.005, 1, 400)[:, None] * np.ones_like(s)[None]
    by_map = {"FAVOR+": [], "hyperbolic": [], "FAVOR++": [], "hyperbolic FAVOR++": []}
    for n in ns:
        eq_11 = np.asarray(features.best_rho(jnp.array(s), int(n)), np.float64)
        paired = energies.relative_variance(s[None], n, np.concatenate([rhos, eq_11[None]]), antithetic=True)
        by_map["FAVOR+"].append(energies.relative_variance(s, n))
        by_map["hyperbolic"].append(2 * energies.relative_variance(s, n, antithetic=True))
        by_map["FAVOR++"].append(energies.relative_variance(s, n, eq_11))
        by_map["hyperbolic FAVOR++"].append(2 * paired.min(axis=0))
    return {name: np.stack(rows) for name, rows in by_map.items()}


def typical_sum_of(theta: Theta) -> float:
    """The mean ‖q+k‖² in an optimizer's first memory, for gradients of magnitudes e^{−10} to e^{1}."""
    magnitude = 2 * jnp.linspace(-1, 0.1, 101)[:, None] + 1
    address = layer_norm(linear(theta["embed"]["even"], magnitude))
    return float(features.mean_square_sum(*queries_and_keys(theta["encoders"][0]["memory"], address)))


def causal_errors(
    seeds: Sequence[int], draws: int, slices: Sequence[int] = (1, 2, 8), t: int = 64, n: int = 8, m: int = 16
) -> pd.DataFrame:
    """The error of Eq. 5's fraction against exact attention while keys grow from norm 0.3 to 2 (App. A.1.1).

    Plain maps with m features, thickened memories with m features a slice, plain maps with the state of eight
    slices, and the oracle that recomputes all features at each query's own ρ.
    """
    contenders = {"FAVOR+": _plain(features.positive, m), "hyperbolic": _plain(features.hyperbolic, m // 2)}
    contenders |= {f"thickened, {g} slice{'s' * (g > 1)}": _thick(g, m) for g in slices}
    contenders["FAVOR+, the state of 8 slices"] = _plain(features.positive, 8 * m)
    contenders["hyperbolic, the state of 8 slices"] = _plain(features.hyperbolic, 4 * m)
    contenders["oracle ρ"] = jax.jit(jax.vmap(monte_carlo.oracle_reads, (0, None, None))), m
    draw = jax.jit(jax.vmap(features.orthogonal_projections, (0, None, None)), static_argnums=(1, 2))
    exact_read, rows = _reader(attention(cache=t)), []
    for k in seeds:
        of_keys, of_content, of_omega = jax.random.split(jax.random.key(30_000 + k), 3)
        xi, content = jax.random.normal(of_keys, (t, n)), jax.random.normal(of_content, (t, n))
        xi = jnp.linspace(0.3, 2.0, t)[:, None] * xi / jnp.linalg.norm(xi, axis=-1, keepdims=True)
        truth = exact_read(jnp.ones((1, 1, n)), xi, content)
        for name, (read, r) in contenders.items():
            answers = read(draw(jax.random.split(of_omega, draws), r, n), xi, content)
            rows.append({"memory": name, "seed": k, "error": float(jnp.mean((answers - truth) ** 2))})
    return pd.DataFrame(rows)


def _reader(memory: Memory) -> Callable:
    """(ω [draws r n], addresses [t n], contents [t n]) → reads [draws t n], with q = k = address."""

    def read(omega, xi, content):
        return memory.window(
            monte_carlo.identity_maps(omega), memory.state((), *xi.shape[1:], *xi.shape[1:]), xi, content
        )

    return jax.jit(jax.vmap(read, (0, None, None)))


def _plain(phi: FeatureMap, r: int) -> tuple[Callable, int]:
    return _reader(cam(projections=r, discount=0.0, feature_map=phi)), r


def _thick(slices: int, r: int) -> tuple[Callable, int]:
    grid = tuple((i + 0.5) / slices for i in range(slices))
    return _reader(thick_cam(projections=r, discount=0.0, rhos=grid)), r
