"""What notebooks 25 to 28 say of trained Memformers: gaps to rivals, ladders of losses, the algorithm in the weights.

gap(rows, rivals, "log_mean")                  # log(ours / theirs), seed by seed, with its 95% interval
ladder(ax, rows, rivals, "log_mean")           # losses against layers, with what they compete with
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from mnemosyne.book.studies import memformers as study
from mnemosyne.book.verdicts import Held, at_most, below, every
from mnemosyne.evaluate import interval
from mnemosyne.memformers import methods
from mnemosyne.memformers.layers import Weights
from mnemosyne.memformers.prompts import skewed

COLORS = {
    "linear Transformer": "#3a8f5c",
    "without the past": "#17a2b8",
    "CGD-like memory": "#d9822b",
    "LFOM": "#0b4f8a",
    "LFOM with GD++": "#8b5aa8",
    "GD++": "#b58fd0",
    "gradient descent": "#7a5c48",
    "momentum": "#e0a458",
    "Newton–Schulz": "#9aa63a",
    "GD++, fixed": "#d3b8e6",
    "conjugate gradients": "#c0392b",
    "best": "0.25",
    "best, with Σ⁻¹": "0.45",
    "conjugate gradients, with Σ⁻¹": "#e6a39b",
}
NAMES = {
    "best": "best fixed first-order method",
    "GD++, fixed": "GD++, best fixed numbers",
    "best, with Σ⁻¹": r"best fixed method, given $\Sigma^{-1}$",
    "conjugate gradients, with Σ⁻¹": r"conjugate gradients, given $\Sigma^{-1}$",
}
MEANS = {"log_mean": "log of the mean loss", "mean_log": "mean of log losses"}
LOWEST = float(np.log(1e-16))  # a log loss below it is zero to single precision

READ_OFF = {
    "1a": {"linear Transformer": -0.1, "CGD-like memory": -0.4, "conjugate gradients": -1.5},
    "1b": {"linear Transformer": -1.1, "CGD-like memory": -2.0, "conjugate gradients": -1.5},
    "2b": {"linear Transformer": -1.8, "LFOM": -1.8, "conjugate gradients": -6.0},
}
"""Log of the mean loss at four layers, read off the paper's figures by eye."""


def gap(ours: pd.DataFrame, theirs: pd.DataFrame, measure: str) -> tuple[float, float]:
    """log(our loss / theirs) on the same prompts, seed by seed: its mean and half of its 95% interval, or unknown."""
    if ours.empty or theirs.empty:
        return np.nan, np.nan
    ours_by, theirs_by = (rows.set_index("seed")[measure].clip(lower=LOWEST) for rows in (ours, theirs))
    both = ours_by - theirs_by
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
    """Rows of methods as rows of models, with names written out, whose layers are their steps."""
    rows = rivals[rivals.method.isin(names) & rivals.steps.isin(list(layers))]
    written = {name: NAMES.get(name, name).replace(r"$\Sigma^{-1}$", "Σ⁻¹") for name in names}
    return rows.assign(method=rows.method.map(written)).rename(columns={"method": "model", "steps": "layers"})


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


def quantiles(ax: Axes, rows: pd.DataFrame, learned: Sequence[str]) -> None:
    """Draw quantiles of log losses over prompts, a line for each model or method, the lowest mean at the bottom."""
    by = rows.groupby("model").mean(numeric_only=True).sort_values("log_mean", ascending=False)
    for place, (name, q) in enumerate(by.iterrows()):
        color = COLORS.get(name, "0.4") if name in learned else "0.55"
        ax.plot([q.q05, q.q95], [place] * 2, color=color, lw=0.9)
        ax.plot([q.q25, q.q75], [place] * 2, color=color, lw=5, solid_capstyle="butt")
        ax.plot(q.q50, place, "|", color="white", ms=6)
        ax.plot(q.log_mean, place, "D", color=color, ms=4, mfc="white")
    ax.set_yticks(range(len(by)), [NAMES.get(name, name) for name in by.index])
    ax.invert_yaxis()
    ax.set_xlabel("log loss of a prompt")


def means(rows: pd.DataFrame, by: str, measures: Sequence[str] = study.MEASURES) -> pd.DataFrame:
    """A table of 'mean ± half' over seeds: a row for each of `by`, a column for each number of layers or steps."""
    at = "layers" if "layers" in rows else "steps"
    cell = lambda values: "{:.2f} ± {:.2f}".format(*interval(values))
    found = {
        (name, MEANS[m]): {int(k): cell(g[m].clip(lower=LOWEST)) for k, g in group.groupby(at)}
        for name, group in rows.groupby(by, sort=False)
        for m in measures
    }
    table = pd.DataFrame(found).T
    table.columns.name = at
    return table.fillna("")


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


def eigenvalues(stretch: Sequence[float], draws: int, seed: int) -> Float[np.ndarray, " N"]:
    """Eigenvalues of S over many prompts."""
    of = skewed(jnp.asarray(stretch), jax.random.key(seed))
    return methods.spectra(of, study.EXAMPLES, draws, seed).values.ravel()
