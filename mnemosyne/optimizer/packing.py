"""Many tensors as few: a network costs an optimizer a few kernels to compile and to launch, not a few for each tensor.

A network has few large tensors and many small ones. Small ones are laid end to end, and what is asked of each of them
is a sum over a part of the whole:

    (steps,), (sizes,) = in_batches(step, [gradients], [sizes])  # trees in, trees out

where step(tensors, [g], [size]) sees g of one large tensor or, of n small ones, g [p] and their sizes [n].
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from mnemosyne.types import Params, State

SMALL = 2**13
"""Tensors below so many elements go together."""


class Tensors:
    """Where n tensors lie in an array x: end to end, [p], or a single one in its own shape."""

    def __init__(self, shapes: Sequence[tuple]):
        self.shapes = tuple(shapes)
        self.sizes = np.array([math.prod(shape) for shape in self.shapes], np.int32)

    def total(self, x: Array) -> Array:
        """The sum over each tensor, [n]."""
        return jnp.sum(x)[None] if len(self.shapes) == 1 else jnp.sum(self._rows(x), axis=1)

    def largest(self, x: Array) -> Array:
        """The largest element of each tensor, [n]; at least zero."""
        return jnp.max(x, initial=0.0)[None] if len(self.shapes) == 1 else jnp.max(self._rows(x), axis=1, initial=0.0)

    def spread(self, numbers: Array) -> Array:
        """Each tensor's number, [n], at each of its elements."""
        if len(self.shapes) == 1:
            return numbers.reshape((1,) * len(self.shapes[0]))
        return numbers.at[self._owner].get(mode="promise_in_bounds", indices_are_sorted=True)

    @cached_property
    def _owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.sizes), dtype=np.uint32), self.sizes)

    def _rows(self, x: Array) -> Array:
        """Each tensor in a row, with zeros behind it: a segment sum's order is not the same each time on a GPU."""
        first, along = np.cumsum(self.sizes) - self.sizes, jnp.arange(self.sizes.max(initial=0))[None]
        inside = along < self.sizes[:, None]
        return jnp.where(inside, x[jnp.where(inside, first[:, None] + along, 0)], 0)


def in_batches(
    step: Callable[[Tensors, list[Array], list[Array]], tuple[list[Array], list[Array]]],
    elements: Sequence[Params],
    numbers: Sequence[Params] = (),
    together: int | float | None = None,
    extent: Callable[[tuple], tuple] = lambda shape: (),
) -> tuple[list[Params], list[Params]]:
    """Take a step of every tensor, of several small ones in one call.

    Args:
        step: (tensors, elements, numbers) → new ones, of as many of the first of either as there are.
        elements: trees of arrays [*shape …], joined to [p …]; the first one's shapes are the tensors'.
        numbers: trees of arrays [*extent …], joined to [n …].
        together: tensors below so many elements share a call; `SMALL` by default.
        extent: a tensor's shape → that of its numbers; () if there is one for each tensor.

    Returns:
        (elements, numbers), the new ones in the place of the old.
    """
    first, tree = jax.tree.flatten(elements[0])
    fields = [[list(tree.flatten_up_to(f)) for f in group] for group in (elements, numbers)]
    after = [[list(f) for f in group] for group in fields]
    for batch in batches(first, SMALL if together is None else together):
        tensors = Tensors([first[i].shape for i in batch])
        places = tensors.shapes, [extent(shape) for shape in tensors.shapes]
        joined = [
            [put([f[i] for i in batch], shapes) for f in group]
            for put, shapes, group in zip((join, lay), places, fields, strict=True)
        ]
        for take, shapes, group, new in zip((split, cut), places, after, step(tensors, *joined), strict=True):
            for field, x in zip(group, new, strict=False):
                for i, part in zip(batch, take(x, shapes), strict=True):
                    field[i] = part
    return tuple([tree.unflatten(f) for f in group] for group in after)


class BatchesState(NamedTuple):
    """The memory of a single element, with a tree of arrays in the place of each array.

    Each such tree has the parameters' structure. Of a coordinate-wise rule each array has the parameter's shape in
    front, so that a sharding of the parameters is a sharding of the state.
    """

    memory: State


def scale_by_batches(
    state: Callable[[tuple], State],
    extent: Callable[[tuple], tuple] | None,
    step: Callable[[Tensors, State, Array], tuple[State, Array]],
    together: int | float | None = None,
) -> optax.GradientTransformation:
    """Keep a memory beside every tensor, and take the steps of several tensors in one call.

    Args:
        state: *s → an empty memory of that shape.
        extent: a tensor's shape → the shape *s of its memory; None if that is the tensor's.
        step: (tensors, memories joined end to end, gradients likewise) → (memories, updates).
        together: tensors below so many elements share one call; `SMALL` by default.

    Returns:
        A transformation whose state is a `BatchesState`.
    """
    inner = jax.tree.structure(jax.eval_shape(lambda: state(())))
    place = extent or (lambda shape: shape)

    def init(params: Params) -> BatchesState:
        def field(i):
            return jax.tree.map(lambda p: jax.tree.leaves(state(place(jnp.shape(p))))[i], params)

        return BatchesState(memory=inner.unflatten([field(i) for i in range(inner.num_leaves)]))

    def move(tensors: Tensors, elements: list[Array], numbers: list[Array]) -> tuple[list[Array], list[Array]]:
        gradient, *fields = [*elements, *numbers]
        memory, moved = step(tensors, inner.unflatten(fields), gradient)
        fields = inner.flatten_up_to(memory)
        return ([moved, *fields], []) if extent is None else ([moved], fields)

    def update(updates, state, params=None):
        del params
        fields = inner.flatten_up_to(state.memory)
        if extent is None:
            (steps, *fields), _ = in_batches(move, [updates, *fields], [], together)
        else:
            (steps,), fields = in_batches(move, [updates], fields, together, extent)
        return steps, BatchesState(inner.unflatten(fields))

    return optax.GradientTransformation(init, update)


def batches(tensors: list[Array], together: int | float) -> list[list[int]]:
    """Which tensors go through a step in one call: each large one alone, all small ones of a dtype together."""
    small: dict[Any, list[int]] = {}
    for i, t in enumerate(tensors):
        if t.size < together:
            small.setdefault(jnp.result_type(t), []).append(i)
    return [[i] for i, t in enumerate(tensors) if t.size >= together] + list(small.values())


def join(arrays: list[Array], shapes: Sequence[tuple]) -> Array:
    """Lay arrays [*shape …] of different shapes end to end: [p …]. A single one stays as it is."""
    return arrays[0] if len(arrays) == 1 else lay(arrays, shapes)


def split(joined: Array, shapes: Sequence[tuple]) -> list[Array]:
    """Undo `join`."""
    return [joined] if len(shapes) == 1 else cut(joined, shapes)


def lay(arrays: list[Array], shapes: Sequence[tuple]) -> Array:
    flat = [a.reshape(math.prod(s), *a.shape[len(s) :]) for a, s in zip(arrays, shapes, strict=True)]
    return jnp.concatenate(flat)


def cut(joined: Array, shapes: Sequence[tuple]) -> list[Array]:
    """Cut, by tables of places. XLA would compile a kernel for every slice, each with all that it is cut from in it."""
    places = np.arange(len(joined), dtype=np.uint32)
    ends = np.cumsum([math.prod(s) for s in shapes])
    parts = zip(np.split(places, ends[:-1]), shapes, strict=True)
    return [_take(joined, part, places).reshape(*s, *joined.shape[1:]) for part, s in parts]


def _take(joined: Array, part: np.ndarray, places: np.ndarray) -> Array:
    if len(part) != 1:
        return joined.at[part].get(mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True)
    # A table of one place would become a slice.
    here = (places == part).reshape(-1, *(1,) * (joined.ndim - 1))
    return jnp.sum(jnp.where(here, joined, 0), axis=0, dtype=joined.dtype)
