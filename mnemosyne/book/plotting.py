"""Rows → axes. Nothing is computed here but means and intervals over seeds."""

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mnemosyne.evaluate import interval
from mnemosyne.optimizer.registry import OPTIMIZERS

COLORS = {entry.label: entry.color for entry in OPTIMIZERS.values()} | {
    "Mnemosyne hybrid": "#7b5ea7",
    "Mnemosyne, even part out": "#5a7d2a",
    "Mnemosyne slim, end known": "#3f7a1f",
    "Lion": "#b5651d",
    "Adam": "#d9822b",
    "AdamW": "#e8a15c",
    "Adafactor": "#5e8c31",
    "Adam, one setting": "#f2c48d",
    "NAdamW": "#c0392b",
    "NAdamW, one setting": "#e6a39b",
    "Adam, decayed": "#b3651a",
    "Adam, warm-up and cosine, one setting": "#c9a227",
    "AdamW, warm-up and cosine": "#8a5a44",
    "Prodigy": "#16697a",
    "Prodigy, decayed": "#489fb5",
    "D-Adapt AdamW": "#6a4c93",
    "DoWG": "#a44a3f",
    "COCOB": "#7f5539",
    "Mechanic Adam": "#bc4b51",
    "MoMo Adam": "#5b8e7d",
    "schedule-free AdamW": "#8d99ae",
    "nn_adam, CAM": "#2f6f4f",
    "RMSProp": "#3a8f5c",
    "SGD": "#8b5aa8",
    "FAVOR+": "#d9822b",
    "hyperbolic": "#3a8f5c",
    "FAVOR++": "#0b4f8a",
    "hyperbolic FAVOR++": "#8b5aa8",
}


def number(x: float) -> str:
    """'0.05', '20', and for what is very large or small a power of ten."""
    digits, power = f"{x:.2e}".split("e")
    if -4 < int(power) < 4 or x == 0:
        return f"{x:.4g}"
    times = "" if float(digits) == 1 else rf"{float(digits):g} \times "
    return f"${times}10^{{{int(power)}}}$"


def log_losses(ax: Axes) -> None:
    """Make the y-axis logarithmic, in plain numbers; the less it spans, the more ticks are labelled."""

    def label(x: float, _) -> str:
        low, high = ax.get_ylim()
        if high < 4 * low:
            return number(x)
        digits = ("2.0", "3.0", "5.0") if high < 30 * low else ("2.0", "5.0") if high < 1000 * low else ()
        return number(x) if f"{x:.1e}"[:3] in digits else ""

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda x, _: number(x))
    ax.yaxis.set_minor_formatter(label)


_LEARNED = ("Mnemosyne", "LSTM", "S4", "VeLO", "small_fc", "nn_adam")
RATELESS = (*_LEARNED, "Prodigy", "D-Adapt", "DoWG", "COCOB", "Mechanic", "MoMo")
"""How names of optimizers begin that have no learning rate."""


def label_of(optimizer: str, rate: float) -> str:
    """'Adam 3e-2'; an optimizer without a rate is named alone."""
    if optimizer.startswith(RATELESS):
        return optimizer
    return f"{optimizer} {rate:g}" if rate >= 1 else f"{optimizer} {rate:.0e}".replace("e-0", "e-")


def curves(ax: Axes, rows: pd.DataFrame, column: str, by: str | None = None) -> None:
    """Draw mean ± 95% interval over seeds of `column` against the step, a line per optimizer.

    The line of an optimizer that ran at several rates is its lower `envelope` over them; each rate is a faint line.

    Args:
        ax: to draw on.
        rows: of `evaluate.train`, of one task.
        column: to draw.
        by: what the best rate has the least of; `column` by default.
    """
    for optimizer, group in rows.groupby("optimizer", sort=False):
        values = envelope(group, column, by or column)
        mean, half = np.array([interval(v) for v in values.to_numpy()]).T
        front = optimizer.startswith("Mnemosyne")
        style = {"color": COLORS.get(optimizer), "zorder": 3 if front else 2, "lw": 1.9 if front else 1.2}
        count = group.rate.nunique()
        label = label_of(optimizer, group.rate.iloc[0]) if count == 1 else f"{optimizer}, best rate at each step"
        ax.plot(values.index, mean, label=label, **style)
        low = np.maximum(mean - half, 0.2 * mean)  # the axis is logarithmic: an interval cannot reach zero
        ax.fill_between(values.index, low, mean + half, color=style["color"], alpha=0.15, lw=0)
        if count > 1:
            _each_rate(ax, group, column, style["color"])
    if rows.groupby("optimizer").rate.nunique().max() > 1:
        ax.plot([], [], color="0.6", lw=0.6, label="thin: one rate each")
    log_losses(ax)
    ax.set_xlabel("step")


def envelope(rows: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    """One optimizer's `column` at each step, at the rate that is best at this very step: [step seed].

    The best rate is that with the lowest mean of `by` over seeds. A rate with a run that is not finite is not the best.
    """
    means = rows.assign(of=rows[by].where(np.isfinite(rows[by]), np.inf)).groupby(["step", "rate"]).of.mean()
    best = means.groupby("step").idxmin()
    return rows.pivot(index=["step", "rate"], columns="seed", values=column).loc[best].droplevel("rate")


def _each_rate(ax: Axes, rows: pd.DataFrame, column: str, color: str | None) -> None:
    """Draw the mean over seeds at every rate, faintly; bad rates do not stretch the axes."""
    means = rows.assign(of=rows[column].where(np.isfinite(rows[column]))).groupby(["rate", "step"]).of
    lines = [g.droplevel("rate").reset_index() for _, g in means.mean().groupby("rate")]
    ax.add_collection(LineCollection(lines, colors=color, linewidths=0.6, alpha=0.4, zorder=1.5), autolim=False)


def shades(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    """Draw the mean over seeds of `column` against the step at every rate of one optimizer, the larger the darker."""
    runs = list(rows.groupby("rate"))
    for depth, (rate, group) in zip(np.linspace(0.25, 1.0, len(runs)), runs, strict=True):
        mean = group.groupby("step")[column].mean()
        label = label_of(group.optimizer.iloc[0], rate)
        ax.plot(mean.index, mean, color=plt.colormaps["Oranges"](depth), lw=0.9, label=label)


def in_math(text: str) -> str:
    """A name of a variant with its symbols as formulas show them: 'r = 16' as '$r$ = 16', 'ρ' as '$\\rho$'."""
    text = re.sub(r"\b([hrMN])(?= =|$)", r"$\1$", text)
    return text.replace("λ", r"$\lambda$").replace("ρ", r"$\rho$")


def legend_below(fig: FigureBase, ncols: int) -> None:
    """Put one legend under all panels, where it covers nothing; what several panels show stands there once."""
    named = {label: handle for ax in fig.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(named.values(), named, loc="outside lower center", ncols=ncols)


def log_steps(ax: Axes) -> None:
    """Put steps on a logarithmic axis with round numbers for ticks."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    round_numbers = [m * 10**e for e in range(6) for m in (1, 2, 5)]
    ax.set_xticks([t for t in round_numbers if low <= t <= high])
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.xaxis.set_minor_formatter("")


def log_across(ax: Axes) -> None:
    """Make the x-axis logarithmic, in plain numbers: powers of ten, and where it is short two and five times these."""

    def label(x: float, _) -> str:
        low, high = ax.get_xlim()
        return number(x) if high < 100 * low and f"{x:.1e}"[:3] in ("2.0", "5.0") else ""

    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda x, _: number(x))
    ax.xaxis.set_minor_formatter(label)


def rate_sweep(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    """Draw `column` against the learning rate: a curve per tuned optimizer, a level for each untuned one."""
    for optimizer, group in rows.groupby("optimizer", sort=False):
        color = COLORS.get(optimizer)
        by_rate = [(rate, *interval(g[column])) for rate, g in group.groupby("rate")]
        rate, mean, half = np.array(by_rate).T
        if len(rate) == 1:
            ax.axhline(mean[0], color=color, lw=1.9, label=f"{optimizer}, untuned")
            ax.axhspan(mean[0] - half[0], mean[0] + half[0], color=color, alpha=0.15, lw=0)
        else:
            ax.errorbar(rate, mean, half, color=color, marker="o", ms=3, capsize=2, label=optimizer)
    ax.set_xscale("log")
    log_losses(ax)
    ax.set_xlabel("learning rate")


def profile(ax: Axes, ratio: pd.DataFrame, last: float) -> None:
    """Draw a performance profile (Dolan and Moré 2002): the share of tasks on which a ratio is at most a factor.

    Args:
        ax: where.
        ratio: rows of `comparison.ratios` at one step.
        last: the largest factor; what is beyond it, or was lost, is drawn there.
    """
    for optimizer, group in ratio.groupby("optimizer", sort=False):
        values = np.sort(np.minimum(group.ratio, last))
        share = (np.arange(len(values)) + 1) / len(values)
        ax.plot(values, share, drawstyle="steps-post", label=optimizer, color=COLORS.get(optimizer))
    ax.axvline(1.0, color="0.6", lw=0.8, ls=":")
    log_across(ax)
    ax.set_ylabel("fraction of tasks at or below")


def meta_curve(
    ax: Axes, log: pd.DataFrame, column: str = "loss", label: str | None = None, color: str | None = None
) -> None:
    """Draw one column of a meta-training log against the iteration."""
    ax.plot(log.iteration, log[column], label=label, color=color)
    ax.set_xlabel("meta-iteration")
    ax.set_ylabel(column)


def bars(ax: Axes, values: np.ndarray, title: str, color: str = "#0b4f8a") -> None:
    """Draw a short vector as bars around zero, without ticks: a number one can see."""
    ax.bar(range(len(values)), values, color=color, width=0.85)
    ax.axhline(0, color="0.4", lw=0.6)
    ax.set_title(title)
    ax.set_xticks([])
    ax.grid(False)


def heat(ax: Axes, matrix: np.ndarray, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Draw a matrix in a diverging colour map that is white at zero; its largest hundredth shares the last colour."""
    sizes = np.abs(matrix[np.isfinite(matrix)])
    largest = float(np.percentile(sizes, 99)) or 1.0
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    ax.set_title(title)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02, extend="both" if sizes.max() > largest else "neither")


def picture_rows(rows: dict[str, np.ndarray], side: int) -> Figure:
    """Draw rows of ±1 images, [columns side²] each, with a label at the left of each row."""
    columns = len(next(iter(rows.values())))
    fig, axes = plt.subplots(len(rows), columns, figsize=(5.5, 4.05 * len(rows) / columns))
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            ax.imshow(np.reshape(image, (side, side)), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
            ax.spines[:].set_color("0.8")
        line[0].set_ylabel(in_math(label), rotation=0, ha="right", va="center")
    return fig


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing area with one unit per inch."""
    fig, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def box(ax: Axes, x: float, y: float, w: float, h: float, text: str, color: str = "#eef3f8") -> None:
    """Draw a rounded box with centred text; (x, y) is its lower left corner."""
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.02,rounding_size=0.06", fc=color, ec="#456"))
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=7, linespacing=1.35)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    """Draw an arrow, straight or bent."""
    style = {"arrowstyle": "-|>", "mutation_scale": 8, "lw": 0.9, "color": "#345"}
    ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", shrinkA=2, shrinkB=2, **style))


def chain(
    ax: Axes, x: float, y: float, height: float, gap: float, parts: Sequence[tuple[float, str, str]]
) -> list[float]:
    """Draw boxes (width, text, colour) from left to right, with an arrow from each to the next.

    Args:
        ax: a `canvas`.
        x: left edge of the first box.
        y: their lower edge.
        height: of every box.
        gap: between two boxes.
        parts: at least one.

    Returns:
        The left edge of each box.
    """
    widths = [width for width, *_ in parts]
    lefts = [x + sum(widths[:i]) + gap * i for i in range(len(parts))]
    for left, (width, text, color) in zip(lefts, parts, strict=True):
        box(ax, left, y, width, height, text, color)
    for left, width in zip(lefts[:-1], widths[:-1], strict=True):
        arrow(ax, (left + width, y + height / 2), (left + width + gap, y + height / 2))
    return lefts


def variants(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Draw y against x, a thin line per variant and meta-seed and a thick one for their median.

    Each meta-seed's own y is a geometric mean over its tasks and their seeds.
    """
    colors = plt.colormaps["viridis"](np.linspace(0, 0.9, rows.variant.nunique()))
    for color, (variant, group) in zip(colors, rows.groupby("variant", sort=False), strict=True):
        by_seed = np.exp(np.log(group[y]).groupby([group[x], group.meta_seed]).mean().unstack())
        ax.plot(by_seed.index, by_seed, color=color, lw=0.5, alpha=0.6)
        ax.plot(by_seed.index, by_seed.median(axis=1), color=color, label=in_math(variant))


def sweep(ax: Axes, score: pd.DataFrame, points: dict[str, float], y: str) -> None:
    """Draw a loss against the value that variants differ in: thin lines are meta-seeds, the thick one their median.

    Args:
        ax: to draw on.
        score: of `ablation.scores`.
        points: variant → value.
        y: the column of the loss.
    """
    ordered = sorted(points, key=points.get)
    by_seed = score.pivot(index="variant", columns="meta_seed", values=y).loc[ordered]
    color, places = COLORS["Mnemosyne"], range(len(ordered))
    ax.plot(places, by_seed, color=color, lw=0.5, alpha=0.6)
    ax.plot(places, by_seed.median(axis=1), "o-", color=color, ms=4)
    ax.set_xticks(places, [f"{points[v]:g}" for v in ordered])
