"""The experiments of notebooks 25 to 28: Memformers on prompts of random linear regressions, and their rivals.

    cell = Cell("lfom", Memformer(preconditioned(), lfom(), 4))
    losses = outcome(run, cell)["test"]                      # and curves, and weights, of every training seed
    fixed, rivals = rivals_of(run)                           # their coefficients, and their losses

A loss is the squared error of the answer to one prompt. Two means of it are kept: the logarithm of the mean over
prompts, which the paper draws and which rare bad prompts decide; and the mean of logarithms, of a typical prompt.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array
from scipy.optimize import minimize

from mnemosyne.book.chapter import Run
from mnemosyne.memformers import layers, methods
from mnemosyne.memformers.layers import Memformer, Weights, init, predict
from mnemosyne.memformers.prompts import Distribution, Prompt, Tokens, draw, skewed, transformed
from mnemosyne.memformers.training import Recipe, batch, errors, train, training_batch

SKEWED = (1.0, 1.0, 0.5, 0.25, 1.0)
"""The paper's D. With x = U D z its figures agree; covariances then are D²."""

AS_TEXT = tuple(d**0.5 for d in SKEWED)
"""The reading of the paper's text, by which D is the covariance."""

ISOTROPIC = (1.0,) * 5

RATES = (0.1, 0.03, 0.01)
RATES_GDPP = (0.03, 0.01)
"""Learning rates to choose from: the one with the lowest loss on validation prompts, in the mean over seeds."""

EXAMPLES = Recipe().examples
MEASURES = ("log_mean", "mean_log")
_FLOOR = 1e-16  # a squared error that float32 cannot tell from zero


class Cell(NamedTuple):
    """One trained model of a comparison."""

    name: str
    model: Memformer
    stretch: tuple[float, ...] = SKEWED
    rates: tuple[float, ...] = RATES
    batch: int = 0  # prompts; 0: the scale's
    more_seeds: int = 1  # so many times as many training seeds as a scale has


def setting(run: Run, cell: Cell) -> tuple:
    """The arguments of `trained` for a cell at a run's scale."""
    steps = run.scale.prompt_steps
    recipe = Recipe(steps=steps, batch=cell.batch or run.scale.prompt_batch, renewal=min(100, max(1, steps // 2)))
    seeds = tuple(range(1000 * run.seed, 1000 * run.seed + cell.more_seeds * run.scale.seeds))
    return cell.model, recipe, cell.stretch, seeds, run.few(cell.rates, 1), run.scale.prompts


def outcome(run: Run, cell: Cell) -> dict:
    """`trained` of a cell, kept: what it returns."""
    return run.keep(trained, *setting(run, cell))


def weights_of(found: dict, cell: Cell) -> Weights:
    """The trained weights of a cell, [seeds …]."""
    like = jax.eval_shape(lambda: init(cell.model, jax.random.key(0), d=len(cell.stretch), examples=EXAMPLES))
    leaves = [jnp.asarray(leaf, jnp.float32) for leaf in found["weights"]]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def table_of(run: Run, cells: Sequence[Cell], which: str = "test") -> pd.DataFrame:
    """The losses of cells, trained or found: rows (model, layers, rate, seed, log_mean, …)."""
    parts = []
    for cell in cells:
        kept = outcome(run, cell)
        parts.append(kept[which].assign(model=cell.name, layers=cell.model.layers, rate=kept["rate"]))
    return pd.concat(parts, ignore_index=True)


def rivals_of(run: Run, few: int = 2) -> tuple[dict[str, dict], dict[str, pd.DataFrame]]:
    """`tuned` and `references` for each kind of inputs; references for the first few where a scale judges nothing."""
    kinds = {"x = UDz": SKEWED, "isotropic": ISOTROPIC, "covariance UDUᵀ": AS_TEXT}
    kinds, depth = dict(run.few(list(kinds.items()), 2)), 8 if run.scale.judges else 4
    fixed = {name: run.keep(tuned, stretch, depth, 2 * run.scale.prompts, run.seed) for name, stretch in kinds.items()}
    known = (run.seeds, run.scale.prompts)
    looked_at = run.few(list(kinds), few)
    found = {s: run.keep(references, kinds[s], *known, fixed[s], fixed["isotropic"]) for s in looked_at}
    return fixed, found


def keys_of(seeds: Sequence[int]) -> Array:
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def distributions(stretch: Sequence[float], seeds: Sequence[int], rotation: int = 0) -> Distribution:
    """A distribution for each seed, which has a rotation U of its own."""
    one = lambda key: skewed(jnp.asarray(stretch), jax.random.fold_in(key, rotation))
    return jax.tree.map(lambda *x: jnp.stack(x), *map(one, keys_of(seeds)))


def fresh(of: Distribution, seeds: Sequence[int], which: int, number: int) -> Prompt:
    """Prompts that no training has seen: [seeds number]; `which` is 1 for validation, 2 for the test."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1_000 + which))(keys_of(seeds))
    return jax.jit(jax.vmap(lambda d, key: batch(d, EXAMPLES, key, number)))(of, keys)


def summed_up(seeds: Sequence[int], losses: Array, **named: Any) -> list[dict]:
    """A row for each seed: both means of its losses [seeds prompts], and quantiles of their logarithms."""
    rows = []
    for seed, row in zip(seeds, np.asarray(losses, np.float64), strict=True):
        logs = np.log(np.maximum(row, _FLOOR))
        quantiles = {f"q{int(100 * q):02d}": np.quantile(logs, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
        rows.append({**named, "seed": seed, "log_mean": np.log(row.mean()), "mean_log": logs.mean(), **quantiles})
    return rows


def trained(
    model: Memformer,
    recipe: Recipe,
    stretch: Sequence[float],
    seeds: Sequence[int],
    rates: Sequence[float],
    prompts: int,
) -> dict:
    """Train from every seed at every rate; measure at the rate that is best on validation prompts.

    Returns:
        Plain values: `test`, `training` (the prompts that were trained on last) and `validation` as tables, the
        `curve` of the chosen rate, the `rate`, and its `weights`, leaves in the order of the tree, [seeds …].
    """
    of = distributions(stretch, seeds)
    weights, curves = train(model, recipe, of, keys_of(seeds), jnp.asarray(rates))
    last = jax.jit(jax.vmap(lambda w, p: errors(model, w, p)[:, -1]))
    validation = fresh(of, seeds, 1, prompts)
    chosen = [np.asarray(last(at(weights, i), validation)).mean(1) for i in range(len(rates))]
    scores = [np.log(np.where(np.isfinite(c), c, np.inf)).mean() for c in chosen]
    best = int(np.argmin(scores))
    weights, curve = at(weights, best), np.asarray(curves)[best]
    trained_on = jax.jit(jax.vmap(partial(training_batch, recipe, chunk=recipe.steps // recipe.renewal - 1)))
    at_steps = recipe.renewal * np.arange(curve.shape[1])
    return {
        "test": pd.DataFrame(summed_up(seeds, last(weights, fresh(of, seeds, 2, prompts)))),
        "training": pd.DataFrame(summed_up(seeds, last(weights, trained_on(of, keys_of(seeds))))),
        "validation": pd.DataFrame({"rate": rates, "log_loss": scores}),
        "curve": pd.DataFrame(
            [
                (s, int(t), float(x))
                for s, row in zip(seeds, curve, strict=True)
                for t, x in zip(at_steps, row, strict=True)
            ],
            columns=["seed", "step", "loss"],
        ),
        "rate": float(rates[best]),
        "weights": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(weights)],
    }


def at(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], tree)


def measured(
    model: Memformer, weights: Weights, stretch: Sequence[float], rotation: int, seeds: Sequence[int], prompts: int
) -> pd.DataFrame:
    """What trained weights [seeds …] are worth on prompts of another covariance: rows as those of `trained`."""
    losses = jax.jit(jax.vmap(lambda w, p: errors(model, w, p)[:, -1]))
    found = losses(weights, fresh(distributions(stretch, seeds, rotation), seeds, 2, prompts))
    return pd.DataFrame(summed_up(seeds, found))


# Weights that are given, and single prompts ---------------------------------------------------------------------------


def one_prompt(stretch: Sequence[float], seed: int, number: int = 0) -> Prompt:
    """A prompt of a seed's distribution, and its answer."""
    of = jax.tree.map(lambda x: x[0], distributions(stretch, (seed,)))
    return draw(of, EXAMPLES, jax.random.fold_in(jax.random.key(seed), 77 + number))


def constructed(number: int, k: int, seed: int) -> pd.DataFrame:
    """Weights that are given, not trained, beside the methods: the largest difference of answers over the largest.

    Gradient descent, momentum and preconditioned descent, on a number of prompts of two distributions.
    """
    rng = np.random.default_rng(seed)
    rates, gamma = rng.uniform(0.3, 1.0, k), rng.uniform(0.0, 0.8, k)
    A = np.eye(5) + 0.1 * rng.standard_normal((5, 5))
    given = lambda x: jnp.asarray(x, jnp.float32)
    steps, none = layers.steps(), layers.none()
    kinds = {
        "gradient descent": (
            Memformer(steps, none, k),
            {"attention": {"a": given(rates)}, "memory": {}},
            lambda t: methods.first_order(t, methods.descent(rates)),
        ),
        "momentum": (
            Memformer(steps, layers.cgd_like(), k),
            {"attention": {"a": jnp.ones(k)}, "memory": {"alpha": given(rates), "gamma": given(gamma)}},
            lambda t: methods.first_order(t, methods.momentum(rates, gamma)),
        ),
        "preconditioned descent": (
            Memformer(layers.preconditioned(), none, k, distinct=1),
            {"attention": {"A": given(A @ A.T)[None]}, "memory": {}},
            lambda t: methods.first_order(transformed(t, given(A).T), methods.descent([1.0] * k)),
        ),
    }
    rows = []
    for stretch, label in ((SKEWED, "x = UDz"), (ISOTROPIC, "isotropic")):
        tokens = fresh(distributions(stretch, (seed,)), (seed,), 3, number).tokens
        tokens = jax.tree.map(lambda x: x[0], tokens)
        for name, (model, weights, method) in kinds.items():
            ours = jax.vmap(lambda t, m=model, w=weights: predict(m, w, t))(tokens)
            theirs = jax.vmap(method)(tokens)
            apart = float(jnp.abs(ours - theirs).max() / jnp.abs(theirs).max())
            rows.append({"prompts": label, "method": name, "largest difference": apart})
    return pd.DataFrame(rows)


# What they compete with -----------------------------------------------------------------------------------------------


def tuned(stretch: Sequence[float], depth: int, draws: int, seed: int) -> dict:
    """The best fixed coefficients of each kind of method for each number of steps, by expected loss.

    Returns:
        {method: {"loss": log of the expected loss by step, "gains": Γ by step}}, with `best` for the best of all
        linear first-order methods, whose gains are those of descent at the inverse roots of its polynomial.
    """
    of = methods.spectra(skewed(jnp.asarray(stretch), jax.random.key(seed)), EXAMPLES, draws, seed)
    score = lambda gains: np.log(methods.expected_loss(methods.residuals(gains)[-1], of))
    top = float(of.values.max())
    kinds = {
        "gradient descent": (lambda p, k: methods.descent([np.exp(p[0])] * k), (-0.5,)),
        "momentum": (
            lambda p, k: methods.momentum([np.exp(p[0])] * k, [1 / (1 + np.exp(-p[1]))] * k),
            (-0.5, -1.0),
        ),
        "Chebyshev": (
            lambda p, k: methods.chebyshev(np.exp(p[0]), np.exp(p[0]) + np.exp(p[1]), k),
            (np.log(top / 20), np.log(top / 2)),
        ),
    }
    found = {}
    for name, (make, start) in kinds.items():
        best = [
            minimize(lambda p, k=k, make=make: score(make(p, k)), start, method="Nelder-Mead")
            for k in range(1, depth + 1)
        ]
        gains = [np.asarray(make(b.x, k)).tolist() for k, b in enumerate(best, start=1)]
        found[name] = {"loss": [float(b.fun) for b in best], "gains": gains}
    start, found["GD++"] = (-0.5, -2.0), {"loss": [], "numbers": []}
    for k in range(1, depth + 1):
        left = lambda p, k=k: partial(left_by_gdpp, *np.exp(p), k)
        best = minimize(lambda p, left=left: np.log(methods.expected_loss(left(p), of)), start, method="Nelder-Mead")
        start = best.x
        found["GD++"]["loss"].append(float(best.fun))
        found["GD++"]["numbers"].append(np.exp(best.x).tolist())
    polynomials = methods.best_polynomials(of, depth)[1:]
    roots = [p.roots() for p in polynomials]
    found["best"] = {
        "loss": [float(np.log(methods.expected_loss(p, of))) for p in polynomials],
        "gains": [np.diag(1 / np.sort(r.real)[::-1]).tolist() for r in roots],
        "largest imaginary part": float(max(np.abs(r.imag).max() for r in roots)),
        "smallest root": float(min(r.real.min() for r in roots)),
    }
    return found


def left_by_gdpp(rate: float, shrink: float, k: int, values: np.ndarray) -> np.ndarray:
    """What k steps of GD++ with fixed numbers leave at eigenvalues: p ← p (1 − η λ), λ ← λ (1 − β λ)²."""
    left = np.ones_like(values)
    for _ in range(k):
        left, values = left * (1 - rate * values), values * (1 - shrink * values) ** 2
    return left


def references(
    stretch: Sequence[float], seeds: Sequence[int], prompts: int, coefficients: dict, isotropic: dict
) -> pd.DataFrame:
    """Losses of every reference on the test prompts of every seed: rows (method, steps, seed, log_mean, …).

    Those with fixed coefficients by their polynomials, in float64; the others step by step. The two methods "with Σ⁻¹"
    are given the covariance, which a preconditioner can learn: they see inputs that it has made isotropic.

    Args:
        stretch: D.
        seeds: of the test prompts.
        prompts: for each seed.
        coefficients: of `tuned` for this D.
        isotropic: of `tuned` for inputs without a preferred direction.
    """
    of = distributions(stretch, seeds)
    test, depth = fresh(of, seeds, 2, prompts), len(coefficients["best"]["gains"])
    white = jax.vmap(jax.vmap(transformed, (0, None)))(test.tokens, jnp.linalg.inv(of.root))
    known = {"best, with Σ⁻¹": isotropic["best"]}
    lefts = lambda by: [methods.residuals(np.asarray(g))[-1] for g in by["gains"]]
    numbers = enumerate(coefficients["GD++"]["numbers"], start=1)
    found = {name: _fixed(test.tokens, lefts(by)) for name, by in coefficients.items() if "gains" in by}
    found["GD++, fixed"] = _fixed(test.tokens, [partial(left_by_gdpp, *pair, k) for k, pair in numbers])
    found |= {name: _fixed(white, lefts(by)) for name, by in known.items()}
    adaptive = {"conjugate gradients": methods.conjugate_gradients, "Newton–Schulz": methods.newton_schulz}
    for name, method in adaptive.items():
        every = jax.jit(jax.vmap(jax.vmap(lambda t, m=method: m(t, depth))))
        found[name] = np.asarray(every(test.tokens) - test.answer[..., None]) ** 2
        if name == "conjugate gradients":
            found[f"{name}, with Σ⁻¹"] = np.asarray(every(white) - test.answer[..., None]) ** 2
    rows = []
    for name, losses in found.items():
        for k in range(depth + 1):
            rows += summed_up(seeds, losses[..., k], method=name, steps=k)
    return pd.DataFrame(rows)


def _fixed(tokens: Tokens, lefts: Sequence[Callable]) -> np.ndarray:
    """Squared errors of a method that leaves p(λ) after 1, 2, … steps, from none on: [seeds prompts steps + 1]."""
    x, y = np.asarray(tokens.x, np.float64), np.asarray(tokens.y, np.float64)
    known, n = x[..., :-1], x.shape[-1] - 1
    values, v = np.linalg.eigh(known @ np.swapaxes(known, -1, -2) / n)
    turned = lambda vectors: np.einsum("...ia,...i->...a", v, vectors)
    w = turned(np.einsum("...in,...n->...i", known, y[..., :-1]) / n) / values
    left = [np.ones_like(values), *(p(values) for p in lefts)]
    return np.stack([(turned(x[..., -1]) * w * p).sum(-1) ** 2 for p in left], -1)


def against_on_batch(recipe: Recipe, stretch: Sequence[float], seeds: Sequence[int], k: int) -> pd.DataFrame:
    """Conjugate gradients on the prompts that a model of these seeds was trained on last: rows as of `trained`."""
    of, chunk = distributions(stretch, seeds), recipe.steps // recipe.renewal - 1
    prompts = jax.jit(jax.vmap(partial(training_batch, recipe, chunk=chunk)))(of, keys_of(seeds))
    return pd.DataFrame(summed_up(seeds, _after_conjugate_gradients(prompts, k)))


def conjugate(stretch: Sequence[float], rotation: int, seeds: Sequence[int], prompts: int, k: int) -> pd.DataFrame:
    """Conjugate gradients on the prompts of `measured`."""
    test = fresh(distributions(stretch, seeds, rotation), seeds, 2, prompts)
    return pd.DataFrame(summed_up(seeds, _after_conjugate_gradients(test, k)))


def _after_conjugate_gradients(prompts: Prompt, k: int) -> Array:
    answers = jax.jit(jax.vmap(jax.vmap(lambda t: methods.conjugate_gradients(t, k)[-1])))(prompts.tokens)
    return (answers - prompts.answer) ** 2
