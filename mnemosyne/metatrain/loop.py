"""Run a meta-training to its end, and go on after a kill: the outer loop, its log, its checkpoints, its snapshots.

What is run is a trainer: `truncated.Truncated` (paper App. B.1), `pes.PES` (persistent evolution strategies),
`search.Search` (whole runs) or `replicas.Replicas` (some of the first kind side by side). Each is a value with `start`,
`iterate`, `tasks`, `config`, `chunk` and `save_every`; `meta_train` knows no more of it. Where inner runs go on from
one outer step to the next, trainers share three functions: `begin`, `renew` for runs that are over, and `descend`. The
files are those of `run_folder`.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from mnemosyne import store
from mnemosyne.metatrain.checks import check_chunks
from mnemosyne.metatrain.run_folder import RunFolder, opened
from mnemosyne.types import State, Task, Theta

EVERY = (10.0, 60.0)
"""Seconds between checkpoints: at least and at most; in between, twenty times what saving one has taken."""


def meta_train(
    trainer: Any,
    *,
    folder: Path | None = None,
    report: Callable[[dict], None] = lambda row: None,
) -> tuple[Theta, list[dict]]:
    """Meta-train.

    Args:
        trainer: a `Truncated`, a `PES`, a `Search` or a `Replicas`. Its `chunk` iterations are compiled into
            one program, and a row of the log is their mean; every `save_every` iterations, a snapshot of θ is saved. A
            measurement of several runs is a list in the log.
        folder: where `log.jsonl`, checkpoints and snapshots of θ go. A checkpoint is saved with each snapshot and, by
            the time of `EVERY`, between them. If the folder holds one of the same configuration, training goes on from
            there, and ends in the same bits as if it had never stopped. A checkpoint that is damaged is told, and
            training goes on from the one before, or starts again.
        report: called with each row of the log.

    Returns:
        (θ, log).

    Raises:
        ValueError: if the trainer's chunk does not divide the iterations, or the folder holds a checkpoint of
            another configuration.
        store.StoreError: if another process meta-trains into the folder, or a file cannot be written.
    """
    check_chunks(trainer, trainer.config)
    if folder is None:
        return run(trainer, None, report)
    with opened(folder, identity(trainer)) as kept:
        return run(trainer, kept, report)


def run(trainer: Any, folder: RunFolder | None, report: Callable[[dict], None]) -> tuple[Theta, list[dict]]:
    """Meta-train into a folder that is open already; see `meta_train`."""
    known = folder and folder.last(jax.eval_shape(trainer.start))
    carry, log = known or (trainer.start(), [])
    if known:
        print(f"{folder}: goes on from iteration {int(carry.iteration)}", flush=True)
    # A buffer of its own for every leaf, since all are donated, and no weak types, which would compile twice.
    carry = jax.tree.map(lambda a: jax.lax.convert_element_type(jnp.copy(a), a.dtype), carry)
    program = jax.jit(lambda carry, data: _iterate(trainer, carry, data), donate_argnums=0)
    data, iterations = tuple(t.data for t in trainer.tasks), trainer.config.iterations
    if folder is not None:
        folder.row(log)
    for row in log:
        report(row)
    saved, cost = time.monotonic(), 0.0
    while int(carry.iteration) < iterations:
        began = time.perf_counter()
        carry, measured = program(carry, data)
        row = {"iteration": int(carry.iteration), **{k: np.asarray(v).tolist() for k, v in measured.items()}}
        row["seconds"] = round(time.perf_counter() - began, 3)
        log.append(row)
        if folder is not None:
            folder.row(log)
            keep = row["iteration"] in (iterations, *range(0, iterations, trainer.save_every))
            if keep:
                folder.snapshot(carry.theta, row["iteration"])
            if keep or time.monotonic() - saved >= _pause(cost):
                saving = time.monotonic()
                folder.checkpoint(carry, log)
                saved = time.monotonic()
                cost = saved - saving
        report(row)
    return carry.theta, log


def _pause(cost: float) -> float:
    """Seconds from a checkpoint to the next, if one takes `cost` seconds."""
    return float(np.clip(20.0 * cost, *EVERY))


def identity(trainer: Any) -> dict:
    """What makes two runs the same: the trainer, its configuration, the shapes of θ, the tasks' names."""
    theta = jax.eval_shape(trainer.start).theta
    shapes = dict(zip(store.names(theta), (list(a.shape) for a in jax.tree.leaves(theta)), strict=True))
    about = {"trainer": type(trainer).__name__, "config": asdict(trainer.config), "theta": shapes}
    return {**about, "tasks": [t.name for t in trainer.tasks]}


class Carry(NamedTuple):
    """Everything a trainer with lasting inner runs goes on from; what a checkpoint holds."""

    theta: Theta
    meta: State  # of the meta-optimizer
    slots: tuple[Any, ...]  # the inner runs of each task, with a field `age`, [r]
    iteration: Array  # int32


def begin(
    config: Any,
    meta: optax.GradientTransformation,
    init: Callable[[Array], Theta],
    fresh: Callable[[Task, Theta, Array], Any],
    tasks: tuple[Task, ...],
    ages: Callable[[int, Any], Array],
) -> Carry:
    """Make θ and all inner runs at iteration 0, their ages staggered, so that every outer step sees all phases.

    Args:
        config: with a `seed`.
        meta: the meta-optimizer.
        init: key → θ.
        fresh: (task, θ, key) → inner runs of age 0.
        tasks: what they train.
        ages: (number of a task, its inner runs) → the steps that each counts as having behind it, [runs].
    """
    key = jax.random.key(config.seed)
    theta = init(jax.random.fold_in(key, 1))
    slots = []
    for i, task in enumerate(tasks):
        new = fresh(task, theta, jax.random.fold_in(key, 2 + i))
        slots.append(new._replace(age=jnp.asarray(ages(i, new), jnp.int32)))
    return Carry(theta, meta.init(theta), tuple(slots), jnp.zeros((), jnp.int32))


def renew(old: Any, fresh: Any, over: Bool[Array, "r"]) -> Any:
    """Replace the inner runs that are over by fresh ones; every leaf has a leading axis of runs."""
    choose = lambda new, was: jnp.where(over.reshape(-1, *(1,) * (was.ndim - 1)), new, was)
    return jax.tree.map(choose, fresh, old)


def descend(meta: optax.GradientTransformation, carry: Carry, gradient: Theta) -> tuple[Theta, State, Array, Array]:
    """Move θ by one step of the meta-optimizer.

    Returns:
        (θ, state of the meta-optimizer, norm of the gradient, whether it was finite). One that is not teaches nothing,
        and counts as zero.
    """
    norm = optax.global_norm(gradient)
    usable = jnp.isfinite(norm)
    gradient = jax.tree.map(lambda g: jnp.where(usable, g, 0.0), gradient)
    update, state = meta.update(gradient, carry.meta, carry.theta)
    return optax.apply_updates(carry.theta, update), state, norm, usable


def meta_adam(config: Any, clip: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam on θ with a clipped gradient: `config`'s learning_rate, cosine-decayed to a tenth over its iterations."""
    rate = optax.cosine_decay_schedule(config.learning_rate, config.iterations, alpha=0.1)
    return optax.chain(clip, optax.adam(rate))


def _iterate(trainer: Any, carry: Any, data: tuple) -> tuple[Any, dict]:
    """A chunk of meta-steps in one program; measurements are their means."""
    carry, measured = jax.lax.scan(lambda c, _: trainer.iterate(c, data), carry, None, length=trainer.chunk)
    return carry, jax.tree.map(lambda a: jnp.mean(a, axis=0), measured)
