"""Which parameters of a model are trained, and by what (paper §5, Fig. 4–9, 16, 17).

    tx = fine_tune(LAST_TWO, {"mnemosyne": mnemosyne.pretrained("light"), "adam": optax.adam(1e-3)})
    task = trained_part(task, weights, LAST_LAYER)  # a task whose parameters are the trained ones alone

A regime labels every parameter "mnemosyne", "adam" or "frozen". Since it looks at names and shapes only, it is the same
for a model, for its shapes and for the part of it that is trained.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mnemosyne.types import Data, Params, Task

Regime = Callable[[Params], Any]  # parameters or their shapes, a dict of dicts → a label for each
FROZEN = "frozen"


def regime(mnemosyne: tuple[str, ...] = (), adam: tuple[str, ...] = (), top: int = 0, rest: str = FROZEN) -> Regime:
    """Label parameters by the module they belong to.

    Args:
        mnemosyne: modules, such as "head", labelled "mnemosyne".
        adam: modules labelled "adam".
        top: so many last layers, the modules layer_0, layer_1 …, are labelled "mnemosyne" too.
        rest: the label of everything else.

    Returns:
        A function from parameters to labels. It raises ValueError if there is no such module or not so many layers.
    """

    def label(params: Params) -> Any:
        flat = flatten_dict(params)
        modules = {path[0] for path in flat}
        layers = sorted((m for m in modules if re.fullmatch(r"layer_\d+", m)), key=lambda m: int(m[6:]))
        if missing := [m for m in (*mnemosyne, *adam) if m not in modules]:
            raise ValueError(f"there is no {', '.join(missing)} among these parameters: {', '.join(sorted(modules))}")
        if top > len(layers):
            raise ValueError(f"the regime trains the last {top} layers, these parameters have {len(layers)}")
        labels = dict.fromkeys(modules, rest)
        labels |= dict.fromkeys(adam, "adam") | dict.fromkeys((*mnemosyne, *layers[len(layers) - top :]), "mnemosyne")
        return unflatten_dict({path: labels[path[0]] for path in flat})

    return label


LAST_LAYER = regime(mnemosyne=("head",))
"""Fig. 4, 16, 17, Tab. 1: the last layer of a ViT."""

LAST_TWO = regime(mnemosyne=("embedding", "cls", "head"), top=2, rest="adam")
"""Fig. 5: the last two layers, embedding, class token and head of a ViT, Adam for the rest."""

SOFT_PROMPT = regime(mnemosyne=("prompt",))
"""Fig. 6: the prompt of `superglue.prompted`."""

ALL_BUT_TOKENS = regime(adam=("tokens",), rest="mnemosyne")
"""Fig. 7: all of BERT, Adam for the embedding of tokens."""

EMBEDDING_AND_CLS = regime(mnemosyne=("embedding", "cls"), adam=("head",))
"""Fig. 8: embedding and class token of a ViT, Adam for the head."""

TOP_EIGHT = regime(mnemosyne=("embedding", "cls", "head"), top=8)
"""Fig. 9: the last eight layers, head, class token and embedding of a ViT."""


def fine_tune(
    labels: Regime, transforms: Mapping[str, optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """Give each label's parameters to its own optimizer.

    Args:
        labels: which parameter has which label.
        transforms: an optimizer for each label but "frozen".

    Returns:
        A transformation that leaves frozen parameters where they are and keeps no state for them. They still have
        gradients unless the task is a `trained_part`.

    Raises:
        ValueError: at `init`, if a label has no optimizer; if "frozen" has one.
    """
    if FROZEN in transforms:
        raise ValueError(f"{FROZEN!r} parameters have no optimizer: give them another label, or leave this one out")

    def checked(params: Params) -> Any:
        tree = labels(params)
        unknown = {label: path for path, label in flatten_dict(tree).items() if label not in (*transforms, FROZEN)}
        if unknown:
            lines = [f"  {label!r}, of {'.'.join(path)} for one" for label, path in sorted(unknown.items())]
            known = ", ".join(map(repr, transforms))
            raise ValueError(f"there are optimizers for {known}, but none for\n" + "\n".join(lines))
        return tree

    return optax.partition({**transforms, FROZEN: optax.set_to_zero()}, checked)


def split(params: Params, labels: Any) -> tuple[Params, Params]:
    """Part a tree of parameters in two: what is trained, what is frozen. `merge` undoes it."""
    flat, which = flatten_dict(params), flatten_dict(labels)
    parts = ({p: x for p, x in flat.items() if (which[p] == FROZEN) == frozen} for frozen in (False, True))
    return tuple(map(unflatten_dict, parts))


def merge(trained: Params, frozen: Params) -> Params:
    """Join the two parts of a tree."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))


def trained_part(task: Task, params: Params, labels: Regime) -> Task:
    """Make a task of the trained parameters alone: the others have no gradient, and no optimizer sees them.

        L'(trained, (frozen, batch)) = L(trained ∪ frozen, batch)

    Args:
        task: the whole model's. Its parameters are a dict of dicts.
        params: where training starts: all frozen parameters, and those trained ones that are known, as a checkpoint
            without a head lacks the head's. What is not there starts as `task.init` makes it, by the seed.
        labels: who is frozen.

    Returns:
        A `Task` whose data hold the frozen parameters once, whatever the number of runs, and whose batches carry them.
        Its `init` holds what training starts from, which becomes a constant of a program that calls it: call it outside
        of one where that is large.

    Raises:
        ValueError: if a frozen parameter is not given, one has another shape than the task's or no place in it, or
            nothing is trained.
    """
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    trained, frozen = (flatten_dict(part) for part in split(shapes, labels(shapes)))
    given = flatten_dict(params)
    _check(trained, frozen, given)
    start = {path: given[path] for path in trained if path in given}

    def init(key: Array) -> Params:
        fresh = flatten_dict(task.init(key)) if len(start) < len(trained) else {}
        return unflatten_dict({path: start[path] if path in start else fresh[path] for path in trained})

    def batch(data: Data, key: Array) -> tuple:
        return data["frozen"], task.batch(data["task"], key)

    return Task(
        task.name,
        data={"frozen": unflatten_dict({path: given[path] for path in frozen}), "task": task.data},
        init=init,
        batch=batch,
        loss=lambda params, batch: task.loss(merge(params, batch[0]), batch[1]),
        metrics=lambda params, data: task.metrics(merge(params, data["frozen"]), data["task"]),
    )


def _check(trained: dict, frozen: dict, given: dict) -> None:
    wanted = trained | frozen
    problems = [f"{'.'.join(path)} is frozen but not given" for path in frozen if path not in given]
    for path, leaf in given.items():
        if path not in wanted:
            problems.append(f"{'.'.join(path)} is given but is no parameter of the task")
        elif leaf.shape != wanted[path].shape:
            problems.append(f"{'.'.join(path)} has shape {leaf.shape}, the task's has {wanted[path].shape}")
    if problems:
        raise ValueError("these parameters do not fit the task:\n  " + "\n  ".join(problems))
    if not trained:
        raise ValueError("every parameter is frozen: nothing is left to train")
