"""Layers that are stacked in one array, as `scan` over layers wants them, and that an optimizer should see one by one.

    tx = stacked(pretrained(), {"layers": 1, "head": 0})      # params["layers"]["w"] is [layers in out]

An optimizer that looks at whole tensors, at their sizes or at their number of axes otherwise takes such an array for a
single tensor, and a stack of biases for a matrix.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mnemosyne.optimizer.transform import name_of
from mnemosyne.types import Params


def stacked(
    tx: optax.GradientTransformation, axes: int | Params | Callable[[Params], Any]
) -> optax.GradientTransformationExtraArgs:
    """Let an optimizer see every layer of a stack as tensors of its own.

    Args:
        tx: any optimizer.
        axes: how many leading axes of an array count layers. One number for all, a tree of numbers with the
            parameters' structure or a prefix of it, or a function from parameters to either, as of `optax.masked`.

    Returns:
        A transformation that does with a stack [layers *shape] what `tx` does with so many arrays [*shape]. Its state
        is that of `tx` for {name: [layer, …]}, with the names of `jax.tree_util.keystr`.

    Raises:
        ValueError: at `init` and `update`, if axes do not fit the tree, or are more than an array has.

    Example:
        params = {"layers": {"w": jnp.ones((6, 32, 32)), "b": jnp.zeros((6, 32))}, "head": jnp.ones((32, 4))}
        tx = stacked(mnemosyne.pretrained("hybrid"), {"layers": 1, "head": 0})
        state = tx.init(params)                                # hybrid gives the six biases to Adam
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: Params):
        return tx.init(layers(params, axes))

    def update(updates, state, params=None, **extra):
        apart = None if params is None else layers(params, axes)
        steps, state = tx.update(layers(updates, axes), state, apart, **extra)
        return jax.tree_util.tree_map_with_path(lambda path, g: restack(steps[name_of(path)], g), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def layers(tree: Params, axes: Any) -> dict[str, list]:
    """Every array of a tree by name, as the list of its layers; one that is no stack is a list of itself."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    pairs = zip(named, _counts(tree, axes), strict=True)
    return {name_of(path): _layers(name_of(path), jnp.asarray(x), count) for (path, x), count in pairs}


def restack(parts: list, like: Any) -> Any:
    """Undo `layers` for one array."""
    return jnp.stack(parts).reshape(jnp.shape(like)) if jnp.shape(parts[0]) != jnp.shape(like) else parts[0]


def _layers(name: str, x: Any, count: Any) -> list:
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= x.ndim:
        raise ValueError(f"{name} has the shape {x.shape}: its stacked axes must be 0 to {x.ndim}, got {count!r}")
    if count == 0:
        return [x]
    flat = x if count == 1 else x.reshape(math.prod(x.shape[:count]), *x.shape[count:])
    return [flat[i] for i in range(len(flat))]


def _counts(tree: Params, axes: Any) -> list:
    wanted = axes(tree) if callable(axes) else axes
    try:
        return jax.tree.leaves(jax.tree.map(lambda n, part: jax.tree.map(lambda _: n, part), wanted, tree))
    except ValueError as error:
        raise ValueError(
            f"the numbers of stacked axes do not fit the parameters' tree; give one number, or a tree like theirs or a "
            f"prefix of it: {error}"
        ) from error
