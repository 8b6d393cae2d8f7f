"""What an update costs alone, in its forms and at several sizes, and how fast evolution trains its networks."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array

from mnemosyne.book.bench import ROUNDS, in_turns, per_call, stepper
from mnemosyne.book.studies.overhead import ARCHITECTURES, everyone
from mnemosyne.metatrain.pes import PES, PESConfig
from mnemosyne.optimizer.composite import state_bytes
from mnemosyne.optimizer.perparameter import by_elements, by_products, side_by_side, truncated_init
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.tasks import data, suite
from mnemosyne.tasks.models.transformer import count
from mnemosyne.types import Learned, Theta


def prices(size: int, labels: Sequence[str], names: Sequence[str], rounds: int = ROUNDS) -> pd.DataFrame:
    """What an update of a matrix of 100 columns costs, by optimizer: weights, bytes, and time over Adam's.

    Args:
        size: parameters.
        labels: keys of `ARCHITECTURES`.
        names: of this package.
        rounds: medians of so many, in which the optimizers take turns, each with three updates.

    Returns:
        Rows (optimizer, weights, bytes, parameters, ns, times): bytes of state and nanoseconds per parameter. The
        time is missing where the state takes a gigabyte or more.
    """
    params = {"w": jnp.ones((size // 100, 100))}
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
    learned = ARCHITECTURES | {OPTIMIZERS[name].label: OPTIMIZERS[name].learned for name in names}
    rows, timers = {}, {}
    for label, tx in everyone(labels, names).items():
        weights = count(jax.eval_shape(learned[label].init, jax.random.key(0))) if label in learned else 0
        held = state_bytes(tx, params)
        rows[label] = {"weights": weights, "bytes": held / size, "parameters": size}
        if held < 1e9:
            timers[label] = updating(tx, grads, params)
    spent = in_turns(timers, rounds, calls=3).median()
    table = pd.DataFrame.from_dict(rows, orient="index").assign(ns=1e9 * spent / size, times=spent / spent["Adam"])
    return table.rename_axis("optimizer").reset_index()


def updating(tx: optax.GradientTransformation, grads: Theta, params: Theta) -> Callable[[], float]:
    """A function that makes one update and returns its seconds."""
    knowing = optax.with_extra_args_support(tx)
    given = {"value": jnp.float32(1.0), "horizon": jnp.float32(1_000.0)}
    held = optax.GradientTransformation(tx.init, lambda g, state: knowing.update(g, state, params, **given))
    return stepper(held, grads, jax.tree.map(jnp.copy, tx.init(params)))


def evolving(name: str, label: str, pairs: Sequence[int], rounds: int = ROUNDS) -> pd.DataFrame:
    """How fast evolution trains its networks: an MLP of 32 units on 8×8 pixels, batches of 128, windows of 20.

    Args:
        name: of images.
        label: a key of `ARCHITECTURES`, or "Adam", whose rate evolves.
        pairs: of runs side by side; one after another.
        rounds: medians of so many.

    Returns:
        Rows (optimizer, pairs, steps): training steps a second, over all runs together.
    """
    task = suite.mlp(data.resize(data.load(name), 8, 1), (32,), "relu", batch_size=128)
    adam = Learned(lambda key: {"rate": jnp.float32(1e-3)}, lambda theta: optax.adam(theta["rate"]))
    rows = []
    for side_by_side_pairs in pairs:
        config = PESConfig(window=20, horizons=(2_000,), pairs=side_by_side_pairs)
        evolution = PES(ARCHITECTURES.get(label, adam), (task,), config)
        step = jax.jit(lambda carry, evolution=evolution: evolution.iterate(carry, (task.data,))[0])
        seconds = np.median([per_call(step, evolution.start(), calls=2) for _ in range(rounds)])
        rows.append((label, side_by_side_pairs, 2 * side_by_side_pairs * config.window / seconds))
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
