"""Many tensors as few: a network costs an optimizer a few kernels to compile and to launch, not a few for each tensor.

A network has few large tensors and many small ones. Small ones are laid end to end, and what is asked of each of them
is a sum over a part of the whole:

    (steps,), (sizes,) = in_batches(step, [gradients], [sizes])  # a tree and an array [n] in, the same out

where step(tensors, [g], [size]) sees g of one large tensor or, of n small ones, g [p] and their sizes [n].
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from mnemosyne.types import Params, State

SMALL = 2**13
"""Tensors below so many elements go together."""


class Tensors:
    """Where n tensors lie in an array x: end to end, [p …], or a single one in its own shape."""

    def __init__(self, shapes: Sequence[tuple]):
        self.shapes = tuple(shapes)
        self.sizes = np.array([math.prod(shape) for shape in self.shapes], np.int32)

    def total(self, x: Array) -> Array:
        """The sum over each tensor, [n …]."""
        if len(self.shapes) == 1:
            return jnp.sum(x, axis=tuple(range(len(self.shapes[0]))))[None]
        return jnp.sum(self._rows(x), axis=1)

    def mean(self, x: Array) -> Array:
        """The mean over each tensor, [n …]; zero of an empty one."""
        sums = self.total(x)
        return sums / np.maximum(self.sizes, 1).astype(np.float32).reshape(-1, *(1,) * (sums.ndim - 1))

    def largest(self, x: Array) -> Array:
        """The largest element of each tensor, [n]; at least zero."""
        return jnp.max(x, initial=0.0)[None] if len(self.shapes) == 1 else jnp.max(self._rows(x), axis=1, initial=0.0)

    def spread(self, numbers: Array) -> Array:
        """Each tensor's numbers, [n …], at each of its elements."""
        if len(self.shapes) == 1:
            return numbers.reshape((1,) * len(self.shapes[0]) + numbers.shape[1:])
        return numbers.at[self._owner].get(mode="promise_in_bounds", indices_are_sorted=True)

    @cached_property
    def _owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.sizes), dtype=np.uint32), self.sizes)

    def _rows(self, x: Array) -> Array:
        """Each tensor in a row, with zeros behind it: a segment sum's order is not the same each time on a GPU."""
        first, along = np.cumsum(self.sizes) - self.sizes, jnp.arange(self.sizes.max(initial=0))[None]
        inside = along < self.sizes[:, None]
        rows = x[jnp.where(inside, first[:, None] + along, 0)]
        return jnp.where(inside if x.ndim == 1 else jnp.expand_dims(inside, tuple(range(2, rows.ndim))), rows, 0)


def in_batches(
    step: Callable[[Tensors, list[Array], list[Array]], tuple[list[Array], list[Array]]],
    elements: Sequence[Params],
    numbers: Sequence[Array] = (),
    together: int | float | None = None,
    rows: Sequence[int] | None = None,
) -> tuple[list[Params], list[Array]]:
    """Take a step of every tensor, of several small ones in one call.

    Args:
        step: (tensors, elements, numbers) → new ones, of as many of the first of either as there are.
        elements: trees of arrays [*shape …], joined to [p …]; the first one's shapes are the tensors'.
        numbers: arrays [n …] with a row for each tensor, in the order of the tree's leaves.
        together: tensors below so many elements share a call; `SMALL` by default.
        rows: how many rows of `numbers` belong to each tensor; one by default.

    Returns:
        (elements, numbers), the new ones in the place of the old and of their dtypes.
    """
    first, tree = jax.tree.flatten(elements[0])
    fields = [list(tree.flatten_up_to(f)) for f in elements]
    after, parts = [list(f) for f in fields], [[] for _ in numbers]
    ends = np.cumsum(np.ones(len(first), int) if rows is None else np.asarray(rows, int))
    apart = [any(is_sharded(f[i]) for f in fields) for i in range(len(first))]
    order = batches(first, apart, SMALL if together is None else together)
    places = [np.concatenate([np.arange(ends[i - 1] if i else 0, ends[i]) for i in batch]) for batch in order]
    for batch, place in zip(order, places, strict=True):
        tensors = Tensors([first[i].shape for i in batch])
        joined = [join([f[i] for i in batch], tensors.shapes) for f in fields]
        moved, seen = step(tensors, joined, [pick(x, place) for x in numbers])
        for field, x in zip(after, moved, strict=False):
            for i, part in zip(batch, split(x, tensors.shapes), strict=True):
                field[i] = part.astype(field[i].dtype)
        for known, x in zip(parts, seen, strict=False):
            known.append(x)
    back = np.argsort(np.concatenate(places)) if places else np.zeros(0, int)
    pairs = zip(parts, numbers, strict=True)
    in_order = [pick(jnp.concatenate(known), back).astype(x.dtype) if known else x for known, x in pairs]
    return [tree.unflatten(f) for f in after], in_order


def pick(x: Array, places: np.ndarray) -> Array:
    """Rows of x, each once."""
    if len(places) == len(x) and (places == np.arange(len(x))).all():
        return x
    return x.at[places.astype(np.uint32)].get(mode="promise_in_bounds", unique_indices=True)


class BatchesState(NamedTuple):
    """The memory of a single element, with more in the place of each array.

    Of a rule for each coordinate there is a tree like the parameters' whose arrays have the parameter's shape in front,
    so that a sharding of the parameters is a sharding of the state. Of a rule for each tensor there is one array, with
    a row for each meta-token of all tensors in the order of their leaves.
    """

    memory: State


def scale_by_batches(
    state: Callable[[tuple], State],
    step: Callable[[Tensors, State, Array], tuple[State, Array]],
) -> optax.GradientTransformation:
    """Keep a memory beside every element, and take the steps of several small tensors in one call.

    Args:
        state: *s → an empty memory of that shape.
        step: (tensors, memories joined end to end, gradients likewise) → (memories, updates).

    Returns:
        A transformation whose state is a `BatchesState`; its memories are float32.
    """
    single = jax.eval_shape(lambda: state(()))
    inner = jax.tree.structure(single)

    def init(params: Params) -> BatchesState:
        empty = jax.tree.leaves(state(()))
        return BatchesState(inner.unflatten([jax.tree.map(lambda p, x=x: beside(p, x), params) for x in empty]))

    def move(tensors: Tensors, elements: list[Array], numbers: list[Array]) -> tuple[list[Array], list[Array]]:
        gradient, *fields = elements
        memory, moved = step(tensors, inner.unflatten(fields), gradient)
        return [moved, *inner.flatten_up_to(memory)], numbers

    def update(updates, state, params=None):
        del params
        (steps, *fields), _ = in_batches(move, [updates, *inner.flatten_up_to(state.memory)])
        return steps, BatchesState(inner.unflatten(fields))

    return optax.GradientTransformation(init, update)


def scale_by_rows(
    state: Callable[[tuple], State],
    extent: Callable[[tuple], int],
    step: Callable[[Tensors, State, Array], tuple[State, Array]],
) -> optax.GradientTransformation:
    """Keep a few memories for every tensor, and take the steps of all tensors in one call.

    Args:
        state: *s → an empty memory of that shape.
        extent: a tensor's shape → how many memories it has.
        step: (tensors, memories of all tensors [n …], gradients end to end) → (memories, updates).

    Returns:
        A transformation whose state is a `BatchesState`; its memories are float32. Gradients that are sharded are
        gathered, updates are sharded as they were.
    """
    inner = jax.tree.structure(jax.eval_shape(lambda: state(())))

    def init(params: Params) -> BatchesState:
        return BatchesState(state((sum(extent(jnp.shape(p)) for p in jax.tree.leaves(params)),)))

    def move(tensors: Tensors, elements: list[Array], numbers: list[Array]) -> tuple[list[Array], list[Array]]:
        memory, moved = step(tensors, inner.unflatten(numbers), elements[0])
        return [moved], inner.flatten_up_to(memory)

    def update(updates, state, params=None):
        del params
        rows = [extent(g.shape) for g in jax.tree.leaves(updates)]
        whole = jax.tree.map(gathered, updates)
        (steps,), fields = in_batches(move, [whole], inner.flatten_up_to(state.memory), math.inf, rows)
        return jax.tree.map(sharded_as, steps, updates), BatchesState(inner.unflatten(fields))

    return optax.GradientTransformation(init, update)


def beside(p: Array, x: Array) -> Array:
    """x for every element of p: [*p *x], sharded as p where shardings are part of types."""
    rank = jnp.ndim(p)
    return jnp.zeros_like(p, dtype=x.dtype).reshape(*jnp.shape(p), *(1,) * x.ndim) + x.reshape(*(1,) * rank, *x.shape)


def is_sharded(x: Array) -> bool:
    """Whether a sharding over some axis is part of the array's type, as on a mesh with explicit axes."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def gathered(x: Array) -> Array:
    """The same array, whole on every device."""
    return jax.sharding.reshard(x, jax.typeof(x).sharding.update(spec=PartitionSpec())) if is_sharded(x) else x


def sharded_as(x: Array, like: Array) -> Array:
    """x with the sharding that is part of another array's type."""
    return jax.sharding.reshard(x, jax.typeof(like).sharding) if is_sharded(like) else x


def batches(tensors: list[Array], apart: list[bool], together: int | float) -> list[list[int]]:
    """Which tensors go through a step in one call: each large one and each to stay apart alone, all others together.

    Those of one shape stand side by side, as `lay` wants them.
    """
    alone = [t.size >= together or own for t, own in zip(tensors, apart, strict=True)]
    rank = {shape: k for k, shape in enumerate(dict.fromkeys(t.shape for t in tensors))}
    small = sorted((i for i, large in enumerate(alone) if not large), key=lambda i: rank[tensors[i].shape])
    return [[i] for i, large in enumerate(alone) if large] + ([small] if small else [])


def by_shape(f: Callable, shapes: list[tuple], *args: list) -> list:
    """Apply f to every tensor, compiled once for all that share a shape, as those of a deep network's layers do."""
    outs = [None] * len(shapes)
    for shape in dict.fromkeys(shapes):
        where = [i for i, other in enumerate(shapes) if other == shape]
        groups = [tuple(arg[i] for arg in args) for i in where]
        if len(where) == 1:  # a large tensor is not copied
            outs[where[0]] = f(*groups[0])
            continue
        together = jax.vmap(f)(*jax.tree.map(lambda *x: jnp.stack(x), *groups))
        for k, i in enumerate(where):
            outs[i] = jax.tree.map(lambda x, k=k: x[k], together)
    return outs


def join(arrays: list[Array], shapes: Sequence[tuple]) -> Array:
    """Lay arrays [*shape …] of different shapes end to end: [p …]. A single one stays as it is."""
    return arrays[0] if len(arrays) == 1 else lay(arrays, shapes)


def split(joined: Array, shapes: Sequence[tuple]) -> list[Array]:
    """Undo `join`."""
    return [joined] if len(shapes) == 1 else cut(joined, shapes)


def lay(arrays: list[Array], shapes: Sequence[tuple]) -> Array:
    """Lay arrays end to end, neighbours of one shape at a time.

    Each stack of these passes a table of places, through which a sharding does not spread to the other stacks.
    """
    stacks = []
    for shape, group in groupby(range(len(arrays)), key=lambda i: shapes[i]):
        stack = jax.lax.optimization_barrier(jnp.stack([arrays[i] for i in group]))
        count = len(stack) * math.prod(shape)
        stacks.append(_take(stack.reshape(count, *stack.shape[1 + len(shape) :]), np.arange(count)))
    return jnp.concatenate(stacks)


def cut(joined: Array, shapes: Sequence[tuple]) -> list[Array]:
    """Cut, by tables of places. XLA would compile a kernel for every slice, each with all that it is cut from in it."""
    places = np.arange(len(joined))
    ends = np.cumsum([math.prod(s) for s in shapes])
    parts = zip(np.split(places, ends[:-1]), shapes, strict=True)
    return [_take(joined, part).reshape(*s, *joined.shape[1:]) for part, s in parts]


def _take(joined: Array, part: np.ndarray) -> Array:
    if len(part) == 0:
        return joined[:0]
    if len(part) != 1 or len(joined) == 1:
        along = tuple(range(1, joined.ndim))
        return jax.lax.gather(  # `joined[part]` traces to a dozen operations
            joined,
            part.astype(np.int32)[:, None],
            jax.lax.GatherDimensionNumbers(along, collapsed_slice_dims=(0,), start_index_map=(0,)),
            slice_sizes=(1, *joined.shape[1:]),
            indices_are_sorted=True,
            unique_indices=True,
            mode="promise_in_bounds",
        )
    # A table of one place would become a slice.
    here = (np.arange(len(joined)) == part).reshape(-1, *(1,) * (joined.ndim - 1))
    return jnp.sum(jnp.where(here, joined, 0), axis=0, dtype=joined.dtype)
