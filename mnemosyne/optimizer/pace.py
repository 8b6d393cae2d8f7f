"""Pace: how far to go, learned apart from where to go.

A rule that was trained on windows of 20 steps knows directions, and little of step sizes: a short window rewards
small steps (Wu et al. 2018), and nothing in a memory of ten steps says that training is late. So the direction is
multiplied, tensor by tensor, by a power law of what can be seen at the time,

    Δx_t = exp( wᵀ f_t + b ) · direction_t,

whose few numbers are searched for over whole runs. The law reads as one: a weight on log t is an exponent of a
schedule; a weight on the agreement of gradients with past steps speeds up where steps were too short. One feature is
the sum of past agreements beyond a target, an integral controller: with a range of e^±6 it finds step sizes that no
feature at one time could tell (a hypergradient, Baydin et al. 2018, in units of angles).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, DTypeLike, Float, Int

from mnemosyne.optimizer.packing import Tensors, in_batches
from mnemosyne.optimizer.sizes import root, root_mean_squares
from mnemosyne.optimizer.transform import for_any_network, in_float32
from mnemosyne.types import Learned, Params, State, Theta

FEATURES = (
    "time",  # log(1 + t), centred at t = 54
    "scale",  # log of the tensor's root-mean-square at the start, see `starts`
    "vector",  # 1 for biases, gains and scalars
    "agreement, 10 steps",  # running cosine of gradient and minus the step before
    "agreement, 50 steps",
    "decline",  # log of the running gradient size over its largest so far
    "trend",  # log of the gradient's size over 10 steps against 100
    "extent",  # log of the number of elements
    "course",  # sum over past steps of the agreement's excess over the target
)
"""What the law knows of a tensor. None changes when the loss is multiplied by a constant."""

_RANGE = (-6.0, 6.0)  # of log pace, and of the integral
_GAIN = 0.02  # of the integral per step: a factor of e in 50 steps of full agreement


class PaceState(NamedTuple):
    """One copy of the parameters, and seven numbers per tensor."""

    direction: State  # of the direction's optimizer
    count: Int[Array, ""]  # int32, steps taken
    step: Params  # tree of arrays, the last update
    agreement: Float[Array, "n 2"]  # float32, running cosines over 10 and 50 steps, tensors in the leaves' order
    size: Float[Array, "n 3"]  # float32, running gradient sizes over 10 and 100 steps, and the latter's maximum
    course: Float[Array, "n"]  # float32, the integral
    start: Float[Array, "n"]  # float32, see `starts`


def pace_init(key: Array) -> Theta:
    """The law before the search: a slow decay, (1 + t)^{−1/5}, and the integral."""
    del key
    w = jnp.zeros(len(FEATURES), jnp.float32).at[FEATURES.index("time")].set(-0.8).at[FEATURES.index("course")].set(1.0)
    return {"w": w, "b": jnp.zeros((), jnp.float32), "target": jnp.zeros((), jnp.float32)}


def features(
    t: Float[Array, ""],
    agreement: Float[Array, "2"],
    size: Float[Array, "3"],
    course: Float[Array, ""],
    start: Float[Array, ""],
    vector: Float[Array, ""],
    extent: Float[Array, ""],
) -> Float[Array, "9"]:
    """f_t of one tensor of `extent` elements, each of order one; see `FEATURES`."""
    short, long = size[0] / (1.0 - 0.9**t), size[1] / (1.0 - 0.99**t)
    # Not the logarithm of the ratio, whose derivative divides by b².
    ratio = lambda a, b: jnp.log(jnp.maximum(a, 1e-37)) - jnp.log(jnp.maximum(b, 1e-37))
    seen = (
        clock(t),
        jnp.log(jnp.maximum(start, 1e-8)) / 3.0 + 0.7,
        vector,
        *jnp.tanh(5.0 * agreement),
        jnp.clip(ratio(long, size[2]), -4.0, 0.0) / 2.0,
        jnp.clip(ratio(short, long), -3.0, 3.0),
        jnp.log(extent) / 5.0 - 1.4,
        course,
    )
    return jnp.stack(seen)


def clock(t: Float[Array, ""]) -> Float[Array, ""]:
    """The first feature: log(1 + t), of order one."""
    return jnp.log1p(t) / 4.0 - 1.0


def starts(params: Params) -> Float[Array, "n"]:
    """The scale of each tensor: of a matrix its root-mean-square; of all else, and of a zero one, the matrices'.

    A gain starts at one and a bias at zero, which says nothing of how far either should go. In a tree without
    matrices every tensor counts as one; where all is zero the scale is 0.1.
    """
    leaves = jax.tree.leaves(in_float32(params))
    if not leaves:
        return jnp.zeros(0, jnp.float32)
    sizes_of = lambda tensors, elements, _: ([], [root_mean_squares(tensors, elements[0])])
    own = in_batches(sizes_of, [leaves], [jnp.zeros(len(leaves), jnp.float32)])[1][0]
    matrix = np.array([jnp.ndim(p) > 1 for p in leaves])
    known = (own > 0) & (matrix if matrix.any() else True)
    sizes = jnp.where(known, jnp.array([jnp.size(p) for p in leaves], jnp.float32), 0.0)
    largest = jnp.maximum(jnp.max(jnp.where(known, own, 0.0)), 1e-30)
    others = largest * root(jnp.sum(sizes * (own / largest) ** 2) / jnp.maximum(jnp.sum(sizes), 1.0))
    return jnp.where(known, own, jnp.where(jnp.any(known), others, 0.1))


def watch(
    t: Float[Array, ""], rms: Float[Array, ""], cosine: Float[Array, ""], agreement: Array, size: Array
) -> tuple[Float[Array, "2"], Float[Array, "3"]]:
    """Update one tensor's running numbers with its gradient's size and cosine: (agreement, size)."""
    keep = jnp.array([0.9, 0.98], jnp.float32)
    agreement = keep * agreement + (1.0 - keep) * cosine
    short, long = 0.9 * size[0] + 0.1 * rms, 0.99 * size[1] + 0.01 * rms
    return agreement, jnp.stack([short, long, jnp.maximum(size[2], long / (1.0 - 0.99**t))])


def follow(
    theta: Theta,
    agreement: Float[Array, "2"],
    course: Float[Array, ""],
    weight: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """Add this step's excess of the agreement over the target, times its weight, to the integral."""
    excess = jnp.tanh(5.0 * agreement[0]) - jnp.tanh(theta["target"])
    return jnp.clip(course + _GAIN * weight * excess, *_RANGE)


def stride(theta: Theta, seen: Float[Array, "k"]) -> Float[Array, ""]:
    """exp(wᵀ f_t + b), between e⁻⁶ and e⁶."""
    return jnp.exp(jnp.clip(seen @ theta["w"] + theta["b"], *_RANGE))


def law(
    theta: Theta,
    t: Float[Array, ""],
    rms: Float[Array, ""],
    cosine: Float[Array, ""],
    agreement: Float[Array, "2"],
    size: Float[Array, "3"],
    course: Float[Array, ""],
    *known: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "2"], Float[Array, "3"], Float[Array, ""]]:
    """One tensor: (its pace, its agreement, size and course).

    Args:
        theta: the law.
        t: steps taken, this one among them.
        rms: the gradient's size.
        cosine: of the gradient and minus the last step.
        agreement, size, course: running numbers so far, see `PaceState`.
        known: its start, and its `kinds`.
    """
    agreement, size = watch(t, rms, cosine, agreement, size)
    course = follow(theta, agreement, course)
    return stride(theta, features(t, agreement, size, course, *known)), agreement, size, course


def kinds(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """What the law knows of each tensor beforehand, [n] and [n]: whether it is a vector or scalar, and its elements."""
    vector = np.array([len(shape) < 2 for shape in tensors.shapes], np.float32)
    return vector, np.maximum(tensors.sizes, 1).astype(np.float32)


def sizes_and_cosines(tensors: Tensors, g: Array, step: Array) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Each tensor's √(mean g²), and the cosine of g and minus its last step."""
    rms = root_mean_squares(tensors, g)
    unit = g / tensors.spread(jnp.where(rms > 0, rms, 1.0))
    length = root_mean_squares(tensors, step) * np.maximum(tensors.sizes, 1)
    return rms, -tensors.total(unit * step) / jnp.where(length > 0, length, 1.0)


def at_pace(
    theta: Theta, direction: optax.GradientTransformation, step_dtype: DTypeLike = jnp.float32
) -> optax.GradientTransformationExtraArgs:
    """Multiply an optimizer's updates, tensor by tensor, by exp(wᵀ f_t + b).

    Args:
        theta: {"w": [9], "b": [], "target": []}, the law.
        direction: any optimizer; gradients must be finite.
        step_dtype: of the copy of the last update, which serves to take one cosine; bfloat16 halves its bytes.

    Returns:
        A transformation whose updates have the dtypes of the direction's.
    """
    direction = optax.with_extra_args_support(direction)

    def init(params: Params) -> PaceState:
        inner = direction.init(params)
        numbers = lambda *shape: jnp.zeros((len(jax.tree.leaves(params)), *shape), jnp.float32)
        step = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=step_dtype), params)
        return PaceState(inner, jnp.zeros((), jnp.int32), step, numbers(2), numbers(3), numbers(), starts(params))

    def update(updates, state, params=None, **extra):
        steps, inner = direction.update(updates, state.direction, params, **extra)
        count = optax.safe_increment(state.count)

        def advance(tensors, elements, numbers):
            way, step, g = (x.astype(jnp.float32) for x in elements)
            seen = sizes_and_cosines(tensors, g, step)
            laws = jax.vmap(partial(law, theta, count.astype(jnp.float32)))
            pace, *numbers = laws(*seen, *numbers, *kinds(tensors))
            return [tensors.spread(pace) * way], numbers

        numbers = [state.agreement, state.size, state.course, state.start]
        (moved, *_), after = in_batches(advance, [steps, state.step, updates], numbers)
        kept = jax.tree.map(lambda step, like: step.astype(like.dtype), moved, state.step)
        return moved, PaceState(inner, count, kept, *after)

    return optax.GradientTransformationExtraArgs(init, update)


def paced(direction: Learned, step_dtype: DTypeLike = jnp.float32) -> Learned:
    """A learned optimizer at a learned pace: θ = {"direction": its own, "pace": the law's}; see `at_pace`."""

    def init(key: Array) -> Theta:
        return {"direction": direction.init(key), "pace": pace_init(key)}

    def make(theta: Theta) -> optax.GradientTransformationExtraArgs:
        steps = direction.make(theta["direction"])
        return for_any_network(at_pace(theta["pace"], steps, step_dtype))

    return Learned(init, make)


def pace_over(direction: optax.GradientTransformation) -> Learned:
    """The law alone, over a direction that is given."""
    return Learned(pace_init, lambda theta: for_any_network(at_pace(theta, direction)))
