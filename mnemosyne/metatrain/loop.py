"""Run a meta-training to its end, and go on after a kill: the outer loop, its log, its checkpoints, its snapshots.

What is run is a trainer: `truncated.Truncated` (paper App. B.1), `pes.PES` (persistent evolution strategies),
`search.Search` (whole runs) or `replicas.Replicas` (some of the first kind side by side). Each is a value with `start`,
`iterate`, `tasks`, `config`, `chunk` and `save_every`; `meta_train` knows no more of it. Where inner runs go on from
one outer step to the next, trainers share three functions: `begin`, `renew` for runs that are over, and `descend`.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from mnemosyne import store
from mnemosyne.types import State, Task, Theta


def meta_train(
    trainer: Any,
    *,
    folder: Path | None = None,
    report: Callable[[dict], None] = lambda row: None,
) -> tuple[Theta, list[dict]]:
    """Meta-train.

    Args:
        trainer: a `Truncated`, a `PES`, a `Search` or a `Replicas`. Its `chunk` iterations are compiled into
            one program, and a row of the log is their mean; every `save_every` iterations, θ and a checkpoint are
            saved. A measurement of several runs is a list in the log.
        folder: where `log.jsonl`, `checkpoint.safetensors` and snapshots of θ go. If it holds a checkpoint of
            the same configuration, training goes on from there, and ends in the same bits as if it had never
            stopped.
        report: called with each row of the log.

    Returns:
        (θ, log).

    Raises:
        ValueError: if the trainer's chunk does not divide the iterations, or the folder holds a checkpoint of
            another configuration.
    """
    iterations, chunk = trainer.config.iterations, trainer.chunk
    if iterations % chunk:
        raise ValueError(f"iterations must be a multiple of {chunk}, got {iterations}")
    carry, log = trainer.start(), []
    if folder is not None:
        carry, log = _resume(folder, carry, trainer)
    if log:
        print(f"{folder}: goes on from iteration {int(carry.iteration)}", flush=True)
    # A buffer of its own for every leaf, since all are donated, and no weak types, which would compile twice.
    carry = jax.tree.map(lambda a: jax.lax.convert_element_type(jnp.copy(a), a.dtype), carry)
    program = jax.jit(lambda carry, data: _iterate(trainer, carry, data), donate_argnums=0)
    data = tuple(t.data for t in trainer.tasks)
    for row in log:
        report(row)
    while int(carry.iteration) < iterations:
        began = time.perf_counter()
        carry, measured = program(carry, data)
        row = {"iteration": int(carry.iteration), **{k: np.asarray(v).tolist() for k, v in measured.items()}}
        row["seconds"] = round(time.perf_counter() - began, 3)
        log.append(row)
        if folder is not None:
            _save(folder, carry, row, row["iteration"] in (iterations, *range(0, iterations, trainer.save_every)))
        report(row)
    return carry.theta, log


class Carry(NamedTuple):
    """Everything a trainer with lasting inner runs goes on from; what a checkpoint holds."""

    theta: Theta
    meta: State  # of the meta-optimizer
    slots: tuple[Any, ...]  # the inner runs of each task, with a field `age`, [r]
    iteration: Array  # int32


def begin(
    config: Any,
    init: Callable[[Array], Theta],
    fresh: Callable[[Task, Theta, Array], Any],
    tasks: tuple[Task, ...],
    runs: int,
    horizon: Callable[[Any], int | Array],
) -> Carry:
    """Make θ and all inner runs at iteration 0, their ages staggered, so that every outer step sees all phases.

    Args:
        config: with `seed` and `window`, and what `meta_adam` reads.
        init: key → θ.
        fresh: (task, θ, key) → inner runs of age 0.
        tasks: what they train.
        runs: of each task.
        horizon: inner runs of a task → the steps after which they are over, one number or [runs].
    """
    key = jax.random.key(config.seed)
    theta = init(jax.random.fold_in(key, 1))
    slots = []
    for i, task in enumerate(tasks):
        new = fresh(task, theta, jax.random.fold_in(key, 2 + i))
        turn = (i + np.arange(runs)) * config.window
        slots.append(new._replace(age=jnp.asarray(turn % horizon(new), jnp.int32)))
    return Carry(theta, meta_adam(config).init(theta), tuple(slots), jnp.zeros((), jnp.int32))


def renew(old: Any, fresh: Any, over: Bool[Array, "r"]) -> Any:
    """Replace the inner runs that are over by fresh ones; every leaf has a leading axis of runs."""
    choose = lambda new, was: jnp.where(over.reshape(-1, *(1,) * (was.ndim - 1)), new, was)
    return jax.tree.map(choose, fresh, old)


def descend(config: Any, carry: Carry, gradient: Theta) -> tuple[Theta, State, Array, Array]:
    """Move θ by one step of `meta_adam`.

    Returns:
        (θ, state of the meta-optimizer, norm of the gradient, whether it was finite). One that is not teaches nothing,
        and counts as zero.
    """
    norm = optax.global_norm(gradient)
    usable = jnp.isfinite(norm)
    gradient = jax.tree.map(lambda g: jnp.where(usable, g, 0.0), gradient)
    update, meta = meta_adam(config).update(gradient, carry.meta, carry.theta)
    return optax.apply_updates(carry.theta, update), meta, norm, usable


def check_positive(config: Any, *names: str) -> None:
    """Raise a ValueError unless these fields of a configuration are at least one."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def meta_adam(config: Any) -> optax.GradientTransformation:
    """Adam on θ with a clipped gradient: `config`'s learning_rate, cosine-decayed to a tenth over its iterations."""
    rate = optax.cosine_decay_schedule(config.learning_rate, config.iterations, alpha=0.1)
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))


def _iterate(trainer: Any, carry: Any, data: tuple) -> tuple[Any, dict]:
    """A chunk of meta-steps in one program; measurements are their means."""
    carry, measured = jax.lax.scan(lambda c, _: trainer.iterate(c, data), carry, None, length=trainer.chunk)
    return carry, jax.tree.map(lambda a: jnp.mean(a, axis=0), measured)


def _resume(folder: Path, start: Any, trainer: Any) -> tuple[Any, list[dict]]:
    folder.mkdir(parents=True, exist_ok=True)
    shapes = dict(zip(store.names(start.theta), (list(a.shape) for a in jax.tree.leaves(start.theta)), strict=True))
    about = {"trainer": type(trainer).__name__, "config": asdict(trainer.config), "theta": shapes}
    identity = json.dumps({**about, "tasks": [t.name for t in trainer.tasks]}, indent=1)
    note = folder / "config.json"
    if note.exists() and note.read_text() != identity:
        raise ValueError(f"{folder} holds a run of another configuration: {note}. Choose another folder.")
    note.write_text(identity)
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.exists():
        (folder / "log.jsonl").unlink(missing_ok=True)
        return start, []
    carry = store.load_tree(checkpoint, start)
    log = [row for row in read_log(folder) if row["iteration"] <= int(carry.iteration)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return carry, log


def read_log(folder: Path) -> Iterator[dict]:
    """Read a run's `log.jsonl`, leaving out a last line that a crash cut short."""
    for line in (folder / "log.jsonl").read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _save(folder: Path, carry: Any, row: dict, keep: bool) -> None:
    """Append the row; now and then save θ for selection and a checkpoint to go on from."""
    with (folder / "log.jsonl").open("a") as f:
        f.write(json.dumps(row) + "\n")
    if keep:
        store.save_tree(folder / f"theta-{row['iteration']:06d}.safetensors", carry.theta)
        store.save_tree(folder / "checkpoint.safetensors", carry)
