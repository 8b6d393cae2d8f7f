"""Optimizers side by side over many tasks: who is ahead of the best-tuned Adam, and by how much."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Array

from mnemosyne.coordinate import Rule
from mnemosyne.evaluate import best_rates, interval
from mnemosyne.plotting import LEARNED
from mnemosyne.types import State, Theta


def standings(rows: pd.DataFrame, marks: Sequence[int], column: str = "train_loss") -> pd.DataFrame:
    """Every optimizer at the rate that is best at each mark: mean ± 95% interval over seeds.

    Args:
        rows: of `evaluate.train`, any number of tasks and optimizers.
        marks: steps to compare at.
        column: the loss.

    Returns:
        Rows (task, step, optimizer, rate, loss, half, seeds, edge). `edge` says that the winning rate is the
        largest or smallest of three or more that were tried, so that the true best may lie outside the grid.
    """
    tried = rows.groupby(["task", "optimizer"]).rate.agg(["min", "max", "nunique"])
    summary = []
    for mark in marks:
        at = best_rates(rows, mark, column)
        for (task, optimizer), g in at[at.step == mark].groupby(["task", "optimizer"], sort=False):
            (mean, half), rate = interval(g[column]), g.rate.iloc[0]
            low, high, n = tried.loc[(task, optimizer)]
            edge = bool(n > 2 and rate in (low, high))
            found = {"task": task, "step": mark, "optimizer": optimizer, "rate": rate, "loss": mean, "half": half}
            summary.append(found | {"seeds": len(g), "edge": edge})
    return pd.DataFrame(summary)


def shown(standing: pd.DataFrame) -> pd.Series:
    """'loss ± half (rate)' for a table; the rate is left out of the learned, 'edge' is added where it is one."""

    def text(r) -> str:
        rate = "" if r.optimizer.startswith(LEARNED) else f"  ({r.rate:g}{', edge' if r.edge else ''})"
        return f"{r.loss:.3f} ± {r.half:.3f}{rate}"

    return pd.Series([text(r) for r in standing.itertuples()], standing.index)


def made_odd(rule: Rule) -> Rule:
    """The same weights without what does not depend on the gradient's sign, (u(g) − u(−g)) / 2, at twice the cost."""

    def state(shape: tuple) -> State:
        return rule.state(shape), rule.state(shape)

    def step(theta: Theta, state: State, g: Array) -> tuple[State, Array]:
        (plus, up), (minus, down) = rule.step(theta, state[0], g), rule.step(theta, state[1], -g)
        return (plus, minus), 0.5 * (up - down)

    def window(theta: Theta, state: State, g: Array) -> Array:
        return 0.5 * (rule.window(theta, state[0], g) - rule.window(theta, state[1], -g))

    return Rule(rule.init, state, step, window)


def ratios(standing: pd.DataFrame, base: str = "Adam") -> pd.DataFrame:
    """Loss over the best-tuned base optimizer's, for every other one: rows (task, step, optimizer, ratio)."""
    reference = standing[standing.optimizer == base].set_index(["task", "step"]).loss
    others = standing[standing.optimizer != base].copy()
    others["ratio"] = [r.loss / reference[(r.task, r.step)] for r in others.itertuples()]
    others["ratio"] = others.ratio.where(np.isfinite(others.ratio), np.inf)
    return others[["task", "step", "optimizer", "ratio"]].reset_index(drop=True)


def geometric_means(ratio: pd.DataFrame) -> pd.DataFrame:
    """exp(mean log ratio) over tasks, with its 95% interval: rows (optimizer, step, mean, low, high, worst)."""
    summary = []
    for (optimizer, step), g in ratio.groupby(["optimizer", "step"], sort=False):
        mean, half = interval(np.log(g.ratio))
        found = {"optimizer": optimizer, "step": step, "mean": np.exp(mean)}
        found |= {"low": np.exp(mean - half), "high": np.exp(mean + half), "worst": g.ratio.max(), "tasks": len(g)}
        summary.append(found)
    return pd.DataFrame(summary)


def cells(rows: pd.DataFrame, mark: int, tuned: str = "Adam", column: str = "train_loss") -> pd.DataFrame:
    """For each (task, rate) of a tuned optimizer, whether each of the others is below it at a mark.

    Returns:
        Rows (task, rate, tuned, optimizer, loss, ahead): `tuned` is the tuned optimizer's mean loss over seeds at
        that rate, infinite if any run is not finite. Others take part at their best rate.
    """
    at = rows[rows.step == mark]
    mean = lambda v: v.mean() if np.isfinite(v).all() else np.inf
    losses = at.groupby(["task", "optimizer", "rate"], sort=False)[column].agg(mean).reset_index()
    grid = losses[losses.optimizer == tuned].rename(columns={column: "tuned"}).drop(columns="optimizer")
    best = losses[losses.optimizer != tuned].groupby(["task", "optimizer"], sort=False)[column].min().reset_index()
    merged = grid.merge(best.rename(columns={column: "loss"}), on="task")
    return merged.assign(ahead=merged.loss < merged.tuned)


def below_the_median(cell: pd.DataFrame) -> pd.DataFrame:
    """Whether each optimizer is below the loss of the tuned one's median rate, by task: columns are optimizers."""
    median = cell.groupby(["task", "optimizer"], sort=False).agg(tuned=("tuned", "median"), loss=("loss", "first"))
    return (median.loss < median.tuned).unstack()
