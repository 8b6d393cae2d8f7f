"""Networks hundreds of times larger than those that meta-training saw: who trains them, and how long a step takes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
import pandas as pd

from mnemosyne.book.bench import ROUNDS, seconds_per_step
from mnemosyne.book.studies import rivals
from mnemosyne.evaluate import ADAM, Contender, meta_trained, untuned
from mnemosyne.optimizer import zoo
from mnemosyne.tasks import data, load_text, suite
from mnemosyne.tasks.models.transformer import count
from mnemosyne.types import Task

RATES = (1e-2, 3e-3, 1e-3, 3e-4)
"""Of the tuned ones; an edge is told where it is the best."""

_LENGTH = 64  # characters


def language(name: str, size: tuple[int, int]) -> Task:
    """Foretell each next of 64 characters by a Transformer of (layers, width), with heads of 64, four stretches a step.

    Of the validation text 64 stretches are read: more would take longer than training.
    """
    layers, width = size
    text = load_text(name)
    text = text._replace(validation=text.validation[: _LENGTH * 64 + 1])
    return suite.attentive(text, layers, max(width // 64, 1), width, 4 * width, length=_LENGTH, batch_size=4)


def pictures(name: str, width: int) -> Task:
    """Classify photos by a ResNet-18 whose first stage has `width` channels, 32 a step."""
    return suite.residual(suite.small(data.load(name), 32), (2, 2, 2, 2), width=width, batch_size=32)


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
    about = {"task": task.name, "parameters": count(jax.eval_shape(task.init, jax.random.key(0)))}
    table = pd.DataFrame({"optimizer": spent.index, "ms": 1e3 * spent.to_numpy()}).assign(**about)
    return table.assign(times=table.ms / table.ms[table.optimizer == ADAM.name].item())
