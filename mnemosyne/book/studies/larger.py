"""Networks larger than those that meta-training saw: how long steps should be, who trains two of them, the cost."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
from matplotlib.axes import Axes

from mnemosyne.book import plotting
from mnemosyne.book.bench import ROUNDS, seconds_per_step
from mnemosyne.book.studies import rivals
from mnemosyne.evaluate import ADAM, Contender, meta_trained, untuned
from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.slim import SMALL
from mnemosyne.tasks import data, load_text, suite
from mnemosyne.tasks.models import networks
from mnemosyne.tasks.models.transformer import count
from mnemosyne.types import Task

RATES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Of the tuned ones; tables mark a best rate that is at the edge. The networks of `sized` do without the last."""

TUNED = ADAM._replace(rates=RATES[:-1])

FACTORS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)

_LENGTH = 64  # characters


def sized(images: str, text: str) -> list[Task]:
    """The networks that the rule for size was chosen on, of kinds and on data that the search of `slim` saw.

    They are in the order of their size at `laptop`.
    """
    loaded, characters = data.load(images), load_text(text)
    low, middle, tiled = (suite.small(loaded, side) for side in (7, 14, 16))
    return [
        suite.vit(tiled, layers=2, heads=2, hidden=32, head_dim=16, mlp=64, batch_size=32),
        suite.attentive(characters, layers=2, heads=2, hidden=32, mlp=64, batch_size=8),
        suite.mlp(low, (512,), "gelu"),
        suite.mlp(middle, (128, 128), "relu"),
        suite.attentive(characters, layers=2, heads=2, hidden=64, mlp=128, batch_size=8),
        suite.vit(tiled, layers=6, heads=4, hidden=64, head_dim=16, mlp=128, batch_size=16),
        suite.attentive(characters, layers=4, heads=4, hidden=64, mlp=256, batch_size=8),
        suite.mlp(middle, (512, 512), "relu"),
        suite.mlp(middle, (256,) * 6, "tanh"),
        suite.attentive(characters, layers=4, heads=4, hidden=128, mlp=512, length=_LENGTH, batch_size=4),
        suite.mlp(middle, (1024, 1024), "relu"),
    ]


def multiplied() -> Contender:
    """The recommended optimizer with its steps multiplied by each of `FACTORS`, which stand for a rate."""
    label = f"{OPTIMIZERS[zoo.RECOMMENDED].label}, multiplied"
    return Contender(label, lambda factor: zoo.pretrained(step_size=factor), FACTORS)


def parameters(task: Task) -> int:
    """How many numbers a task trains."""
    return count(jax.eval_shape(task.init, jax.random.key(0)))


def over_adam(rows: pd.DataFrame) -> pd.DataFrame:
    """Loss over the best Adam's at each factor, and where steps would be without the rule for size.

    Args:
        rows: of `evaluate.train` at one step, of `TUNED` and `multiplied`, with a column of `parameters`.

    Returns:
        A column for each factor, and `factor` and `without`: the factor that undoes the rule, and the ratio there, read
        off between its neighbours. By (parameters, task), from the smallest network to the largest.
    """
    losses = rows.groupby(["optimizer", "parameters", "task", "rate"]).train_loss.mean().unstack("rate")
    ratio = losses.loc[multiplied().name][sorted(FACTORS)].div(losses.loc[TUNED.name].min(axis=1), axis=0)
    factor = np.sqrt(np.maximum(ratio.index.get_level_values("parameters") / SMALL, 1.0))
    at = np.log(sorted(FACTORS))
    without = [np.exp(np.interp(np.log(f), at, np.log(row))) for f, row in zip(factor, ratio.to_numpy(), strict=True)]
    return ratio.assign(factor=factor, without=without)


def by_factor(ax: Axes, ratio: pd.DataFrame) -> None:
    """Draw `over_adam`, a line per network, the darker the larger; a cross stands where steps are without the rule."""
    for depth, ((size, task), row) in zip(np.linspace(0.15, 1.0, len(ratio)), ratio.iterrows(), strict=True):
        color = plt.colormaps["viridis_r"](depth)
        ax.plot(sorted(FACTORS), row[sorted(FACTORS)], "o-", ms=2.5, color=color, label=f"{task}: {size:,}")
        ax.plot([row.factor], [row.without], "x", ms=6, mew=1.6, color=color)
    ax.axhline(1.0, color="0.6", lw=0.8, ls=":")
    ax.axvline(1.0, color="0.6", lw=0.8, ls=":")
    plotting.log_losses(ax)
    plotting.log_across(ax)


def language(name: str, size: tuple[int, int]) -> Task:
    """Foretell each next of 64 characters by a Transformer of (layers, width), with heads of 64, four stretches a step.

    Of the validation text 64 stretches are read: more would take too much of the time.
    """
    layers, width = size
    text = load_text(name)
    text = text._replace(validation=text.validation[: _LENGTH * 64 + 1])
    return suite.attentive(text, layers, max(width // 64, 1), width, 4 * width, length=_LENGTH, batch_size=4)


def pictures(name: str, width: int) -> Task:
    """Classify photos by a ResNet-18 whose first stage has `width` channels, 16 photos a step; 256 for validation."""
    images = suite.small(data.load(name), 32)
    held = images.validation
    few = held._replace(images=held.images[:256], labels=held.labels[:256])
    return suite.residual(
        images._replace(validation=few), (2, 2, 2, 2), width=width, batch_size=16, conv=networks.ByPatches
    )


def raw_pixels(name: str) -> Task:
    """The same photos by a softmax of their pixels: what a residual network must be better than to tell anything."""
    return suite.mlp(suite.small(data.load(name), 32), (), "relu", batch_size=16)


def entropy(name: str) -> float:
    """Nats of a character that is foretold by how often each occurs in a text."""
    counts = np.bincount(load_text(name).train)
    share = counts[counts > 0] / counts.sum()
    return float(-np.sum(share * np.log(share)))


def contenders(steps: int, rates: Sequence[float] = RATES) -> list[Contender]:
    """Adam and AdamW at each of the rates, one a contender so that each is kept by itself, and those without a rate."""
    tuned = [ADAM, rivals.warmed(steps, "AdamW", optax.adamw)]
    each = [contender._replace(rates=(rate,)) for contender in tuned for rate in rates]
    names = (zoo.RECOMMENDED,)
    free = [untuned("Prodigy", optax.contrib.prodigy()), *map(meta_trained, names)]
    return [*each, *free, *rivals.told_the_end(steps, names)]


def seconds(make: Callable[[str, Any], Task], name: str, size: Any, steps: int, rounds: int = ROUNDS) -> pd.DataFrame:
    """How long a step of training takes, the optimizers taking turns.

    Args:
        make: `language` or `pictures`.
        name: of text or images.
        size: of the network.
        steps: that those are told who know the end.
        rounds: medians of so many.

    Returns:
        Rows (task, parameters, optimizer, ms, times): milliseconds, and over those with Adam.
    """
    task = make(name, size)
    one = {contender.name: contender for contender in contenders(steps)}
    spent = seconds_per_step({label: (task, c.make(c.rates[0])) for label, c in one.items()}, rounds).median()
    about = {"task": task.name, "parameters": parameters(task)}
    table = pd.DataFrame({"optimizer": spent.index, "ms": 1e3 * spent.to_numpy()}).assign(**about)
    return table.assign(times=table.ms / table.ms[table.optimizer == ADAM.name].item())
