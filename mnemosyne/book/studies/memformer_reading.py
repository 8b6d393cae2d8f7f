"""What notebooks 25 to 28 say of trained Memformers: gaps to rivals, ladders of losses, the algorithm in the weights.

gap(rows, rivals, "log_mean")                  # log(ours / theirs), seed by seed, with its 95% interval
ladder(ax, rows, rivals, "log_mean")           # losses against layers, with what they compete with
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from numpy.polynomial import Polynomial

from mnemosyne.book.studies import memformers as study
from mnemosyne.book.verdicts import Held, at_most, below, every
from mnemosyne.evaluate import interval
from mnemosyne.memformers import layers, methods
from mnemosyne.memformers.layers import Memformer, Weights, predict
from mnemosyne.memformers.prompts import Prompt, Tokens, draw, skewed
from mnemosyne.memory import hyperbolic, orthogonal_projections
from mnemosyne.memory.compact import CAMState, write
from mnemosyne.types import Scalar

COLORS = {
    "linear Transformer": "#3a8f5c",
    "without the past": "#17a2b8",
    "CGD-like memory": "#d9822b",
    "LFOM": "#0b4f8a",
    "LFOM with GD++": "#8b5aa8",
    "GD++": "#b58fd0",
    "conjugate gradients": "#c0392b",
    "best": "0.45",
    "best, with Σ⁻¹": "0.45",
    "conjugate gradients, with Σ⁻¹": "#e6a39b",
}
NAMES = {
    "best": "best fixed first-order method",
    "best, with Σ⁻¹": r"best fixed method, given $\Sigma^{-1}$",
    "conjugate gradients, with Σ⁻¹": r"conjugate gradients, given $\Sigma^{-1}$",
}
MEANS = {"log_mean": "log of the mean loss", "mean_log": "mean of log losses"}


READ_OFF = {
    "1a": {"linear Transformer": -0.1, "CGD-like memory": -0.4, "conjugate gradients": -1.5},
    "1b": {"linear Transformer": -1.1, "CGD-like memory": -2.0, "conjugate gradients": -1.5},
    "2b": {"linear Transformer": -1.8, "LFOM": -1.8, "conjugate gradients": -6.0},
}
"""Log of the mean loss at four layers, read off the paper's figures by eye."""


def gap(ours: pd.DataFrame, theirs: pd.DataFrame, measure: str) -> tuple[float, float]:
    """log(our loss / theirs) on the same prompts, seed by seed: mean and half-width of its 95% interval."""
    both = ours.set_index("seed")[measure] - theirs.set_index("seed")[measure]
    return interval(both.loc[ours.seed].to_numpy())


def gaps(rows: pd.DataFrame, theirs: pd.DataFrame, measure: str) -> dict[int, tuple[float, float]]:
    """`gap` for each number of layers; theirs has a method's rows by steps, or another model's by layers."""
    at = "steps" if "steps" in theirs else "layers"
    return {
        int(k): gap(group, theirs[theirs[at] == k], measure)
        for k, group in rows.groupby("layers")
        if (theirs[at] == k).any()
    }


def all_below(rows: pd.DataFrame, theirs: pd.DataFrame, measures: Sequence[str], factor: float = 1.0) -> Held:
    """Whether our loss is below a factor times theirs at every number of layers, by all these means."""
    return every(below(g, np.log(factor)) for m in measures for g in gaps(rows, theirs, m).values())


def all_at_most(rows: pd.DataFrame, theirs: pd.DataFrame, measures: Sequence[str], factor: float) -> Held:
    """The same, or as large."""
    return every(at_most(g, np.log(factor)) for m in measures for g in gaps(rows, theirs, m).values())


def told(ratios: dict[int, tuple[float, float]]) -> str:
    """'0.93 [0.90, 0.97]' for each number of layers."""
    return "; ".join(
        f"{k}: {np.exp(mean):.3g} [{np.exp(mean - half):.3g}, {np.exp(mean + half):.3g}]"
        for k, (mean, half) in ratios.items()
    )


def ladder(ax: Axes, rows: pd.DataFrame, rivals: pd.DataFrame, measure: str, beside: Sequence[str]) -> None:
    """Draw losses against layers: models with their 95% intervals over seeds, and methods beside them as lines."""
    last = rows.layers.max()
    for name in beside:
        line = rivals[(rivals.method == name) & (rivals.steps <= last)].groupby("steps")[measure].mean()
        style = "-" if name == "conjugate gradients" else ":" if "Σ" in name else "--"
        ax.plot(line.index, line, style, color=COLORS[name], lw=1.1, label=NAMES.get(name, name), zorder=1)
    for name, group in rows.groupby("model", sort=False):
        at = [(k, *interval(g[measure])) for k, g in group.groupby("layers")]
        k, mean, half = np.array(at).T
        ax.errorbar(k, mean, half, color=COLORS.get(name), marker="o", ms=3.5, capsize=2, label=name, zorder=2)
    ax.set(xlabel="layers, or steps", ylabel=MEANS[measure])
    ax.set_xticks(range(0, int(last) + 1, 1 if last <= 5 else 2))


def crosses(ax: Axes, panel: str) -> None:
    """Draw what one reads off the paper's figure, at four layers."""
    for name, value in READ_OFF[panel].items():
        ax.plot(4.12, value, "x", color=COLORS[name], ms=6)
    ax.plot([], [], "x", color="0.3", label="read off the paper's figure")


def as_models(rivals: pd.DataFrame, names: Sequence[str], layers: Sequence[int]) -> pd.DataFrame:
    """Rows of methods as rows of models, whose layers are their steps."""
    rows = rivals[rivals.method.isin(names) & rivals.steps.isin(list(layers))]
    return rows.rename(columns={"method": "model", "steps": "layers"})


def quantile_boxes(ax: Axes, rows: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """Draw quantiles over prompts of log losses at each number of layers, ours beside theirs, in the mean over seeds.

    A diamond is the logarithm of the mean loss.
    """
    at = "steps" if "steps" in theirs else "layers"
    names = (rows.model.iloc[0], theirs[("model" if "model" in theirs else "method")].iloc[0])
    for shift, name, group, by in ((-0.17, names[0], rows, "layers"), (0.17, names[1], theirs, at)):
        color = COLORS.get(name, "0.4")
        for k, g in group[group[by].isin(rows.layers)].groupby(by):
            q = g.mean(numeric_only=True)
            ax.plot([k + shift] * 2, [q.q05, q.q95], color=color, lw=0.9)
            ax.plot([k + shift] * 2, [q.q25, q.q75], color=color, lw=5, solid_capstyle="butt")
            ax.plot(k + shift, q.q50, "_", color="white", ms=6)
            ax.plot(k + shift, q.log_mean, "D", color=color, ms=4, mfc="white")
    ax.set(xlabel="layers, or steps", ylabel="log loss of a prompt")
    ax.set_xticks(sorted(rows.layers.unique()))


def means(rows: pd.DataFrame, by: str, measures: Sequence[str] = study.MEASURES) -> pd.DataFrame:
    """A table of 'mean ± half' over seeds: a row for each of `by`, a column for each number of layers or steps."""
    at = "layers" if "layers" in rows else "steps"
    cell = lambda values: "{:.2f} ± {:.2f}".format(*interval(values))
    found = {
        (name, MEANS[m]): {int(k): cell(g[m]) for k, g in group.groupby(at)}
        for name, group in rows.groupby(by, sort=False)
        for m in measures
    }
    table = pd.DataFrame(found).T
    table.columns.name = at
    return table


# The algorithm in the weights -----------------------------------------------------------------------------------------


def gains_of(weights: Weights) -> list[Float[np.ndarray, "k k"]]:
    """Γ_{lj} of trained `steps`, for each seed: step lengths a_j, with or without α and γ."""
    a = np.asarray(weights["attention"]["a"], np.float64)
    memory = {name: np.asarray(w, np.float64) for name, w in weights["memory"].items()}
    every_gain = []
    for s, rates in enumerate(a):
        alpha, gamma = (memory[n][s] if n in memory else fallback for n, fallback in _plain(len(rates)))
        every_gain.append(np.asarray(methods.momentum(alpha, gamma), np.float64) * rates[None, :])
    return every_gain


def _plain(k: int) -> list[tuple[str, np.ndarray]]:
    return [("alpha", np.ones(k)), ("gamma", np.zeros(k))]


def preconditioners(weights: Weights, stretch: Sequence[float], seeds: Sequence[int]) -> pd.DataFrame:
    """What trained A_l are beside Σ⁻¹: c = tr(A_l Σ)/d, and how far A_l Σ is from c · I, in Frobenius norm."""
    root = np.asarray(study.distributions(stretch, seeds).root, np.float64)
    rows = []
    for seed, sigma, A in zip(
        seeds, root @ root.transpose(0, 2, 1), np.asarray(weights["attention"]["A"]), strict=True
    ):
        for layer, a in enumerate(A, start=1):
            product = a @ sigma
            c = np.trace(product) / len(sigma)
            apart = np.linalg.norm(product - c * np.eye(len(sigma))) / np.linalg.norm(product)
            rows.append({"seed": seed, "layer": layer, "c": c, "apart": apart})
    return pd.DataFrame(rows)


def best_of(stretch: Sequence[float], k: int, draws: int, seed: int) -> Polynomial:
    """The best polynomial of k steps of a distribution."""
    of = methods.spectra(skewed(jnp.asarray(stretch), jax.random.key(seed)), study.EXAMPLES, draws, seed)
    return methods.best_polynomials(of, k)[-1]


def eigenvalues(stretch: Sequence[float], draws: int, seed: int) -> Float[np.ndarray, " N"]:
    """Eigenvalues of S over many prompts."""
    of = skewed(jnp.asarray(stretch), jax.random.key(seed))
    return methods.spectra(of, study.EXAMPLES, draws, seed).values.ravel()


# Constructed weights, and the other memory ----------------------------------------------------------------------------


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
            lambda t: methods.first_order(Tokens(given(A).T @ t.x, t.y), methods.descent([1.0] * k)),
        ),
    }
    rows = []
    for stretch, label in ((study.SKEWED, "x = UDz"), (study.ISOTROPIC, "isotropic")):
        tokens = study.fresh(study.distributions(stretch, (seed,)), (seed,), 3, number).tokens
        tokens = jax.tree.map(lambda x: x[0], tokens)
        for name, (model, weights, method) in kinds.items():
            ours = jax.vmap(lambda t, m=model, w=weights: predict(m, w, t))(tokens)
            theirs = jax.vmap(method)(tokens)
            apart = float(jnp.abs(ours - theirs).max() / jnp.abs(theirs).max())
            rows.append({"prompts": label, "method": name, "largest difference": apart})
    return pd.DataFrame(rows)


class Registers(NamedTuple):
    """Two memories that were shown the same attention."""

    apart: float  # largest difference of the CGD-like register and the CAM's N, over the largest entry
    bytes: pd.DataFrame  # of three memories after each layer


def side_by_side(tokens: Tokens, discount: Scalar | float, k: int) -> Registers:
    """Show what k layers attended to, to a CGD-like register with γ = e^{−λ} and to a CAM with one constant feature."""
    memory, lfom, attention = layers.cgd_like(), layers.lfom(), layers.steps()
    gamma = jnp.full(k, jnp.exp(-discount))
    weights = {"alpha": jnp.full(k, 0.5), "gamma": gamma}
    zeros = Tokens(None, jnp.zeros_like(tokens.y))
    gains = lfom.init(k, zeros)
    cam = CAMState(jnp.zeros((tokens.y.size, 1)), jnp.zeros(1))
    register, kept, now, apart, rows = memory.state(zeros), lfom.state(zeros), tokens, 0.0, []
    size = lambda state: sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    for i in range(k):
        written = attention.write({"a": 1.0}, now)
        cam = write(cam, jnp.ones(1), written.y, discount)
        kept, _ = lfom.step(gains, i, kept, written)
        register, added = memory.step(weights, i, register, written)
        now = Tokens(now.x, now.y + added.y / (now.y.size - 1))
        apart = max(apart, float(jnp.abs(register.y - cam.N[:, 0]).max() / jnp.abs(cam.N).max()))
        rows.append({"layer": i + 1, "CAM": size(cam), "CGD-like": size(register), "LFOM": size(kept)})
    return Registers(apart, pd.DataFrame(rows))


def gradients_of(tokens: Tokens, rate: float, steps: int) -> Float[Array, "steps d"]:
    """Gradients along gradient descent on one prompt."""
    S, b = methods.normal_equations(tokens)
    w, found = jnp.zeros(len(b)), []
    for _ in range(steps):
        found.append(S @ w - b)
        w = w - rate * found[-1]
    return jnp.stack(found)


def attended(
    gradients: Float[Array, "steps d"], discount: float, projections: int, key: Array
) -> Float[Array, " steps"]:
    """The share of each past gradient in what a CAM reads with the last one for its query.

    Queries and keys are directions of gradients, scaled to √d, so that no learned weight is in it.
    """
    unit = gradients / jnp.linalg.norm(gradients, axis=1, keepdims=True)
    keys = unit * gradients.shape[1] ** 0.25
    omega = orthogonal_projections(key, projections, gradients.shape[1])
    phi_q, phi_k = hyperbolic.query(keys[-1:], omega)[0], hyperbolic.features(keys, omega)
    age = jnp.arange(len(gradients))[::-1]
    share = phi_k @ phi_q * jnp.exp(-discount * age)
    return share / share.sum()


def one_prompt(stretch: Sequence[float], seed: int, number: int = 0) -> Prompt:
    """A prompt of a seed's distribution, and its answer."""
    of = jax.tree.map(lambda x: x[0], study.distributions(stretch, (seed,)))
    return draw(of, study.EXAMPLES, jax.random.fold_in(jax.random.key(seed), 77 + number))
