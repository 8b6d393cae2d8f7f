"""Transformers trained on: models, tasks, contenders, gaps (paper Fig. 4–9, 16, 17, Tab. 1)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import optax
import pandas as pd

from mnemosyne.book.bench import bench_training
from mnemosyne.book.chapter import Run
from mnemosyne.book.scale import Scale
from mnemosyne.evaluate import Contender, best_rates, interval, untuned
from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.composite import hybrid
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.tasks import standins
from mnemosyne.tasks.classification import classifier
from mnemosyne.tasks.data.images import Dataset, load, resize
from mnemosyne.tasks.models.vision import VisionTransformer
from mnemosyne.tasks.regimes import EMBEDDING_AND_CLS, LAST_LAYER, LAST_TWO, Regime, fine_tune, regime, trained_part
from mnemosyne.types import Params, Task

ITERATIONS = 500
"""Steps of last-layer fine-tuning, as in Tab. 1."""

EXPERT = 3e-2
"""Rate of the Adam that the paper's Mnemosyne was meta-trained to imitate."""

EVERYTHING = regime(rest="adam")
"""What Adam trains where it is compared in Fig. 5 and 9."""

TABLE_1 = pd.DataFrame(
    [
        ("Mnemosyne", 72.3, 81.4, 74.0),
        ("S4", 7.5, 35.0, float("nan")),
        ("Lion 1e-1", 67.2, 76.4, 66.8),
        ("Lion 1e-2", 68.3, 80.0, 70.0),
        ("Lion 2e-3", 70.0, 80.0, 71.4),
        ("Lion 1e-3", 72.3, 81.2, 71.4),
        ("Lion 1e-4", 70.0, 81.0, 71.4),
    ],
    columns=["method", "ViT-H (ps=14)", "ViT-H (ps=8)", "ViT-L (ps=32)"],
).set_index("method")
"""The paper's Tab. 1: top-1 accuracy on ImageNet, per cent."""


class Backbone(NamedTuple):
    """A ViT that was pre-trained here."""

    module: VisionTransformer
    params: Params  # without the head, which is of other classes
    accuracy: float  # on validation images of its own kind


def vits(scale: Scale, source: Dataset) -> tuple[standins.Standin, ...]:
    """Make stand-ins for Tab. 1's three: one of the scale's size, one with coarser patches, one of half the layers."""
    side, (layers, width) = source.train.images.shape[1], scale.standin
    kinds = (((layers, width), side // 4), ((layers, width), side // 2), ((layers // 2, width), side // 4))
    return tuple(standins.vit(source, size, patch, batch_size=64) for size, patch in kinds)


def pretrained(run: Run, standin: standins.Standin) -> Backbone:
    """Pre-train a stand-in, or read it where that was done."""
    params, measured = run.pretrain(standin.task, run.scale.pretrain_steps)
    return Backbone(standin.module, {k: v for k, v in params.items() if k != "head"}, measured["accuracy"])


def targets(scale: Scale, source: Dataset) -> list[Dataset]:
    """Load the images to fine-tune on, with the side and channels of those of pre-training."""
    side, channels = source.train.images.shape[2:]
    return [resize(load(name), side, channels) for name in scale.fine_tuned_on]


def more_layers(name: str, backbone: Backbone, images: Dataset, labels: Regime, batch_size: int = 32) -> Task:
    """Make a task of what a regime trains of a pre-trained ViT, with a fresh head for these images."""
    module = backbone.module.clone(classes=images.classes)
    return trained_part(classifier(name, module, images, batch_size), backbone.params, labels)


def top_layers(module: VisionTransformer) -> Regime:
    """Fig. 9 for a model of fewer layers: the last two thirds of them, embedding, class token and head."""
    return regime(mnemosyne=("embedding", "cls", "head"), top=round(2 * module.layers / 3))


REGIMES = ("everything", "last layer", "Fig. 5", "Fig. 8", "Fig. 9")
"""What `costs` can time."""


def costs(
    standin: standins.Standin,
    images: Dataset,
    regimes: Sequence[str] = REGIMES,
    each: int | None = None,
    examples: int = 32,
) -> pd.DataFrame:
    """Time training steps in regimes of a ViT, by Adam and by what the paper has there.

    Args:
        standin: the model; its weights are random, on which time and memory do not depend.
        images: to train on.
        regimes: of `REGIMES`.
        each: so many of ours in each regime; all by default.
        examples: in a batch.

    Returns:
        Rows (regime, optimizer, parameters, state bytes, peak bytes, examples/s, × Adam) of `bench.bench_training`.
        `× Adam` is the time of a step over that of Adam on the same parameters.
    """
    adam = optax.adam(1e-3)
    shipped = lambda *names: {OPTIMIZERS[name].label: zoo.pretrained(name) for name in names}
    mixed = {"Mnemosyne hybrid": hybrid(zoo.pretrained("coordinate"))}
    chosen = {
        "everything": (EVERYTHING, {}),
        "last layer": (LAST_LAYER, shipped("coordinate", "paced") | mixed),
        "Fig. 5": (LAST_TWO, shipped("light", "paced")),
        "Fig. 8": (EMBEDDING_AND_CLS, shipped("tensor", "tensor_paced")),
        "Fig. 9": (top_layers(standin.module), shipped("super", "super_paced")),
    }
    weights = standin.task.init(jax.random.key(0))
    backbone = Backbone(standin.module, {k: v for k, v in weights.items() if k != "head"}, 0.0)
    entries = {}
    for name in regimes:
        labels, ours = chosen[name]
        task = more_layers(name, backbone, images, labels, examples)
        for optimizer, by in [("Adam", adam), *list(ours.items())[:each]]:
            entries[name, optimizer] = task, fine_tune(labels, {"mnemosyne": by, "adam": adam})
    rows = bench_training(entries, examples, rounds=21).rename_axis(["regime", "optimizer"]).reset_index()
    base = rows[rows.optimizer == "Adam"].set_index("regime")["examples/s"]
    return rows.assign(**{"× Adam": base[rows.regime].to_numpy() / rows["examples/s"]})


def contender(name: str, labels: Regime, rate: float = 1e-3) -> Contender:
    """Make a contender of shipped weights for what a regime gives to Mnemosyne, and Adam for what it leaves to Adam.

    Args:
        name: of shipped weights. Regimes that train the same parameters must differ in who trains them.
        labels: the regime.
        rate: Adam's; the paper's 1e-3 by default.
    """
    tx = fine_tune(labels, {"mnemosyne": zoo.pretrained(name), "adam": optax.adam(rate)})
    return untuned(OPTIMIZERS[name].label, tx)


def hybrid_contender() -> Contender:
    """The weights of "coordinate" on matrices, Adam at 1e-3 on biases (§5.2); meta-trained for the former alone."""
    tx = hybrid(zoo.pretrained("coordinate"))
    return untuned("Mnemosyne hybrid", tx)


def with_error(rows: pd.DataFrame) -> pd.DataFrame:
    """Add a column `error`, 1 − validation accuracy, which is better where it is lower, as a loss is."""
    return rows.assign(error=1 - rows.validation_accuracy)


def gaps(rows: pd.DataFrame, mark: int, column: str = "error", base: str = "Adam") -> pd.DataFrame:
    """Compare every optimizer with the best-tuned base, seed by seed.

    Args:
        rows: of `evaluate.train`.
        mark: the step; each optimizer has the rate that is best there in the mean.
        column: the smaller, the better.
        base: what the others are compared with.

    Returns:
        Rows (task, optimizer, rate, value, gap, half, seeds): `gap` is the mean of (optimizer's − base's) over seeds,
        ± `half` its 95% interval. A run that blew up makes it NaN.
    """
    best = best_rates(rows, mark, column)
    at = best[best.step == mark].set_index("seed")
    summary = []
    for (task, optimizer), group in at.groupby(["task", "optimizer"], sort=False):
        reference = at[(at.task == task) & (at.optimizer == base)][column]
        gap, half = interval(group[column] - reference)
        found = {"task": task, "optimizer": optimizer, "rate": group.rate.iloc[0], "value": group[column].mean()}
        summary.append(found | {"gap": gap, "half": half, "seeds": len(group)})
    return pd.DataFrame(summary)


def behind(
    rows: pd.DataFrame, mark: int, ours: tuple[str, float], theirs: tuple[str, float], column: str = "error"
) -> tuple[float, float]:
    """Mean of (ours − theirs) over seeds, ± its 95% interval, for `verdicts`.

    Args:
        rows: of `evaluate.train`, of one task.
        mark: the step.
        ours: an optimizer and its rate.
        theirs: likewise.
        column: the smaller, the better.
    """
    at = rows[rows.step == mark].set_index(["optimizer", "rate", "seed"])[column].sort_index()
    return interval(at[ours] - at[theirs])


def behind_best(rows: pd.DataFrame, mark: int, column: str = "error", base: str = "Adam") -> pd.DataFrame:
    """Compare every rate of an optimizer with its best one, seed by seed.

    Returns:
        Rows (rate, gap, half) of all rates but the one that is best at a mark in the mean.
    """
    best = best_rates(rows[rows.optimizer == base], mark, column).rate.iloc[0]
    others = [rate for rate in rows[rows.optimizer == base].rate.unique() if rate != best]
    found = [(rate, *behind(rows, mark, (base, rate), (base, best), column)) for rate in others]
    return pd.DataFrame(found, columns=["rate", "gap", "half"])
