"""The experiments of notebooks 21, 22 and 24: small learned optimizers that evolve on one task, and what a step costs.

    evolving = evolution(run, "small_fc", small_fc(), task, config)     # snapshots of θ, for each meta-seed
    rows = measured(run, evolving, other_task)                          # what each snapshot is worth there

What an optimizer is worth on a task is its meta-loss: the mean training loss over a run, every loss counted as at most
the first one (Metz et al. 2022, App. D).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mnemosyne.book.chapter import Run
from mnemosyne.book.keys import Deferred, combined
from mnemosyne.book.studies.overhead import ARCHITECTURES
from mnemosyne.book.verdicts import below, every, log_ratio, negated
from mnemosyne.evaluate import Contender, interval
from mnemosyne.inner import inner_step
from mnemosyne.metatrain.loop import Carry
from mnemosyne.metatrain.pes import PES, PESConfig
from mnemosyne.metatrain.replicas import Replicas
from mnemosyne.optimizer.accumulators import TIMES, Features, accumulate, apart, empty, seen_of, together
from mnemosyne.optimizer.perparameter import by_products, decays_of, side_by_side, step_of, time_features
from mnemosyne.tasks import data, suite
from mnemosyne.types import Learned, Task, Theta

ALL = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)

FEATURE_SETS = {
    "gradient alone": Features((), (), ()),
    "momentum 0.9": Features((0.9,), (), ()),
    "six momenta": Features(ALL, (), ()),
    "momentum 0.9, second moment 0.9": Features((0.9,), (0.9,), ()),
    "six momenta, six second moments": Features(ALL, ALL, ()),
    "six Adafactor": Features((), (), ALL),
    "three momenta, three Adafactor": Features((0.5, 0.9, 0.99), (), (0.5, 0.9, 0.99)),
    "all": Features(ALL, ALL, ALL),
}
"""Eight of the feature sets of App. D.3; each sees the parameter, its gradient and the time as well."""

META_RATES = {"small_fc": 3e-3, "nn_adam": 3e-4, "nn_adam, CAM": 3e-4}
"""Learning rates of evolution: for three hundred weights at most the best of three on MNIST, less for ten thousand."""

SNAPSHOTS = 10
"""Of each evolution, the last at its end."""


class Watched(NamedTuple):
    """Meta-trainings side by side that also log θ, so that it can be measured along the way."""

    replicas: Replicas
    every: int

    save_every = 500

    @property
    def chunk(self) -> int:
        return self.every

    @property
    def config(self) -> Any:
        return self.replicas.config

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.replicas.tasks

    def start(self) -> Carry:
        return self.replicas.start()

    def iterate(self, carry: Carry, data: tuple) -> tuple[Carry, dict[str, Array]]:
        """One meta-step; θ of every run is a row of numbers, [n, size], and its mean over a chunk is logged."""
        carry, measured = self.replicas.iterate(carry, data)
        return carry, measured | {"theta": jax.vmap(lambda theta: ravel_pytree(theta)[0])(carry.theta)}


@dataclass(frozen=True)
class Evolution:
    """An optimizer that has evolved on a task from several meta-seeds."""

    label: str
    learned: Learned
    task: Task  # that it evolved on
    iterations: np.ndarray  # of the snapshots, each the mean of θ since the one before
    seeds: tuple[int, ...]
    thetas: Deferred  # [snapshots · seeds …], the seeds of the first snapshot first
    log: Deferred


def images_of(run: Run) -> tuple[str, str]:
    """The data sets of `two_tasks`."""
    return run.scale.unseen[0], run.scale.pictures[:2][-1]


def two_tasks(run: Run) -> tuple[Task, Task]:
    """An MLP of one hidden layer on clothes, in grey, and two convolutions on CIFAR-10, both on 8×8 pixels.

    Of the kinds of the second paper, which has 128-128 units on 28×28 pixels and three convolutions on 16×16. A scale
    without such images has others.
    """
    clothes, photos = map(data.load, images_of(run))
    channels = photos.train.images.shape[3]
    mlp = suite.mlp(data.resize(clothes, 8, 1), (32,), "relu", batch_size=128)
    return mlp, suite.conv(data.resize(photos, 8, channels), (8, 12), "relu")


def configured(run: Run, iterations: int, learning_rate: float) -> PESConfig:
    """The paper's way of evolving at a run's scale: windows of 20, a fixed horizon, the clipped mean training loss."""
    horizons = (run.scale.evolution_horizon,)
    way = PESConfig(horizons=horizons, window=20, pairs=4, sigma=0.01, objective="loss")
    return replace(way, iterations=iterations, learning_rate=learning_rate)


def evolution(run: Run, label: str, learned: Learned, task: Task, config: PESConfig) -> Evolution:
    """Evolve an optimizer on one task from a scale's meta-seeds, all in one program; or find it as it was kept."""
    seeds = tuple(range(1000 * run.seed, 1000 * run.seed + run.scale.ablation_seeds))
    every = max(1, config.iterations // SNAPSHOTS)
    make = lambda seed: PES(learned, (task,), replace(config, seed=seed))
    trainer = Watched(Replicas(make, tuple({"seed": seed} for seed in seeds)), every)
    _, log = run.meta_train(trainer)
    one = jax.eval_shape(learned.init, jax.random.key(0))
    iterations = every * np.arange(1, config.iterations // every + 1)
    number = len(iterations) * len(seeds)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape), x.dtype), one)

    def thetas() -> Theta:
        unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one))[1]
        flat = jnp.asarray([row["theta"] for row in log.value], jnp.float32)
        return jax.vmap(unravel)(flat.reshape(number, -1))

    return Evolution(label, learned, task, iterations, seeds, Deferred(combined("thetas", log.key), like, thetas), log)


def evolved(run: Run, label: str, task: Task) -> Evolution:
    """One of `ARCHITECTURES`, evolved on a task for as long as a scale has it."""
    config = configured(run, run.scale.evolution_steps, META_RATES[label])
    return evolution(run, label, ARCHITECTURES[label], task, config)


def measured(run: Run, of: Evolution, task: Task) -> pd.DataFrame:
    """Train a task with every snapshot: rows (task, optimizer, meta_seed, iteration, seed, step, train_loss …)."""
    number = len(of.iterations) * len(of.seeds)
    # All weights in one program: the "rate" is a snapshot's number.
    contender = Contender(of.label, of.learned.make, tuple(range(number)), of.thetas)
    rows = run.train(task, contender, run.scale.evolution_horizon)
    at = rows.rate.to_numpy(int)
    meta_seed, iteration = np.asarray(of.seeds)[at % len(of.seeds)], of.iterations[at // len(of.seeds)]
    return rows.drop(columns="rate").assign(meta_seed=meta_seed, iteration=iteration)


def meta_losses(rows: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """The mean training loss over each run, losses counted as at most the first one: a number for each of `by`.

    What is not finite counts as the first loss. Of a table of `evaluate.train`, which has a loss every few steps.
    """
    runs = rows.sort_values("step", kind="stable", ignore_index=True)
    first = runs.groupby(list(by), sort=False).train_loss.transform("first")
    clipped = runs.train_loss.where(runs.train_loss < first, first)
    return runs.assign(loss=clipped)[runs.step > 0].groupby(list(by), sort=False).loss.mean()


def tuned(rows: pd.DataFrame) -> pd.Series:
    """The meta-loss of each seed, at the rate or setting with the lowest mean over seeds: by (optimizer, seed)."""
    found = meta_losses(rows, ("optimizer", "rate", "seed"))
    best = found.groupby(level=["optimizer", "rate"], sort=False).mean().groupby(level="optimizer", sort=False).idxmin()
    return pd.concat({name: found.loc[at] for name, at in best.items()}, names=["optimizer"])


def meta_table(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The meta-losses of `measured` runs: rows (optimizer, task, meta_seed, iteration, seed, meta_loss)."""
    by = ("optimizer", "task", "meta_seed", "iteration", "seed")
    return pd.concat(meta_losses(rows, by).rename("meta_loss").reset_index() for rows in parts)


def against(losses: pd.Series, base: pd.Series) -> pd.DataFrame:
    """Meta-losses of evolved optimizers over those of tuned ones, an interval over meta-seeds.

    Args:
        losses: by (task, optimizer, meta_seed, seed).
        base: by (task, optimizer, seed).

    Returns:
        Rows (task, optimizer, base, log_ratio, half): mean and half-width of the 95% interval.
    """
    found = []
    for (task, optimizer), ours in losses.groupby(level=["task", "optimizer"], sort=False):
        by_seed = np.log(ours.droplevel(["task", "optimizer"]).unstack("meta_seed"))
        for name, theirs in np.log(base[task]).groupby(level="optimizer", sort=False):
            ratio = by_seed.sub(theirs.droplevel("optimizer"), axis=0).mean()
            found.append((task, optimizer, name, *interval(ratio)))
    return pd.DataFrame(found, columns=["task", "optimizer", "base", "log_ratio", "half"])


def last_over(theirs: pd.DataFrame, ours: pd.DataFrame) -> tuple[float, float]:
    """log(a tuned optimizer's last loss / an evolved one's), with its 95% interval over meta-seeds.

    Args:
        theirs: rows of `evaluate.train`; the rate or setting whose mean last loss is lowest counts.
        ours: rows of `measured`, of one optimizer at one iteration.
    """
    end = theirs[theirs.step == theirs.step.max()].set_index(["rate", "seed"]).train_loss
    end = end.where(np.isfinite(end), np.inf)
    best = np.log(end.loc[end.groupby(level="rate").mean().idxmin()])
    last = ours[ours.step == ours.step.max()].pivot(index="seed", columns="meta_seed", values="train_loss")
    return interval((-np.log(last)).add(best, axis=0).mean())


def front(quality: pd.DataFrame, axis: str) -> pd.Series:
    """Whether each optimizer lies on the Pareto front: no other has a lower meta-loss at no higher price.

    Args:
        quality: rows (optimizer, seed, meta_loss, <axis>).
        axis: the price, a column.

    Returns:
        A statement by whole 95% intervals over seeds, by optimizer: True, False, or None where that is open.
    """
    losses = quality.pivot(index="seed", columns="optimizer", values="meta_loss")
    price = quality.groupby("optimizer", sort=False)[axis].first()
    cheaper = {name: [o for o in price.index if o != name and price[o] <= price[name]] for name in price.index}
    lower = lambda name, other: below(log_ratio(losses[other], losses[name]), 0.0)
    held = {name: every(negated(lower(name, other)) for other in others) for name, others in cheaper.items()}
    return pd.Series(held, dtype=object)


def at_the_end(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows at the last iteration."""
    return rows[rows.iteration == rows.iteration.max()]


def by_setting(rows: pd.DataFrame) -> pd.Series:
    """The mean meta-loss over seeds of each setting of a search."""
    return meta_losses(rows, ("rate", "seed")).groupby(level="rate").mean()


def chosen_of(losses: pd.DataFrame, counts: Sequence[int], subsets: int, seed: int) -> pd.DataFrame:
    """Choose the best of some settings on one of two tasks, again and again.

    Args:
        losses: meta-losses, a row for each setting, a column for each of two tasks.
        counts: how many settings to choose among.
        subsets: random ones of each count.
        seed: of the subsets.

    Returns:
        Rows (chosen_on, count, subset, own, other): the meta-loss of the chosen setting on either task.
    """
    rng, rows = np.random.default_rng(seed), []
    for own, other in (tuple(losses), tuple(losses)[::-1]):
        for count in counts:
            for subset in range(subsets):
                best = losses.iloc[rng.permutation(len(losses))[:count]][own].idxmin()
                rows.append((own, count, subset, losses.at[best, own], losses.at[best, other]))
    return pd.DataFrame(rows, columns=["chosen_on", "count", "subset", "own", "other"])


def risen(chosen: pd.DataFrame) -> tuple[float, float]:
    """log(the other task's meta-loss at the largest count / at the smaller one that is best for it), over subsets."""
    other = np.log(chosen.pivot(index="subset", columns="count", values="other"))
    smaller = other.iloc[:, :-1]
    return interval(other.iloc[:, -1] - smaller[smaller.mean().idxmin()])


def kept_of(features: Features, shape: tuple[int, int]) -> dict[str, int]:
    """How many numbers are kept for each parameter, row and column of a matrix."""
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    kept = jax.eval_shape(lambda p: empty(p, features), params)
    per_parameter = len(kept.m) + len(kept.v)
    return {"parameter": per_parameter, "row": kept.row.shape[1], "column": kept.col.shape[1]}


def bytes_of(features: Features) -> float:
    """Bytes of state for each parameter of a matrix of 1,000 by 1,000."""
    kept = kept_of(features, (1_000, 1_000))
    return 4.0 * (kept["parameter"] + (kept["row"] + kept["column"]) / 1_000)


class Glimpse(NamedTuple):
    """What a small network sees and says of the first matrix of a network."""

    seen: np.ndarray  # [inputs parameters], each divided by its root mean square over the matrix
    gradient: float  # of the first parameter shown
    answer: tuple[float, float]  # direction and magnitude
    update: float


def glimpse(task: Task, learned: Learned, features: Features, steps: int, parameters: int) -> Glimpse:
    """Train with Adam for some steps beside the accumulators, and look at some parameters with large gradients.

    Args:
        task: what is trained.
        learned: of `per_parameter` with these features, as it is born.
        features: its accumulators.
        steps: of training before the look.
        parameters: how many.
    """
    tx, theta, params = optax.adam(1e-2), learned.init(jax.random.key(0)), task.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    shapes, decays = [p.shape for p in leaves], decays_of(theta, features)

    @jax.jit
    def step(carry, kept, key):
        after, _, grads = inner_step(task, tx, carry, task.batch(task.data, key))
        each = zip(apart(kept, tree, shapes), jax.tree.leaves(grads), strict=True)
        return after, together([accumulate(k, g, decays) for k, g in each], tree, shapes), grads

    carry, kept = (params, tx.init(params)), empty(params, features)
    for t in range(steps):
        before, _ = carry
        carry, kept, grads = step(carry, kept, jax.random.key(t))
    at = next(i for i, shape in enumerate(shapes) if len(shape) > 1)
    p, g, k = jax.tree.leaves(before)[at], jax.tree.leaves(grads)[at], apart(kept, tree, shapes)[at]
    inputs = side_by_side(seen_of(p, g, k), g.shape).reshape(features.seen(), -1)
    inputs = inputs / jnp.sqrt(jnp.mean(inputs**2, axis=1, keepdims=True) + 1e-5)
    shown = jnp.argsort(-jnp.abs(g.ravel()))[:parameters]
    times = jnp.broadcast_to(time_features(jnp.int32(steps - 1))[:, None], (len(TIMES), g.size))
    direction, magnitude = by_products(theta["layers"], jnp.concatenate([inputs, times]))
    first = shown[0]
    answer = float(direction[first]), float(magnitude[first])
    update = float(step_of(direction, magnitude)[first])
    return Glimpse(np.asarray(inputs[:, shown]), float(g.ravel()[first]), answer, update)
