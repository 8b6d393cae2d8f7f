"""Running means of gradients at several time scales, and what small networks see of them (Metz et al. 2022, App. A).

    m_k ← β_k m_k + (1 − β_k) g,      v_k ← β_k v_k + (1 − β_k) g²

and, of a matrix, the means of g² over its rows and over its columns, as Adafactor keeps them (Shazeer and Stern
2018). None is bias corrected. Every learned optimizer of this kind is a choice of the β's:

    Features(momenta=(0.9, 0.99, 0.999), second=(0.999,), factored=(0.9, 0.99, 0.999))     # small_fc's
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.optimizer.packing import cut, gathered, lay
from mnemosyne.optimizer.velo import axes
from mnemosyne.types import Params, Theta

TIMES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
"""Time scales that the count of steps is seen at."""


class Features(NamedTuple):
    """Decays per step of the accumulators that a network sees."""

    momenta: tuple[float, ...] = (0.9, 0.99, 0.999)
    second: tuple[float, ...] = (0.999,)  # as many as momenta, one for all of them, or none
    factored: tuple[float, ...] = (0.9, 0.99, 0.999)  # with as many momenta these are preconditioned too

    def seen(self) -> int:
        """How many inputs of a parameter these make, without those of time."""
        m, v, f = map(len, self)
        return 2 + m + v + m * (v > 0) + v + 5 * f + f * (m == f)


def feature_names(features: Features) -> list[str]:
    """What each of the inputs is, in the order of `seen_of`."""
    m, v, f = features
    each = lambda what, decays: [what.format(beta) for beta in decays]
    by_root = v if len(v) != 1 else v * len(m)
    ratios = [f"m {a} / √v {b}" for a, b in zip(m, by_root, strict=True)] if v and m else []
    sides = [*each("row {}", f), *each("column {}", f)]
    found = ["gradient", "parameter", *each("m {}", m), *each("v {}", v), *ratios, *each("1 / √v {}", v)]
    found += [*each("g / √v̂ {}", f), *sides, *(f"1 / √{side}" for side in sides)]
    return found + ([f"m {a} / √v̂ {b}" for a, b in zip(m, f, strict=True)] if len(m) == len(f) else [])


class Accumulators(NamedTuple):
    """What is remembered of gradients. Each of m and v is a tree like the parameters', for each decay one."""

    m: tuple[Params, ...]  # float32
    v: tuple[Params, ...]  # float32
    row: Float[Array, "r f"]  # means of g² over the largest axis, all tensors end to end; of vectors g² itself
    col: Float[Array, "c f"]  # means over the second largest axis; of vectors nothing


def empty(params: Params, features: Features) -> Accumulators:
    """Accumulators that have seen no gradient."""
    m, v, f = features
    trees = lambda decays: tuple(jax.tree.map(jnp.zeros_like, params) for _ in decays)
    sides = [sides_of(jnp.shape(p)) for p in jax.tree.leaves(params)]
    rows, cols = (sum(math.prod(side[i]) for side in sides) for i in (0, 1))
    sums = (jnp.zeros((n, len(f)), jnp.float32) for n in (rows, cols))
    return Accumulators(trees(m), trees(v), *sums)


def apart(kept: Accumulators, tree: Any, shapes: Sequence[tuple]) -> list[Accumulators]:
    """The accumulators of each tensor."""
    m, v = (zip(*map(tree.flatten_up_to, trees), strict=True) if trees else [()] * len(shapes) for trees in kept[:2])
    rows, cols = zip(*map(sides_of, shapes), strict=True)
    return [Accumulators(*each) for each in zip(m, v, cut(kept.row, rows), cut(kept.col, cols), strict=True)]


def together(each: list[Accumulators], tree: Any, shapes: Sequence[tuple]) -> Accumulators:
    """Undo `apart`."""
    m, v, row, col = zip(*each, strict=True)
    rows, cols = zip(*map(sides_of, shapes), strict=True)
    trees = lambda kept: tuple(map(tree.unflatten, zip(*kept, strict=True)))
    laid = (lay(list(map(gathered, side)), where) for side, where in ((row, rows), (col, cols)))
    return Accumulators(trees(m), trees(v), *laid)


def sides_of(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a tensor's row and column, axes of the means left at one; of a vector its own, and an empty one."""
    if len(shape) < 2:
        return shape, (0,)
    largest, second = axes(shape)
    without = lambda axis: (*shape[:axis], 1, *shape[axis + 1 :])
    return without(largest), without(second)


def accumulate(kept: Accumulators, g: Float[Array, "*p"], decays: Theta) -> Accumulators:
    """Add one tensor's gradient; decays are {"momenta": [m], "second": [v], "factored": [f]}."""
    blend = lambda old, new, beta: beta * old + (1.0 - beta) * new
    m = tuple(blend(old, g, decays["momenta"][k]) for k, old in enumerate(kept.m))
    v = tuple(blend(old, g * g, decays["second"][k]) for k, old in enumerate(kept.v))
    square = g * g + 1e-30
    over = lambda axis: jnp.sum(square, axis, keepdims=True) / max(g.shape[axis], 1)
    row, col = map(over, axes(g.shape)) if g.ndim > 1 else (square, jnp.zeros(0, jnp.float32))
    along = lambda x: decays["factored"].reshape(*(1,) * x.ndim, -1)
    sides = (blend(old, new[..., None], along(new)) for old, new in ((kept.row, row), (kept.col, col)))
    return Accumulators(m, v, *sides)


def seen_of(p: Float[Array, "*p"], g: Float[Array, "*p"], kept: Accumulators) -> list[Array]:
    """What the small networks see of a tensor's parameters, before it is normalised.

        g, p, m, v, m/√v, 1/√v, g/√v̂, row, col, 1/√row, 1/√col, m/√v̂     with v̂ = row col / mean(row)

    Returns:
        Arrays that broadcast to the tensor's shape: those of a row have length one along it, and are its own.
    """
    root = [jax.lax.rsqrt(v + 1e-6) for v in kept.v]
    by_root = root * (len(kept.m) if len(root) == 1 else 1)
    ratios = [m * r for m, r in zip(kept.m, by_root, strict=True)] if root else []
    last = lambda x: [x[..., k] for k in range(x.shape[-1])]
    if g.ndim > 1:
        row, col = kept.row, kept.col
        second = axes(g.shape)[1]
        mean = jnp.sum(row, second, keepdims=True) / max(g.shape[second], 1)
        floored = lambda x: jax.lax.rsqrt(jnp.maximum(x, 1e-9))
        whiten = of_gradient = [
            r * c for r, c in zip(last(floored(row / (mean + 1e-9))), last(floored(col)), strict=True)
        ]
    else:
        row = col = kept.row
        whiten = last(jax.lax.rsqrt(row + 1e-6))
        of_gradient = last(jax.lax.rsqrt(jnp.maximum(row + 1e-9, 1e-9)))
    sides = [x for side in (row, col) for x in last(side)]
    inverse = [jax.lax.rsqrt(x + 1e-8) for x in sides]
    whitened = [m * w for m, w in zip(kept.m, whiten, strict=True)] if len(kept.m) == len(whiten) else []
    return [g, p, *kept.m, *kept.v, *ratios, *root, *(g * w for w in of_gradient), *sides, *inverse, *whitened]
