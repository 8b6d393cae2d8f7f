"""Which parameters of a model are trained, and by what (paper §5, Fig. 4–9, 16, 17).

    tx = fine_tune(LAST_TWO, {"mnemosyne": mnemosyne.pretrained("light"), "adam": optax.adam(1e-3)})
    task = trained_part(task, weights, LAST_LAYER)  # a task whose parameters are the trained ones alone

A regime labels every parameter "mnemosyne", "adam" or "frozen". Since it looks at names and shapes only, it is the same
for a model, for its shapes and for the part of it that is trained. Parameters are any pytree: dicts, frozen or not,
tuples, lists, NamedTuples. What they are called is what leads to them: a key, a field, or a place as in "0".
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict
from jaxtyping import Array

from mnemosyne.types import Data, Params, Task

Keys = tuple[str, ...]  # what leads to a leaf
Regime = Callable[[Params], Any]  # parameters or their shapes → a label for each
FROZEN = "frozen"
DICTS = (dict, FrozenDict)
"""Whose order means nothing, so that a part needs none of the other part's keys."""


def regime(mnemosyne: tuple[str, ...] = (), adam: tuple[str, ...] = (), top: int = 0, rest: str = FROZEN) -> Regime:
    """Label parameters by the module they belong to.

    Args:
        mnemosyne: modules, such as "head", labelled "mnemosyne".
        adam: modules labelled "adam".
        top: so many last layers, the modules layer_0, layer_1 …, are labelled "mnemosyne" too.
        rest: the label of everything else.

    Returns:
        A function from parameters to labels, in a tree like theirs. It raises ValueError if there is no such module or
        not so many layers.
    """

    def label(params: Params) -> Any:
        paths = _paths(params)
        modules = {path[0] if path else "" for path in paths}
        layers = sorted((m for m in modules if re.fullmatch(r"layer_\d+", m)), key=lambda m: int(m[6:]))
        if missing := [m for m in (*mnemosyne, *adam) if m not in modules]:
            wrapped = ": give their 'params'" if "params" in modules else ""
            there = ", ".join(sorted(modules)) or "none"
            raise ValueError(f"there is no {', '.join(missing)} among these parameters: {there}{wrapped}")
        if top > len(layers):
            raise ValueError(f"the regime trains the last {top} layers, these parameters have {len(layers)}")
        labels = dict.fromkeys(modules, rest)
        labels |= dict.fromkeys(adam, "adam") | dict.fromkeys((*mnemosyne, *layers[len(layers) - top :]), "mnemosyne")
        return _like(params, [labels[path[0] if path else ""] for path in paths])

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
        unknown = {label: path for path, label in _flat(tree).items() if label not in (*transforms, FROZEN)}
        if unknown:
            lines = [f"  {label!r}, of {'.'.join(path)} for one" for label, path in sorted(unknown.items())]
            known = ", ".join(map(repr, transforms))
            raise ValueError(f"there are optimizers for {known}, but none for\n" + "\n".join(lines))
        return _shaped(tree, params)

    return optax.partition({**transforms, FROZEN: optax.set_to_zero()}, checked)


def split(params: Params, labels: Any) -> tuple[Params, Params]:
    """Part a tree of parameters in two: what is trained, what is frozen. `merge` undoes it.

    A part has only those keys of a dict that lead to something of it. Other containers keep their places, with None
    where the other part's things are.
    """
    known = _shaped(labels, params)
    if _paths(known) != _paths(params):
        missing = sorted(".".join(path) for path in set(_paths(params)) - set(_paths(known)))
        raise ValueError(f"there is no label for {', '.join(missing)}: a regime labels every parameter")
    frozen = jax.tree.map(lambda label: label == FROZEN, known)
    return _part(params, frozen, False), _part(params, frozen, True)


def merge(trained: Params, frozen: Params) -> Params:
    """Join the two parts of a tree."""
    if trained is None or frozen is None:
        return frozen if trained is None else trained
    if type(trained) in DICTS:
        both = {**frozen, **{k: merge(x, frozen[k]) if k in frozen else x for k, x in trained.items()}}
        return type(trained)(both)
    parts, others = _children(trained), _children(frozen)
    return _rebuilt(trained, [merge(a, b) for a, b in zip(parts, others, strict=True)])


def _part(tree: Params, frozen: Any, which: bool) -> Params:
    """The leaves that are frozen, or those that are not."""
    if type(tree) in DICTS:
        there = {k: x for k, x in tree.items() if which in jax.tree.leaves(frozen[k]) or _empty(x)}
        return type(tree)({k: _part(x, frozen[k], which) for k, x in there.items()})
    if _empty(tree):
        return tree
    if jax.tree_util.all_leaves([tree]):
        return tree if frozen == which else None
    parts = zip(_children(tree), _children(frozen), strict=True)
    return _rebuilt(tree, [_part(x, f, which) for x, f in parts])


def _empty(tree: Params) -> bool:
    return not jax.tree.leaves(tree)


def _children(tree: Params) -> list[Params]:
    """What a container holds; None is held as well."""
    return jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)


def _rebuilt(tree: Params, children: list[Params]) -> Params:
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=lambda x: x is not tree), children)


def _paths(tree: Params) -> list[Keys]:
    """How each leaf is reached."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [tuple(jax.tree_util.keystr((key,), simple=True) for key in path) for path in paths]


def _flat(tree: Params) -> dict[Keys, Any]:
    return dict(zip(_paths(tree), jax.tree.leaves(tree), strict=True))


def _like(tree: Params, leaves: list) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _shaped(labels: Any, params: Params) -> Any:
    """Labels in a tree like the parameters, if there is one for each, whatever containers they are in."""
    flat, paths = _flat(labels), _paths(params)
    return _like(params, [flat[path] for path in paths]) if all(path in flat for path in paths) else labels


def trained_part(task: Task, params: Params, labels: Regime) -> Task:
    """Make a task of the trained parameters alone: the others have no gradient, and no optimizer sees them.

        L'(trained, (frozen, batch)) = L(trained ∪ frozen, batch)

    Args:
        task: the whole model's.
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
    parts = split(shapes, labels(shapes))
    trained, frozen = map(_flat, parts)
    given = _flat(params)
    _check(trained, frozen, given)
    start = {path: given[path] for path in trained if path in given}

    def init(key: Array) -> Params:
        fresh = _flat(task.init(key)) if len(start) < len(trained) else {}
        return _like(parts[0], [start[path] if path in start else fresh[path] for path in trained])

    def batch(data: Data, key: Array) -> tuple:
        return data["frozen"], task.batch(data["task"], key)

    return Task(
        task.name,
        data={"frozen": _like(parts[1], [given[path] for path in frozen]), "task": task.data},
        init=init,
        batch=batch,
        loss=lambda params, batch: task.loss(merge(params, batch[0]), batch[1]),
        metrics=lambda params, data: task.metrics(merge(params, data["frozen"]), data["task"]),
    )


def _check(trained: dict, frozen: dict, given: dict) -> None:
    wanted = trained | frozen
    if given and {path[:1] for path in given} == {("params",)} and ("params",) not in {path[:1] for path in wanted}:
        raise ValueError("these are a model's variables, not its parameters: give their 'params'")
    problems = [f"{'.'.join(path)} is frozen but not given" for path in frozen if path not in given]
    for path, leaf in given.items():
        if path not in wanted:
            problems.append(f"{'.'.join(path)} is given but is no parameter of the task")
        elif jnp.shape(leaf) != wanted[path].shape:
            problems.append(f"{'.'.join(path)} has shape {jnp.shape(leaf)}, the task's has {wanted[path].shape}")
    if problems:
        raise ValueError("these parameters do not fit the task:\n  " + "\n  ".join(problems))
    if not trained:
        raise ValueError("every parameter is frozen: nothing is left to train")
