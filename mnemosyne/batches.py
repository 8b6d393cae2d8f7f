"""Many tensors as few: one memory beside each tensor of a tree, and steps of several tensors in one call."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mnemosyne.types import Params, State


class BatchesState(NamedTuple):
    """The memory of a single element, with a tree of arrays in the place of each array.

    Each such tree has the parameters' structure. Of a coordinate-wise rule each array has the parameter's shape in
    front, so that a sharding of the parameters is a sharding of the state.
    """

    memory: State


def scale_by_batches(
    state: Callable[[tuple], State],
    extent: Callable[[tuple], tuple],
    step: Callable[[State, list[Array]], tuple[State, list[Array]]],
    together: int | float,
) -> optax.GradientTransformation:
    """Keep a memory beside every tensor, and take the steps of several tensors in one call.

    Args:
        state: *s → an empty memory of that shape.
        extent: a tensor's shape → the shape *s of its memory.
        step: (memories joined end to end, gradients) → (memories, updates), see `join`.
        together: tensors below so many elements share one call.

    Returns:
        A transformation whose state is a `BatchesState`.
    """
    inner = jax.tree.structure(jax.eval_shape(lambda: state(())))

    def init(params: Params) -> BatchesState:
        def field(i):
            return jax.tree.map(lambda p: jax.tree.leaves(state(extent(jnp.shape(p))))[i], params)

        return BatchesState(memory=inner.unflatten([field(i) for i in range(inner.num_leaves)]))

    def update(updates, state, params=None):
        del params
        gradients, outer = jax.tree.flatten(updates)
        fields = [outer.flatten_up_to(tree) for tree in inner.flatten_up_to(state.memory)]
        steps, after = list(gradients), [list(field) for field in fields]
        for batch in batches(gradients, together):
            extents = [extent(gradients[i].shape) for i in batch]
            memory = inner.unflatten([join([field[i] for i in batch], extents) for field in fields])
            memory, moved = step(memory, [gradients[i] for i in batch])
            parted = [moved, *(split(field, extents) for field in inner.flatten_up_to(memory))]
            for out, parts in zip([steps, *after], parted, strict=True):
                for i, part in zip(batch, parts, strict=True):
                    out[i] = part
        return outer.unflatten(steps), BatchesState(inner.unflatten([outer.unflatten(f) for f in after]))

    return optax.GradientTransformation(init, update)


def batches(tensors: list[Array], together: int | float) -> list[list[int]]:
    """Which tensors go through a rule in one call: each large one alone, all small ones together.

    A network has few large tensors and many small ones. Apart, each small one would cost as much to compile and
    to launch as a large one; together they cost one copy of themselves.
    """
    small = [i for i, t in enumerate(tensors) if t.size < together]
    return [[i] for i, t in enumerate(tensors) if t.size >= together] + ([small] if small else [])


def join(arrays: list[Array], shapes: list[tuple]) -> Array:
    """Lay arrays [*shape …] of different shapes end to end: [p …]. A single one stays as it is."""
    if len(arrays) == 1:
        return arrays[0]
    flat = [a.reshape(math.prod(s), *a.shape[len(s) :]) for a, s in zip(arrays, shapes, strict=True)]
    return jnp.concatenate(flat)


def split(joined: Array, shapes: list[tuple]) -> list[Array]:
    """Undo `join`."""
    if len(shapes) == 1:
        return [joined]
    parts = jnp.split(joined, list(itertools.accumulate(math.prod(s) for s in shapes))[:-1])
    return [part.reshape(*s, *joined.shape[1:]) for part, s in zip(parts, shapes, strict=True)]
