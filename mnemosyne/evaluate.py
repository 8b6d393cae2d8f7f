"""Train tasks with optimizers and write down what happened: (task, optimizer, rate, seed) → rows."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array

from mnemosyne.inner import inner_step
from mnemosyne.optimizer.nesterov import draw, nadamw
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.zoo import pretrained
from mnemosyne.types import Data, Params, Scalar, State, Task


class Contender(NamedTuple):
    """An optimizer with the learning rates it is allowed to try."""

    name: str
    make: Callable[[Any], optax.GradientTransformation]  # learning rate, or a setting → optimizer
    rates: tuple[float, ...]
    settings: Any = None  # pytree of arrays [rates …]: what `make` is given in the place of a rate
    seen: Callable[[State, Params], Params] | None = None  # where training loss is taken, if not where gradients are

    @property
    def each(self) -> Any:
        """What `make` is given, for one rate after another: a pytree with a leading axis of rates."""
        return np.asarray(self.rates, np.float32) if self.settings is None else self.settings


def untuned(name: str, tx: optax.GradientTransformation) -> Contender:
    """An optimizer without a learning rate: one run, no grid. Its rate is written as 1."""
    return Contender(name, lambda rate: tx, (1.0,))


def meta_trained(name: str) -> Contender:
    """Shipped weights, under the label of their record."""
    tx = pretrained(name)  # an unknown name is told with the nearest
    return untuned(OPTIMIZERS[name].label, tx)


def nadamw_search(samples: int, steps: int, seed: int = 0) -> Contender:
    """NAdamW at settings drawn at random, for a training of so many steps; its rates are the settings' numbers.

    A search over a task is `train(task, nadamw_search(64, steps, seed), …)`. The best of its numbers over several tasks
    is one fixed setting for all of them.

    Raises:
        ValueError: no samples, or no steps.
    """
    settings = draw(samples, seed)
    return Contender("NAdamW", partial(nadamw, steps=steps), tuple(map(float, range(samples))), settings)


RATES = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
"""Seven half-decades, so that the best rate lies inside; an edge is told where it does not."""

ADAM = Contender("Adam", optax.adam, RATES)
RMSPROP = Contender("RMSProp", optax.rmsprop, RATES)
SGD = Contender("SGD", optax.sgd, (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03))
LION = Contender("Lion", optax.lion, (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5))
LION_PAPER = Contender("Lion", optax.lion, (1e-1, 1e-2, 2e-3, 1e-3, 1e-4))
"""The five rates of Tab. 1."""

ADAM_BEYOND = Contender("Adam", optax.adam, (10.0, 3.0, 1.0, 1e-4, 3e-5, 1e-5))
"""Adam at rates on either side of `RATES`, for tasks whose best is at an edge."""


def train(task: Task, contender: Contender, *, seeds: Sequence[int], steps: int, every: int) -> pd.DataFrame:
    """Train a task from several initialisations with every rate of an optimizer.

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
    stages = course(task, contender, steps, every)
    each = jax.tree.map(jnp.asarray, contender.each)
    which, seed = (np.array(x) for x in zip(*itertools.product(range(len(contender.rates)), seeds), strict=True))
    # On a CPU one after another: products of several runs at once take longer there, to compile and to compute.
    alone = jax.default_backend() == "cpu"
    programs = stages.compiled((lambda f, axes: jax.jit(f)) if alone else lambda f, axes: jax.jit(jax.vmap(f, axes)))

    def run(at: Any) -> dict[str, np.ndarray]:
        setting = jax.tree.map(lambda x: x[which[at]], each)
        return programs.run(setting, jnp.asarray(seed[at]), task.data, steps, every)

    parts = [run(i) for i in range(len(seed))] if alone else [run(np.arange(len(seed)))]
    curves = {k: np.concatenate([part[k].reshape(-1) for part in parts]) for k in parts[0]}
    index = pd.MultiIndex.from_product(
        [contender.rates, seeds, range(0, steps + 1, every)], names=["rate", "seed", "step"]
    )
    rows = pd.DataFrame(curves, index=index).reset_index()
    rows.insert(0, "optimizer", contender.name)
    rows.insert(0, "task", task.name)
    return rows


class Course(NamedTuple):
    """One run of `train` in stages, pure functions or programs of them.

    Keys, initialisation and measurement know nothing of the optimizer: all contenders for a task share theirs.
    """

    keys: Callable[[Array], tuple[Array, Array]]  # seed → keys of the parameters and of the batches
    init: Callable[[Array], Params]
    begin: Callable[[Any, Params], State]  # (setting, parameters) → the optimizer's state
    stretch: Callable[..., tuple]  # (setting, key, start, (parameters, state), data) → (those after, losses [every])
    measure: Callable[[Params, Data], dict[str, Scalar]]

    def compiled(self, compiler: Callable[[Callable, Any], Callable]) -> "Course":
        """Each stage through a compiler, which is told the axes along which runs may lie side by side."""
        axes = Course(0, 0, (0, 0), (0, 0, None, 0, None), (0, None))
        return Course(*map(compiler, self, axes))

    def run(self, setting: Any, seed: Array, data: Data, steps: int, every: int) -> dict[str, np.ndarray]:
        """The curves of a run, or of several side by side, [… steps/every + 1] each."""
        init_key, key = self.keys(seed)
        params = self.init(init_key)
        carry, losses, measured = (params, self.begin(setting, params)), [], [self.measure(params, data)]
        for start in range(0, steps, every):
            carry, loss = self.stretch(setting, key, start, carry, data)
            losses.append(np.asarray(loss))
            measured.append(self.measure(carry[0], data))
        train_loss = np.stack([losses[0][..., 0], *(loss.mean(axis=-1) for loss in losses)], axis=-1)
        validation = {f"validation_{k}": np.stack([m[k] for m in measured], axis=-1) for k in measured[0]}
        return {"train_loss": train_loss, **validation}


def course(task: Task, contender: Contender, steps: int, every: int) -> Course:
    """Make the stages of training a task with a contender; a ValueError if `every` does not divide `steps`."""
    if steps < 1 or steps % every:
        raise ValueError(f"steps = {steps} is no positive multiple of every = {every}")

    def stretch(setting: Any, key: Array, start: Array, carry: tuple[Params, State], data: Data):
        tx = contender.make(setting)

        def step(carry, t):
            batch, (params, state) = task.batch(data, jax.random.fold_in(key, t)), carry
            carry, loss, _ = inner_step(task, tx, carry, batch, steps)
            if contender.seen is not None:
                loss = task.loss(contender.seen(state, params), batch)
            return carry, loss.astype(jnp.float32)

        return jax.lax.scan(step, carry, start + jnp.arange(every))

    return Course(_keys, task.init, lambda setting, params: contender.make(setting).init(params), stretch, task.metrics)


def _keys(seed: Array) -> tuple[Array, Array]:
    return tuple(jax.random.split(jax.random.key(seed)))


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
