"""Train tasks with optimizers and write down what happened: (task, optimizer, rate, seed) → rows."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array

from mnemosyne.fingerprint import Deferred
from mnemosyne.types import Data, Task


class Contender(NamedTuple):
    """An optimizer with the learning rates it is allowed to try."""

    name: str
    make: Callable[[Any], optax.GradientTransformation]  # learning rate, or a setting → optimizer
    rates: tuple[float, ...]
    settings: Any = None  # pytree of arrays [rates …] or `Deferred`s: what `make` is given in the place of a rate

    @property
    def each(self) -> Any:
        """What `make` is given, for one rate after another: a pytree with a leading axis of rates."""
        return np.asarray(self.rates, np.float32) if self.settings is None else self.settings


def untuned(name: str, tx: optax.GradientTransformation) -> Contender:
    """An optimizer without a learning rate: one run, no grid. Its rate is written as 1."""
    return Contender(name, lambda rate: tx, (1.0,))


def train(task: Task, contender: Contender, *, seeds: Sequence[int], steps: int, every: int) -> pd.DataFrame:
    """Train a task from several initialisations with every rate of an optimizer, in one compiled program.

    A seed fixes initialisation and batches, and is shared by all optimizers and rates.

    Args:
        task: what to train.
        contender: what with.
        seeds: one run per rate for each.
        steps: training steps, a multiple of `every`.
        every: steps between rows.

    Returns:
        Rows (task, optimizer, rate, seed, step, train_loss, validation_<metric> …). `train_loss` is the mean
        over the `every` steps before `step`, of batch losses each taken before its update. At `step` = 0 it
        is the first batch's. A run that blew up keeps its non-finite losses.

    Raises:
        ValueError: if `steps` is no positive multiple of `every`.
    """
    one = training(task, contender, steps, every)
    each = jax.tree.map(lambda x: x.value if isinstance(x, Deferred) else x, contender.each)
    which = [jnp.asarray(x) for x in zip(*itertools.product(range(len(contender.rates)), seeds), strict=True)]
    # On a CPU one after another: products of several runs at once take longer there, to compile and to compute.
    together = None if jax.default_backend() == "cpu" else len(which[0])

    def run(i: Array, seed: Array, each: Any, data: Data) -> dict[str, Array]:
        return one(jax.tree.map(lambda x: x[i], each), seed, data)

    program = jax.jit(lambda each, data: jax.lax.map(lambda ran: run(*ran, each, data), which, batch_size=together))
    curves = program(jax.tree.map(jnp.asarray, each), task.data)
    index = pd.MultiIndex.from_product(
        [contender.rates, seeds, range(0, steps + 1, every)], names=["rate", "seed", "step"]
    )
    rows = pd.DataFrame({k: np.asarray(v).ravel() for k, v in curves.items()}, index=index).reset_index()
    rows.insert(0, "optimizer", contender.name)
    rows.insert(0, "task", task.name)
    return rows


def training(
    task: Task, contender: Contender, steps: int, every: int
) -> Callable[[Any, Array, Data], dict[str, Array]]:
    """Make the program of one run of `train`: (setting, seed, data) → what is measured, [steps/every + 1] each."""
    if steps < 1 or steps % every:
        raise ValueError(f"steps = {steps} is no positive multiple of every = {every}")

    def one(setting: Any, seed: Array, data: Data) -> dict[str, Array]:
        # What VeLO asks for and others do not: the loss and the number of steps planned.
        tx = optax.with_extra_args_support(contender.make(setting))
        init_key, batch_key = jax.random.split(jax.random.key(seed))
        params = task.init(init_key)

        def step(carry, t):
            params, state = carry
            batch = task.batch(data, jax.random.fold_in(batch_key, t))
            loss, grads = jax.value_and_grad(task.loss)(params, batch)
            updates, state = tx.update(grads, state, params, value=loss, horizon=steps)
            return (optax.apply_updates(params, updates), state), loss.astype(jnp.float32)

        def stretch(carry, start):
            measured = task.metrics(carry[0], data)
            train = lambda carry: jax.lax.scan(step, carry, start + jnp.arange(every))
            # The last stretch is only measured. Compiled once, so that a large model is not compiled twice.
            carry, losses = jax.lax.cond(start < steps, train, lambda carry: (carry, jnp.zeros(every)), carry)
            return carry, (losses, measured)

        _, (losses, measured) = jax.lax.scan(stretch, (params, tx.init(params)), jnp.arange(0, steps + 1, every))
        train_loss = jnp.concatenate([losses[0, :1], losses[:-1].mean(axis=1)])
        return {"train_loss": train_loss, **{f"validation_{k}": v for k, v in measured.items()}}

    return one


def best_rates(rows: pd.DataFrame, step: int, column: str = "train_loss") -> pd.DataFrame:
    """For each task and optimizer, the rows of the rate whose mean loss over seeds at `step` is lowest.

    A rate with any non-finite run at that step cannot win.
    """
    at = rows[rows.step == step]
    means = at.groupby(["task", "optimizer", "rate"])[column].agg(
        lambda v: v.mean() if np.isfinite(v).all() else np.inf
    )
    winners = means.groupby(["task", "optimizer"]).idxmin()
    return rows.set_index(["task", "optimizer", "rate"]).loc[list(winners)].reset_index()


def diverged(rows: pd.DataFrame) -> pd.DataFrame:
    """Which runs blew up: some training loss not finite, or the last one above the first.

    Returns:
        One row per (task, optimizer, rate, seed) with a boolean `diverged`.
    """

    def lost(run: pd.DataFrame) -> bool:
        losses = run.sort_values("step").train_loss.to_numpy()
        return bool(not np.isfinite(losses).all() or losses[-1] > losses[0])

    runs = rows.groupby(["task", "optimizer", "rate", "seed"])[["step", "train_loss"]]
    return runs.apply(lost).rename("diverged").reset_index()


def interval(values) -> tuple[float, float]:
    """Mean and half-width of its 95% t-interval; the half-width of fewer than two values is NaN."""
    from scipy import stats

    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    sem = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(sem * stats.t.ppf(0.975, len(values) - 1))
