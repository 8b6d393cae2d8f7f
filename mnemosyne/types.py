"""Names shared by every module: parameters, weights of an optimizer, batches, tasks. No logic."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Float

Params = Any  # a pytree of floating-point arrays: what an optimizer trains
Theta = Any  # a pytree of arrays: what meta-training trains, i.e. the learned optimizer itself
State = Any  # a pytree of arrays carried from one step to the next
Data = Any  # a pytree of arrays that stays on the device: all examples of a task
Batch = Any  # a pytree of arrays with a leading axis of examples, and whatever else a loss reads, as it is
Scalar = Float[Array, ""]


class Task(NamedTuple):
    """One optimizee: a network, its data and its loss, as pure functions.

    A task holds no state, so the same value is trained by many optimizers and seeds at once under `vmap`.
    Its data are handed to `batch` and `metrics` as an argument, so that compiled programs share one copy.
    """

    name: str  # unique within a set of tasks; the `task` column of every result
    data: Data
    init: Callable[[Array], Params]  # key → parameters
    batch: Callable[[Data, Array], Batch]  # (data, key) → one training batch
    loss: Callable[[Params, Batch], Scalar]  # mean loss over a batch
    metrics: Callable[[Params, Data], dict[str, Scalar]]  # on the validation split


class Learned(NamedTuple):
    """A learned optimizer before it has learned: what meta-training needs to know of it, and no more."""

    init: Callable[[Array], Theta]  # key → θ
    make: Callable[[Theta], optax.GradientTransformationExtraArgs]  # θ → the optimizer with these weights
