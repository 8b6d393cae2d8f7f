"""Run a meta-training to its end, and go on after a kill: the loop, its log, its checkpoints, its snapshots.

What is run is a trainer: `truncated.Truncated` (paper App. B.1), `evolution.PES` (persistent evolution
strategies), `search.Search` (whole runs) or `several.Replicas` (some of the first kind side by side). Each is a value
with `start`, `iterate`, `tasks`, `config`, `chunk` and `save_every`; this module knows no more of it.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnemosyne import store
from mnemosyne.types import Theta


def meta_train(
    trainer: Any,
    *,
    folder: Path | None = None,
    report: Callable[[dict], None] = lambda row: None,
) -> tuple[Theta, list[dict]]:
    """Meta-train.

    Args:
        trainer: a `Truncated`, an `PES`, a `Search` or a `Replicas`. Its `chunk` iterations are compiled into
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
