"""The experiments of notebooks 10 to 12 as rows: choices meta-trained from several seeds, and what they are worth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from mnemosyne.book.bench import per_call
from mnemosyne.book.chapter import Run
from mnemosyne.book.keys import Deferred, combined
from mnemosyne.book.studies.variations import Choice
from mnemosyne.book.verdicts import Held, at_most, below, log_ratio, within
from mnemosyne.evaluate import Contender
from mnemosyne.metatrain.replicas import Replicas
from mnemosyne.metatrain.truncated import MetaConfig
from mnemosyne.optimizer.rule import Rule
from mnemosyne.tasks import data, sets
from mnemosyne.types import Task

LEVEL = 0.02
"""Two losses are level if their ratio is within this of 1, its whole interval."""


class Setting(NamedTuple):
    """What all variants of an ablation share."""

    tasks: tuple[Task, ...]  # to meta-train on
    held_out: tuple[Task, ...]  # to measure on
    config: MetaConfig
    seeds: tuple[int, ...]  # of meta-training
    steps: int  # on each held-out task

    def networks(self) -> str:
        """What is meta-trained on and what is measured on, in two lines."""
        named = lambda tasks: "; ".join(task.name for task in tasks)
        return f"meta-trained on: {named(self.tasks)}\nmeasured on:     {named(self.held_out)}"


def setting(run: Run) -> Setting:
    """The setting of a run's scale: networks of some six hundred parameters, horizons of 100 steps, windows of 20."""
    scale = run.scale
    tasks, held_out = sets.ablation(data.load(scale.data), scale.ablation_tasks)
    config = MetaConfig(iterations=scale.ablation_iterations, coordinates=400)
    seeds = tuple(range(1000 * run.seed, 1000 * run.seed + scale.ablation_seeds))
    return Setting(tasks, held_out, config, seeds, scale.ablation_steps)


def ablate(run: Run, choices: Sequence[Choice], common: Setting) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Meta-train every case of every choice from every seed, then train held-out networks with what came of it.

    Args:
        run: keeps what is finished.
        choices: each is one program, cases and seeds side by side.
        common: see `setting`.

    Returns:
        Rows (variant, meta_seed, iteration, loss, imitation, failed, skipped) of meta-training, and rows (task,
        variant, meta_seed, seed, step, train_loss, validation_<metric> …) on held-out networks.
    """
    parts = [trained(run, choice, common).value for choice in choices]
    curves, held_out = (pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))
    return curves, held_out


def trained(run: Run, choice: Choice, common: Setting) -> Deferred:
    """One choice of `ablate`, computed or read when its value is asked for."""
    variants = [(label, seed) for label in choice.cases for seed in common.seeds]
    numbers = tuple({"seed": seed, **choice.cases[label]} for label, seed in variants)

    def one(seed, **rest):
        return choice.run(common.tasks, replace(common.config, seed=seed), **rest)

    theta, log = run.meta_train(Replicas(one, numbers))
    tables = {k: jnp.asarray([n[k] for n in numbers]) for k in numbers[0] if k != "seed"}
    make = lambda setting: choice.make(setting["theta"], **{k: setting[k] for k in tables})
    # All variants in one program: the "rate" is a variant's number.
    contender = Contender(" | ".join(choice.cases), make, tuple(range(len(variants))), {"theta": theta, **tables})
    parts = [run.trained(task, contender, common.steps) for task in common.held_out]
    columns = {"variant": [v for v, _ in variants], "meta_seed": [s for _, s in variants]}

    def value() -> tuple[pd.DataFrame, pd.DataFrame]:
        measured = ("loss", "imitation", "failed", "skipped")
        curves = pd.concat(
            pd.DataFrame({**columns, "iteration": row["iteration"], **{k: row[k] for k in measured}})
            for row in log.value
        )
        rows = pd.concat(part.value for part in parts)
        for column, values in columns.items():
            rows[column] = np.asarray(values)[rows.rate.to_numpy(int)]
        return curves, rows.drop(columns=["optimizer", "rate"])

    return Deferred(combined(log.key, *(p.key for p in parts)), None, value)


def scored(parts: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """`scores` of several choices; with `run.summary` they are found without their rows."""
    return scores(*(pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True)))


def scores(curves: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """One row per variant and meta-seed: its loss late in meta-training, and on held-out networks.

    Returns:
        Rows (variant, meta_seed, meta_loss, held_out_loss). `meta_loss` is the mean over the last quarter of the
        iterations; `held_out_loss` the geometric mean, over networks and their seeds, of the training loss at the last
        step. What is not finite is infinite.
    """
    late = curves[curves.iteration > 0.75 * curves.iteration.max()]
    last = held_out[held_out.step == held_out.step.max()]
    log_mean = lambda v: np.exp(np.log(v.to_numpy()).mean())
    by = ["variant", "meta_seed"]
    meta = late.groupby(by, sort=False).loss.agg(lambda v: v.to_numpy().mean())
    held = last.groupby(by, sort=False).train_loss.agg(log_mean)
    found = pd.DataFrame({"meta_loss": meta, "held_out_loss": held}).reset_index()
    return found.replace([np.nan, -np.inf], np.inf)


def summary(score: pd.DataFrame) -> pd.DataFrame:
    """Median, lowest and highest over meta-seeds of both losses: columns (meta_loss, meta_low, …) by variant."""
    grouped, found = score.groupby("variant", sort=False), {}
    for column in ("meta_loss", "held_out_loss"):
        short, of = column.removesuffix("_loss"), grouped[column]
        found |= {column: of.median(), f"{short}_low": of.min(), f"{short}_high": of.max()}
    return pd.DataFrame(found)


def compared(score: pd.DataFrame, variant: str, base: str, column: str = "meta_loss") -> tuple[float, float]:
    """log(a variant's loss / a base's), meta-seed by meta-seed: the same optimizees and batches for both.

    Args:
        score: of `scores`.
        variant: whose loss is divided.
        base: whose loss it is divided by.
        column: `meta_loss` or `held_out_loss`.

    Returns:
        Mean and half-width of the 95% t-interval over meta-seeds, for `verdicts`. Infinite if the variant lost a run
        and the base none, −∞ the other way round, unknown if both did.

    Raises:
        ValueError: a variant or a base that has no scores.
    """
    table = score.pivot(index="meta_seed", columns="variant", values=column)
    for name in (variant, base):
        if name not in table:
            raise ValueError(f"no scores of {name!r}; there are {', '.join(score.variant.unique())}")
    if np.isfinite(table[variant]).all() and np.isinf(table[base]).any():
        return -np.inf, np.nan
    return log_ratio(table[variant], table[base])


def level(estimate: tuple[float, float]) -> Held:
    """Whether a ratio whose logarithm was estimated is within `LEVEL` of 1."""
    return within(estimate, np.log(1 - LEVEL), np.log(1 + LEVEL))


def against(score: pd.DataFrame, base: str, column: str) -> pd.DataFrame:
    """Every variant's loss over a base's, as `compared` takes it.

    Returns:
        Columns (ratio, low, high, found) by variant: the geometric mean with its 95% t-interval over meta-seeds, and
        'below' if the whole interval is below 1, 'above' if above, 'level' if it reaches across 1 and is within
        `LEVEL` of it, 'open' otherwise.
    """
    rows = []
    for variant in score.variant.unique():
        mean, half = estimate = compared(score, variant, base, column)
        words = {"below": below(estimate, 0.0), "above": at_most(estimate, 0.0) is False, "level": level(estimate)}
        found = {"variant": variant, "ratio": np.exp(mean), "low": np.exp(mean - half), "high": np.exp(mean + half)}
        rows.append(found | {"found": next((word for word, held in words.items() if held), "open")})
    return pd.DataFrame(rows).set_index("variant")


def told(row: pd.Series) -> str:
    """'1.251 [1.218, 1.284] above': a row of `against` for a claim."""
    return f"{row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}] {row.found}"


def costs(rules: dict[str, Rule], parameters: int = 2_000, rounds: int = 7) -> pd.DataFrame:
    """What a rule needs per parameter: rows (variant, state_bytes, step_ns).

    Args:
        rules: by label.
        parameters: how many are stepped at once.
        rounds: a time is the median of so many, the rules taking turns so that the machine's noise is shared.
    """
    held, steps, g = {}, {}, jax.random.normal(jax.random.key(1), (parameters,))
    for label, rule in rules.items():
        state, theta = rule.state((parameters,)), rule.init(jax.random.key(0))
        held[label] = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / parameters
        steps[label] = jax.jit(rule.step), theta, state, g
    spent = pd.DataFrame([{label: per_call(*step, calls=2) for label, step in steps.items()} for _ in range(rounds)])
    nanoseconds = 1e9 * spent.median() / parameters
    return pd.DataFrame({"variant": list(rules), "state_bytes": held.values(), "step_ns": nanoseconds.to_numpy()})
