"""What a learned optimizer adds to a step of training: seconds of whole steps, rounds in which all take turns.

Weights do not change what a step costs, so these optimizers have those they are born with.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array

from mnemosyne.book.bench import ROUNDS, per_call, seconds_per_step, stepper
from mnemosyne.book.verdicts import log_ratio
from mnemosyne.memory.compact import cam
from mnemosyne.memory.recurrent import lstm
from mnemosyne.metatrain.pes import PES, PESConfig
from mnemosyne.optimizer.composite import state_bytes
from mnemosyne.optimizer.controlled_adam import nn_adam
from mnemosyne.optimizer.hierarchical import rnn_fc
from mnemosyne.optimizer.perparameter import by_elements, by_products, fc, side_by_side, small_fc, truncated_init
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.unit_direction import celo2
from mnemosyne.tasks import data, suite
from mnemosyne.tasks.models.transformer import count
from mnemosyne.types import Learned, Task, Theta

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
    return learned.make(learned.init(jax.random.key(0)))


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


def ours(names: Sequence[str]) -> dict[str, optax.GradientTransformation]:
    """Named optimizers of this package, by label."""
    return {OPTIMIZERS[name].label: born(OPTIMIZERS[name].learned) for name in names}


def steps(task: Task, contenders: dict[str, optax.GradientTransformation], rounds: int, calls: int) -> pd.DataFrame:
    """Seconds of a training step: a row for each round, a column for each contender."""
    return seconds_per_step({label: (task, tx) for label, tx in contenders.items()}, rounds, calls)


def over(seconds: pd.DataFrame, base: str = "Adam") -> pd.DataFrame:
    """Seconds over a base's, round by round: rows (optimizer, ms, times, low, high, log_ratio, half); 95% intervals."""
    rows = []
    for name in seconds.columns.drop(base):
        mean, half = log_ratio(seconds[name], seconds[base])
        ratio = dict(zip(("times", "low", "high"), np.exp([mean, mean - half, mean + half]), strict=True))
        rows.append({"optimizer": name, "ms": 1e3 * seconds[name].median(), **ratio, "log_ratio": mean, "half": half})
    return pd.DataFrame(rows)


def image_mlp(name: str, width: int, batch: int) -> Task:
    """Two hidden layers on 28×28 pixels in grey, as large as in Metz et al. 2022 if the width is 128."""
    return suite.mlp(data.resize(data.load(name), 28, 1), (width, width), "relu", batch)


def image_conv(name: str, width: int, batch: int) -> Task:
    """Three convolutions on 16×16 pixels in three colours, as large as in Metz et al. 2022 if the width is 64."""
    images = data.resize(data.load(name), 16, 3 if data.load(name).train.images.shape[3] in (1, 3) else 1)
    return suite.pooled_conv(images, (width // 2, width, width), (2, 1, 1), batch)


def full_size(make: Callable[..., Task], name: str, width: int, names: Sequence[str], rounds: int) -> pd.DataFrame:
    """Seconds of a step with every optimizer: a row for each round, a column for each.

    Args:
        make: (name of images, width, batch) → task.
        name: of images.
        width: of the network.
        names: of this package, besides `ARCHITECTURES` and `hand_made`.
        rounds: of timing.
    """
    return steps(make(name, width, 128), everyone(names), rounds, calls=3)


def everyone(names: Sequence[str]) -> dict[str, optax.GradientTransformation]:
    """Those of users, those of the second paper, and named ones of this package, by label."""
    return hand_made() | {label: born(of) for label, of in ARCHITECTURES.items()} | ours(names)


def bytes_held(name: str, names: Sequence[str]) -> dict[str, float]:
    """Bytes of state per parameter of the full-size MLP, by optimizer."""
    task = image_mlp(name, 128, 128)
    params = jax.eval_shape(task.init, jax.random.key(0))
    held = {label: state_bytes(tx, params) / count(params) for label, tx in everyone(names).items()}
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
        found = over(steps(make(name, width, batch), contenders, rounds, calls=3))
        rows.append(found.assign(width=width, batch=batch))
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


def large(models: dict[str, int], name: str, rounds: int) -> pd.DataFrame:
    """Overhead of small_fc over Adam on large networks: rows (model, parameters, batch, adam_ms, ms, times, …).

    Args:
        models: name of Tab. 1 → batch.
        name: of images.
        rounds: of timing.
    """
    rows = []
    for model, batch in models.items():
        task = full_model(model, name, batch)
        contenders = {"Adam": optax.adam(1e-3), "small_fc": born(ARCHITECTURES["small_fc"])}
        seconds = steps(task, contenders, rounds, calls=1)
        about = {"model": model, "parameters": count(jax.eval_shape(task.init, jax.random.key(0))), "batch": batch}
        rows.append(over(seconds).assign(**about, adam_ms=1e3 * seconds["Adam"].median()))
    return pd.concat(rows, ignore_index=True)


def prices(sizes: Sequence[int], names: Sequence[str], rounds: int = ROUNDS) -> pd.DataFrame:
    """What an update costs, for every optimizer: weights, bytes, and time over Adam's at several sizes.

    Args:
        sizes: parameters of one matrix of 100 columns.
        names: of this package, besides `ARCHITECTURES` and `hand_made`.
        rounds: medians of so many; contenders take turns.

    Returns:
        Rows (optimizer, weights, bytes, parameters, ns, times): bytes of state and nanoseconds per parameter. An
        optimizer whose state takes a gigabyte or more has no row.
    """
    learned = ARCHITECTURES | {OPTIMIZERS[name].label: OPTIMIZERS[name].learned for name in names}
    weights = {label: count(jax.eval_shape(of.init, jax.random.key(0))) for label, of in learned.items()}
    contenders = hand_made() | {label: born(of) for label, of in learned.items()}
    rows = []
    for n in sizes:
        params = {"w": jnp.ones((n // 100, 100))}
        grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
        fits = {k: tx for k, tx in contenders.items() if state_bytes(tx, params) < 1e9}
        timed = {k: updating(tx, grads, params) for k, tx in fits.items()}
        spent = pd.DataFrame([{k: once() for k, once in timed.items()} for _ in range(rounds)])
        for label, tx in fits.items():
            time = spent[label].median()
            row = {"optimizer": label, "weights": weights.get(label, 0), "bytes": state_bytes(tx, params) / n}
            rows.append(row | {"parameters": n, "ns": 1e9 * time / n, "times": time / spent["Adam"].median()})
    return pd.DataFrame(rows)


def updating(tx: optax.GradientTransformation, grads: Theta, params: Theta) -> Callable[[], float]:
    """A function that makes one update and returns its seconds."""
    knowing = optax.with_extra_args_support(tx)
    given = {"value": jnp.float32(1.0), "horizon": jnp.float32(1_000.0)}
    held = optax.GradientTransformation(tx.init, lambda g, state: knowing.update(g, state, params, **given))
    return stepper(held, grads, jax.tree.map(jnp.copy, tx.init(params)))


def evolving(name: str, labels: Sequence[str], pairs: Sequence[int], rounds: int = ROUNDS) -> pd.DataFrame:
    """How fast evolution trains its networks: an MLP of 32 units on 8×8 pixels, batches of 128, windows of 20.

    Args:
        name: of images.
        labels: keys of `ARCHITECTURES`; Adam, whose rate evolves, is added.
        pairs: of runs side by side; one after another.
        rounds: medians of so many.

    Returns:
        Rows (optimizer, pairs, steps): training steps a second, over all runs together.
    """
    task = suite.mlp(data.resize(data.load(name), 8, 1), (32,), "relu", batch_size=128)
    adam = Learned(lambda key: {"rate": jnp.float32(1e-3)}, lambda theta: optax.adam(theta["rate"]))
    rows = []
    for label, learned in {"Adam": adam, **{label: ARCHITECTURES[label] for label in labels}}.items():
        for count_of in pairs:
            evolution = PES(learned, (task,), PESConfig(window=20, horizons=(2_000,), pairs=count_of))
            step = jax.jit(lambda carry, evolution=evolution: evolution.iterate(carry, (task.data,))[0])
            seconds = np.median([per_call(step, evolution.start(), calls=2) for _ in range(rounds)])
            rows.append((label, count_of, 2 * count_of * 20 / seconds))
    return pd.DataFrame(rows, columns=["optimizer", "pairs", "steps"])


def forms(widths: Sequence[int], parameters: int = 100_000, inputs: int = 28, rounds: int = ROUNDS) -> pd.DataFrame:
    """Time the network of small_fc alone, by products with matrices and by sums of whole arrays.

    Returns:
        Rows (width, form, ns): nanoseconds per parameter, a row for each round.
    """
    seen = [jax.random.normal(jax.random.key(i), (parameters // 100, 100)) for i in range(inputs)]
    functions = {"products": lambda layers, seen: by_products(layers, side_by_side(seen, seen[0].shape))}
    functions |= {"elements": by_elements}
    compiled = {k: jax.jit(partial(_summed, f)) for k, f in functions.items()}
    rows = []
    for width in widths:
        sizes = [inputs, width, width, 2]
        keys = jax.random.split(jax.random.key(0), 3)
        layers = [truncated_init(k, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]
        for _ in range(rounds):
            for form, f in compiled.items():
                rows.append((width, form, 1e9 * per_call(f, layers, seen, calls=3) / parameters))
    return pd.DataFrame(rows, columns=["width", "form", "ns"])


def _summed(f: Callable, layers: list[Theta], seen: list[Array]) -> Array:
    direction, magnitude = f(layers, seen)
    return direction * jnp.exp(magnitude)
