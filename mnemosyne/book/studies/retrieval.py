"""The experiments of notebook 04 as rows: real images in memories of patterns (§3.3.1, §4)."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
import pandas as pd

from mnemosyne.memory.features import best_rho, favor_plus_plus, hyperbolic
from mnemosyne.theory import monte_carlo

COLORS = {
    "regular": "0.2",
    "modern Hopfield": "0.55",
    "compact, read, r = 4,096": "#0b4f8a",
    "compact, read, r = 512": "#5fa8d3",
    "classical Hopfield": "#3a8f5c",
    "compact, energy, r = 512": "#c0392b",
}


def memories(digits: np.ndarray) -> dict[str, Callable]:
    """The six memories by name, each a recall of `retrievals`: (key, memories [M N], input [N]) → answer [N].

    Args:
        digits: all images [P N] of ±1. Reads take their mean as a bias, and the temperature of attention, 1/√N.
    """
    n, centre = digits.shape[1], digits.mean(axis=0)
    sharpness = n**-0.5
    return {
        "regular": monte_carlo.dynamics_of(monte_carlo.regular_energy),
        "modern Hopfield": monte_carlo.hopfield_read(sharpness, centre),
        "compact, read, r = 4,096": monte_carlo.cam_read(hyperbolic, 4_096, sharpness, centre),
        "compact, read, r = 512": monte_carlo.cam_read(hyperbolic, 512, sharpness, centre),
        "classical Hopfield": monte_carlo.dynamics_of(lambda key, xi: monte_carlo.hebbian(xi)),
        "compact, energy, r = 512": monte_carlo.dynamics_of(
            monte_carlo.compact_energy(favor_plus_plus(best_rho(4.0 * n, n)), 512)
        ),
    }


def wrong_pixels(
    digits: np.ndarray,
    names: Sequence[str],
    counts: Sequence[int],
    shares: Sequence[float],
    seeds: Sequence[int],
    count: int,
) -> pd.DataFrame:
    """The mean share of wrong pixels in what memories answer.

    Args:
        digits: images [P N] of ±1 to draw from, anew in every trial.
        names: of `memories`.
        counts: how many images are stored.
        shares: of pixels that are flipped in the input.
        seeds: of the trials.
        count: trials for each seed.

    Returns:
        Rows (stored, corrupted, memory, seed, wrong).
    """
    recalls, n, rows = {name: memories(digits)[name] for name in names}, digits.shape[1], []
    for stored in counts:
        for share, wrong in zip(shares, _retrievals(recalls, digits, stored, shares, seeds, count), strict=True):
            for name, per_seed in wrong.items():
                row = {"stored": stored, "corrupted": share, "memory": name}
                rows += [{**row, "seed": k, "wrong": bits.mean() / n} for k, bits in zip(seeds, per_seed, strict=True)]
    return pd.DataFrame(rows)


def by_sharpness(
    digits: np.ndarray, factors: Sequence[float], rs: Sequence[int], seeds: Sequence[int], count: int
) -> pd.DataFrame:
    """The share of wrong pixels after a read, 10 images stored and a tenth of the pixels flipped, by temperature.

    Args:
        digits: images [P N] of ±1.
        factors: sharpness in units of 1/√N.
        rs: projections, beside the exact kernel.
        seeds: of the trials.
        count: trials for each seed.

    Returns:
        Rows (kernel, sharpness, seed, wrong).
    """
    n, centre = digits.shape[1], digits.mean(axis=0)
    recalls = {f"exact/{f}": monte_carlo.hopfield_read(f * n**-0.5, centre) for f in factors}
    recalls |= {f"r = {r:,}/{f}": monte_carlo.cam_read(hyperbolic, r, f * n**-0.5, centre) for r in rs for f in factors}
    (answers,) = _retrievals(recalls, digits, 10, (0.1,), seeds, count)
    rows = []
    for name, per_seed in answers.items():
        kernel, factor = name.split("/")
        row = {"kernel": kernel, "sharpness": float(factor)}
        rows += [{**row, "seed": k, "wrong": bits.mean() / n} for k, bits in zip(seeds, per_seed, strict=True)]
    return pd.DataFrame(rows)


def _retrievals(recalls, digits, stored: int, shares: Sequence[float], seeds: Sequence[int], count: int) -> list[dict]:
    """`monte_carlo.retrievals` of images, for every share of flipped pixels, in one program."""
    n = digits.shape[1]
    wrongs = [round(share * n) for share in shares]
    return monte_carlo.retrievals_at(
        recalls, monte_carlo.keys_of(seeds, 4), count, n=n, memories=stored, wrongs=wrongs, pool=jnp.asarray(digits)
    )
