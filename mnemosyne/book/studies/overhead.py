"""What a learned optimizer adds to a step of training: seconds of whole steps, rounds in which all take turns.

Weights do not change what a step costs, so these optimizers have those they are born with.
"""

import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
import pandas as pd

from mnemosyne.book.bench import seconds_per_step
from mnemosyne.book.verdicts import log_ratio
from mnemosyne.memory.compact import cam
from mnemosyne.memory.recurrent import lstm
from mnemosyne.optimizer.composite import state_bytes
from mnemosyne.optimizer.controlled_adam import nn_adam
from mnemosyne.optimizer.hierarchical import rnn_fc
from mnemosyne.optimizer.perparameter import fc, small_fc
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.unit_direction import celo2
from mnemosyne.tasks import data, suite
from mnemosyne.tasks.models.transformer import count
from mnemosyne.types import Learned, Task

ARCHITECTURES: dict[str, Learned] = {
    "small_fc": small_fc(),
    "fc": fc(),
    "rnn_fc": rnn_fc(lstm(hidden=64)),
    "nn_adam": nn_adam(lstm(hidden=32)),
    "nn_adam, CAM": nn_adam(cam(projections=2)),
    "Celo2's kind": celo2(),
}
"""Of the second paper and its successor, by label; a CAM with about as much state as the LSTM it stands for."""


def born(learned: Learned) -> optax.GradientTransformation:
    """An optimizer with the weights it is born with."""
    return learned.make(jax.jit(learned.init)(jax.random.key(0)))


def hand_made() -> dict[str, optax.GradientTransformation]:
    """What users have: with rates that do not matter here."""
    return {
        "Adam": optax.adam(1e-3),
        "AdamW": optax.adamw(1e-3),
        "Lion": optax.lion(1e-4),
        "Adafactor": optax.adafactor(1e-3),
        "Prodigy": optax.contrib.prodigy(),
        "schedule-free AdamW": optax.contrib.schedule_free_adamw(2.5e-3),
    }


def over(seconds: pd.DataFrame) -> pd.DataFrame:
    """Seconds over Adam's, round by round: rows (optimizer, ms, times, low, high, log_ratio, half); 95% intervals."""
    rows = []
    for name in seconds.columns.drop("Adam"):
        mean, half = log_ratio(seconds[name], seconds["Adam"])
        ratio = dict(zip(("times", "low", "high"), np.exp([mean, mean - half, mean + half]), strict=True))
        rows.append({"optimizer": name, "ms": 1e3 * seconds[name].median(), **ratio, "log_ratio": mean, "half": half})
    return pd.DataFrame(rows)


def image_mlp(name: str, width: int, batch: int) -> Task:
    """Two hidden layers on 28×28 pixels in grey, as large as in Metz et al. 2022 if the width is 128."""
    return suite.mlp(data.resize(data.load(name), 28, 1), (width, width), "relu", batch)


def image_conv(name: str, width: int, batch: int) -> Task:
    """Three convolutions on 16×16 pixels in three colours, as large as in Metz et al. 2022 if the width is 64."""
    return suite.pooled_conv(data.resize(data.load(name), 16, 3), (width // 2, width, width), (2, 1, 1), batch)


def full_size(
    make: Callable[..., Task], name: str, width: int, labels: Sequence[str], names: Sequence[str], rounds: int
) -> pd.DataFrame:
    """Seconds of a step with every optimizer: a row for each round, a column for each.

    Args:
        make: (name of images, width, batch) → task.
        name: of images.
        width: of the network.
        labels: keys of `ARCHITECTURES`.
        names: of this package.
        rounds: of timing.
    """
    task = make(name, width, 128)
    return seconds_per_step({label: (task, tx) for label, tx in everyone(labels, names).items()}, rounds, calls=3)


def everyone(labels: Sequence[str], names: Sequence[str]) -> dict[str, optax.GradientTransformation]:
    """What users have, some of the second paper's, and named ones of this package, by label."""
    learned = {label: ARCHITECTURES[label] for label in labels} | {
        OPTIMIZERS[name].label: OPTIMIZERS[name].learned for name in names
    }
    return hand_made() | {label: born(of) for label, of in learned.items()}


def bytes_held(name: str, labels: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Bytes of state per parameter of the full-size MLP, by optimizer."""
    task = image_mlp(name, 128, 128)
    params = jax.eval_shape(task.init, jax.random.key(0))
    held = {label: state_bytes(tx, params) / count(params) for label, tx in everyone(labels, names).items()}
    return held | {"NAdamW": held["AdamW"]}


def swept(
    make: Callable[..., Task], name: str, widths: Sequence[int], batches: Sequence[int], rounds: int
) -> pd.DataFrame:
    """Overhead of small_fc and of nn_adam over Adam: rows (width, batch, optimizer, times, …), one axis at a time.

    Args:
        make: (name of images, width, batch) → task.
        name: of images.
        widths: at a batch of 128.
        batches: at the middle one of the widths.
        rounds: of timing.
    """
    middle, rows = widths[len(widths) // 2], []
    contenders = {"Adam": optax.adam(1e-3)} | {k: born(ARCHITECTURES[k]) for k in ("small_fc", "nn_adam")}
    cells = dict.fromkeys([*((width, 128) for width in widths), *((middle, batch) for batch in batches)])
    for width, batch in cells:
        task = make(name, width, batch)
        seconds = seconds_per_step({label: (task, tx) for label, tx in contenders.items()}, rounds, calls=3)
        rows.append(over(seconds).assign(width=width, batch=batch))
    return pd.concat(rows, ignore_index=True)


def full_model(model: str, name: str, batch: int) -> Task:
    """A network of Tab. 1 on 32×32 pixels or on text, by the name that it has there.

    Args:
        model: "ResNet-18", "ResNet-50", or "Transformer, L", six layers of 768 over L characters.
        name: of images.
        batch: examples a step.
    """
    kind, size = re.fullmatch(r"(\w+)\W+(\d+)", model).groups()
    if kind == "Transformer":
        return suite.attentive(data.load_text("synthetic"), 6, 12, 768, 4 * 768, int(size), batch)
    blocks, bottleneck = {"18": ((2, 2, 2, 2), False), "50": ((3, 4, 6, 3), True)}[size]
    return suite.residual(data.resize(data.load(name), 32, 3), blocks, bottleneck, batch_size=batch)


def large(model: str, name: str, batch: int, rounds: int) -> pd.DataFrame:
    """Overhead of small_fc over Adam on one large network: a row (model, parameters, batch, adam_ms, ms, times, …).

    Args:
        model: a name of Tab. 1, see `full_model`.
        name: of images.
        batch: examples a step.
        rounds: of timing.
    """
    task = full_model(model, name, batch)
    contenders = {"Adam": optax.adam(1e-3), "small_fc": born(ARCHITECTURES["small_fc"])}
    seconds = seconds_per_step({label: (task, tx) for label, tx in contenders.items()}, rounds)
    about = {"model": model, "parameters": count(jax.eval_shape(task.init, jax.random.key(0))), "batch": batch}
    return over(seconds).assign(**about, adam_ms=1e3 * seconds["Adam"].median())
