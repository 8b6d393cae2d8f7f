"""Optimizers that nobody has to tune, and those that are tuned once: who takes part, and how they are compared.

A task's loss is always counted over that of Adam at the best of its rates, task by task and mark by mark.
"""

from collections.abc import Callable, Sequence

import numpy as np
import optax
import pandas as pd

from mnemosyne.evaluate import RATES, Contender, diverged, untuned
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.zoo import pretrained


def tuning_free() -> list[Contender]:
    """Public optimizers as they come, with the rates that their authors' code has where nothing is said.

    Schedule-free AdamW is measured at its average, where it is meant to be. Mechanic multiplies steps of Adam at rate 1
    by its own estimate, which starts at 1e-6: around a rate of 1e-3 the first steps are lost to rounding in float32,
    and it stays where it is.
    """
    average = optax.contrib.schedule_free_eval_params
    return [
        untuned("Prodigy", optax.contrib.prodigy()),
        untuned("D-Adapt AdamW", optax.contrib.dadapt_adamw()),
        untuned("DoWG", optax.contrib.dowg()),
        untuned("COCOB", optax.contrib.cocob()),
        untuned("Mechanic Adam", optax.contrib.mechanize(optax.adam(1.0))),
        untuned("MoMo Adam", optax.contrib.momo_adam()),
        untuned("schedule-free AdamW", optax.contrib.schedule_free_adamw())._replace(seen=average),
    ]


def decayed(steps: int) -> Contender:
    """Adam with a linear decay to zero, at each of its rates."""
    return _scheduled("Adam, decayed", optax.linear_schedule(1.0, 0.0, steps))


def warmed(steps: int, name: str = "Adam", make: Callable = optax.adam) -> Contender:
    """Adam, or another, with a warm-up over a twentieth of the steps and a cosine to zero, at each of Adam's rates."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(steps // 20, 1), steps)
    return _scheduled(f"{name}, warm-up and cosine", shape, make)


def _scheduled(name: str, shape: optax.Schedule, make: Callable = optax.adam) -> Contender:
    return Contender(name, lambda rate: make(lambda t: rate * shape(t)), RATES)


def told_the_end(steps: int, names: Sequence[str]) -> list[Contender]:
    """Those with nothing to tune, told the last step: Prodigy with a linear decay, shipped weights by `steps=`."""
    prodigy = optax.chain(optax.contrib.prodigy(), optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, steps)))
    ours = [untuned(f"{OPTIMIZERS[name].label}, end known", pretrained(name, steps=steps)) for name in names]
    return [untuned("Prodigy, decayed", prodigy), *ours]


def bootstrapped(losses: pd.DataFrame, base: str, samples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Geometric means over tasks of loss / base's, with 95% intervals over both tasks and seeds.

    Tasks are drawn anew, and for each the seeds, as Agarwal et al. 2021 advise where both are few.

    Args:
        losses: of `comparison.best_losses`: by (task, seed), a column per optimizer.
        base: the column that others are divided by.
        samples: of the bootstrap.
        seed: of the draws.

    Returns:
        Rows (optimizer, mean, low, high); infinite where a run was lost.
    """
    logs = np.log(losses).sub(np.log(losses[base]), axis=0).drop(columns=base)
    rng = np.random.default_rng(seed)
    values = np.stack([g.to_numpy() for _, g in logs.groupby(level="task", sort=False)])  # [tasks seeds optimizers]
    tasks, seeds = values.shape[:2]
    which = rng.integers(tasks, size=(samples, tasks, 1))
    drawn = values[which, rng.integers(seeds, size=(samples, tasks, seeds))].mean(axis=(1, 2))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0, method="nearest")  # infinite ones are not interpolated
    found = {"optimizer": logs.columns, "mean": np.exp(values.mean(axis=(0, 1)))}
    return pd.DataFrame(found | {"low": np.exp(low), "high": np.exp(high)})


def overtaken(parts: Sequence[pd.DataFrame], mark: int, base: str = "Adam") -> pd.DataFrame:
    """At which step each optimizer comes to the loss that the best-tuned base has at a mark.

    Returns:
        Rows (task, optimizer, steps): the first step at which the mean over seeds is at or below it, at the best of the
        optimizer's rates; infinite where that never happens.
    """
    found = []
    for task, of in pd.concat(parts).groupby("task", sort=False):
        curves = of.groupby(["optimizer", "rate", "step"], sort=False).train_loss.mean()
        goal = curves.xs(base, level="optimizer").xs(mark, level="step").min()
        for optimizer, g in curves.groupby(level="optimizer", sort=False):
            reached = g[g <= goal].reset_index().step
            found.append((task, optimizer, reached.min() if len(reached) else np.inf))
    return pd.DataFrame(found, columns=["task", "optimizer", "steps"])


def lost(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """How many runs of each optimizer and rate diverged: rows (optimizer, rate, diverged, runs)."""
    counted = diverged(pd.concat(parts)).groupby(["optimizer", "rate"], sort=False).diverged.agg(["sum", "count"])
    return counted.rename(columns={"sum": "diverged", "count": "runs"}).reset_index()
