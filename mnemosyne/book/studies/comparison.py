"""Optimizers side by side over many tasks: who is ahead of the best-tuned Adam, and by how much."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Array

from mnemosyne.book.plotting import RATELESS
from mnemosyne.book.verdicts import Held, at_most, below, every, log_ratio, some
from mnemosyne.evaluate import best_rates, interval
from mnemosyne.optimizer.rule import Rule
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


def stood(parts: Sequence[pd.DataFrame], marks: Sequence[int]) -> pd.DataFrame:
    """`standings` of several runs; with `run.summary` they are found without the runs' rows."""
    return standings(pd.concat(parts), marks)


def shown(standing: pd.DataFrame) -> pd.Series:
    """'loss ± half (rate)' for a table; the rate is left out where there is none, 'edge' is added where it is one."""

    def text(r) -> str:
        rate = "" if r.optimizer.startswith(RATELESS) else f"  ({r.rate:g}{', edge' if r.edge else ''})"
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


def best_losses(rows: pd.DataFrame, mark: int, column: str = "train_loss") -> pd.DataFrame:
    """Every seed's loss at a mark, at the rate that is best there in the mean: by (task, seed), a column per optimizer.

    What is not finite is infinite.
    """
    best = best_rates(rows, mark, column)
    at = best[best.step == mark]
    values = at[column].where(np.isfinite(at[column]), np.inf)
    order = rows.optimizer.unique()
    return at.assign(value=values).pivot(index=["task", "seed"], columns="optimizer", values="value")[order]


def paired(rows: pd.DataFrame, marks: Sequence[int], base: str = "Adam", column: str = "train_loss") -> pd.DataFrame:
    """Compare every optimizer with the best-tuned base, seed by seed.

    Args:
        rows: of `evaluate.train`.
        marks: steps to compare at, each optimizer at the rate that is best there in the mean.
        base: what the others are compared with.
        column: the loss.

    Returns:
        Rows (task, step, optimizer, log_ratio, half, shown): the mean log ratio of the losses ± its 95% interval over
        seeds, see `verdicts.log_ratio`, and the ratio as "0.95 [0.91, 0.99]".
    """
    found = []
    for mark in marks:
        for task, losses in best_losses(rows, mark, column).groupby(level="task", sort=False):
            for optimizer in losses.columns.drop(base):
                if losses[optimizer].notna().all():
                    compared = log_ratio(losses[optimizer], losses[base])
                    found.append((task, mark, optimizer, *compared, told(compared)))
    return pd.DataFrame(found, columns=["task", "step", "optimizer", "log_ratio", "half", "shown"])


def across(rows: pd.DataFrame, marks: Sequence[int], base: str = "Adam", column: str = "train_loss") -> pd.DataFrame:
    """As `paired`, of the geometric means over all tasks: rows (step, optimizer, log_ratio, half, shown)."""
    found = []
    for mark in marks:
        means = np.exp(np.log(best_losses(rows, mark, column)).groupby(level="seed").mean())
        for optimizer in means.columns.drop(base):
            compared = log_ratio(means[optimizer], means[base])
            found.append((mark, optimizer, *compared, told(compared)))
    return pd.DataFrame(found, columns=["step", "optimizer", "log_ratio", "half", "shown"])


def only_at(parts: Sequence[pd.DataFrame], steps: Sequence[int]) -> pd.DataFrame:
    """The rows of several runs at a few steps; with `run.summary` they are found without the rest."""
    return pd.concat([rows[rows.step.isin(steps)] for rows in parts])


def best_for_all(rows: pd.DataFrame, mark: int, column: str = "train_loss") -> dict[str, float]:
    """The rate of each optimizer that has the lowest mean log loss at a mark, over tasks and seeds.

    A rate with any run that is not finite there cannot win.
    """
    at = rows[rows.step == mark]
    losses = np.log(at[column].where(np.isfinite(at[column]), np.inf))
    means = losses.groupby([at.optimizer, at.rate]).mean()
    return {optimizer: rate for optimizer, rate in means.groupby("optimizer").idxmin()}


def at_settings(rows: pd.DataFrame, fixed: dict[str, float]) -> pd.DataFrame:
    """The rows of optimizers at one rate each, under the name "NAdamW, one setting"."""
    parts = [rows[(rows.optimizer == name) & (rows.rate == rate)] for name, rate in fixed.items()]
    return pd.concat(parts).assign(optimizer=lambda r: r.optimizer + ", one setting")


def told(estimate: tuple[float, float]) -> str:
    """'0.95 [0.91, 0.99]': a ratio with its 95% interval, of a mean log ratio and its half-width."""
    mean, half = estimate
    return f"{np.exp(mean):.2f} [{np.exp(mean - half):.2f}, {np.exp(mean + half):.2f}]"


def within(compared: pd.DataFrame, optimizer: str, step: int, limit: float = 1.0) -> list[Held]:
    """Whether an optimizer's loss is at most `limit` times the base's at a step: a statement per row of `paired`."""
    of = compared[(compared.optimizer == optimizer) & (compared.step == step)]
    return [at_most((r.log_ratio, r.half), np.log(limit)) for r in of.itertuples()]


def lowest(rows: pd.DataFrame, mark: int, optimizer: str, column: str = "train_loss") -> Held:
    """Whether an optimizer's loss is below that of every other one at its best rate, on each task in `rows`."""
    losses = best_losses(rows, mark, column)
    others = losses.columns.drop(optimizer)
    return every(_ahead(g[optimizer], g[o]) for _, g in losses.groupby(level="task") for o in others)


def cells(rows: pd.DataFrame, mark: int, tuned: str = "Adam", column: str = "train_loss") -> pd.DataFrame:
    """For each (task, rate) of a tuned optimizer, whether each of the others is below it at a mark.

    Returns:
        Rows (task, rate, tuned, optimizer, loss, ahead, held): `tuned` is the tuned optimizer's mean loss over seeds
        at that rate, infinite if any run is not finite. Others take part at their best rate. `ahead` compares the
        means, `held` is the statement by its whole 95% interval over seeds; runs that were lost are behind.
    """
    at, found = rows[rows.step == mark], []
    others = best_losses(rows[rows.optimizer != tuned], mark, column)
    for (task, rate), g in at[at.optimizer == tuned].groupby(["task", "rate"], sort=False):
        losses = g.set_index("seed")[column]
        losses = losses.where(np.isfinite(losses), np.inf)
        for optimizer, ours in others.loc[task].reindex(losses.index).dropna(axis=1).items():
            means = {"tuned": losses.mean(), "loss": ours.mean()}
            row = {"task": task, "rate": rate, "optimizer": optimizer, **means}
            found.append(row | {"ahead": means["loss"] < means["tuned"], "held": _ahead(ours, losses)})
    return pd.DataFrame(found).astype({"held": object})


def below_the_median(cell: pd.DataFrame) -> pd.DataFrame:
    """Whether each optimizer is below the loss of the tuned one's median rate, by task: columns are optimizers.

    A statement by its whole interval: True, False, or None where that is open.
    """
    middle = lambda g: g.sort_values("tuned", kind="stable").iloc[len(g) // 2]
    held = {(t, o): middle(g).held for (t, o), g in cell.groupby(["task", "optimizer"], sort=False)}
    return pd.Series(held, dtype=object).unstack()


def no_rate_for_all(rows: pd.DataFrame, mark: int, tuned: str = "Adam", column: str = "train_loss") -> Held:
    """Whether the best rate differs between tasks: whether each rate has a task on which another one is below it."""
    at = rows[(rows.step == mark) & (rows.optimizer == tuned)]
    losses = at.pivot(index=["task", "seed"], columns="rate", values=column)
    by_task = [g for _, g in losses.groupby(level="task")]
    return every(some(_ahead(g[s], g[r]) for g in by_task for s in losses if s != r) for r in losses)


def _ahead(ours: pd.Series, base: pd.Series) -> Held:
    """Whether ours is below the base, seed by seed; who lost a run is behind who lost none."""
    if np.isfinite(ours).all() and not np.isfinite(base).all():
        return True
    if not np.isfinite(ours).all():
        return None if not np.isfinite(base).all() else False
    return below(log_ratio(ours, base), 0.0)
