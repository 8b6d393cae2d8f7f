"""Adam's step at a learned pace, in Adam's eight bytes a parameter.

    m_t = m_{t−1} + α (g_t − m_{t−1}),    v_t = v_{t−1} + β (g_t² − v_{t−1})
    d_t = ((1 − ν) m̂_t + ν g_t) / (√v̂_t + ε)
    Δx_t = −10⁻² · (1 − 0.9ᵗ) · min(1, 20,000 / N)^½ · exp( wᵀ f_t + b ) · d_t

As in `pace`, a few numbers of each tensor say how far to go; whether gradients agree with past steps is asked of
m_{t−1} / √v_{t−1}, which Adam keeps anyway, so that no copy of the last step is needed. The sum of past agreements is
weighted by 1 / (1 + t/τ): where gradients are mostly noise the pace then falls as a power of t, which has no horizon,
and not exponentially. The certainty, −½ log(1 − agreement), tells apart agreements that are all near one. The mean of
all tensors' courses, this one's among them, and the number of tensors are features as well. The averages' own speeds α
and β and the look ahead ν are learned with the law. The first steps are shorter, a tenth at first and two thirds at the
tenth: nothing is known of agreement yet, and a trained network that goes on without its state would lose much by long
ones. Steps also get shorter as the network gets larger, with the root of its number N of elements. The largest network
that the law was searched on has 15,370, and without this factor steps are about four times too long at a million.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mnemosyne.optimizer import pace
from mnemosyne.optimizer.packing import in_batches
from mnemosyne.optimizer.sizes import root, root_mean_squares
from mnemosyne.optimizer.transform import for_any_network
from mnemosyne.types import Learned, Params, Theta

FEATURES = (
    *pace.FEATURES,
    "signal",  # log of the direction's root-mean-square: 0.2 where gradients are noise, 1 where they agree
    "signal × time",
    "certainty, 10 steps",  # −½ log(1 − agreement)
    "certainty, 50 steps",
    "course of all",  # mean of the courses of all tensors that have had a gradient, before this step
    "tensors",  # ½ log of their number, up to 64, centred at e²
)
"""What the law knows of a tensor. None changes when the loss is multiplied by a constant."""

RATE = 1e-2
"""The step at a pace of one: that of Adam where a network is easy."""

SMALL = 20_000
"""Elements of a network beyond which steps get shorter."""

_SETTLING = 300.0  # τ, in steps
_WARMING = 0.9  # per step, of what the first steps lack
_MANY = 64.0  # the largest number of tensors that counts: the search saw 4 to 71
_CERTAIN = 0.95  # the largest agreement that counts
_LARGEST = 1e15  # of a gradient, in units of its tensor's first one: its square is a float32


class SlimState(NamedTuple):
    """Adam's state, and eight numbers per tensor."""

    count: Int[Array, ""]  # int32, steps taken
    mean: Params  # float32, m; gradients are counted in units of their tensor's first one
    square: Params  # float32, v
    agreement: Float[Array, "n 2"]  # float32, running cosines over 10 and 50 steps, tensors in the leaves' order
    size: Float[Array, "n 3"]  # float32, running gradient sizes over 10 and 100 steps, and the latter's maximum
    course: Float[Array, "n"]  # float32, the integral
    start: Float[Array, "n"]  # float32, see `pace.starts`
    unit: Float[Array, "n"]  # float32, root-mean-square of the first gradient that was not zero


_FIRST = {"time": 0.5, "scale": 3.0, "agreement, 50 steps": 0.7, "decline": -0.5, "trend": -0.7, "extent": 0.1}
_FIRST |= {"course": 1.0, "signal": 0.4, "certainty, 10 steps": 1.0, "certainty, 50 steps": 0.5}
_FIRST |= {"course of all": -0.5, "tensors": -0.6}


def slim() -> Learned:
    """Build the optimizer: θ = {"w": [15], "b": [], "target": [], "speeds": [2], "ahead": []}.

    The law before the search is what earlier ones found on runs of 3,200 steps, in round numbers.
    """

    def init(key: Array) -> Theta:
        del key
        first = {"w": [_FIRST.get(name, 0.0) for name in FEATURES], "b": 0.5, "target": 0.7}
        first |= {"speeds": [-0.7, 0.3], "ahead": 0.9}
        return {name: jnp.array(value, jnp.float32) for name, value in first.items()}

    return Learned(init, lambda theta: for_any_network(scale_by_slim(theta)))


def scale_by_slim(theta: Theta) -> optax.GradientTransformationExtraArgs:
    """Turn gradients into updates; see the module. Gradients must be finite and of float32."""
    fast = jnp.clip(0.1 * jnp.exp(theta["speeds"][0]), 1e-3, 1.0)
    slow = jnp.clip(0.01 * jnp.exp(theta["speeds"][1]), 1e-4, 1.0)
    ahead = jax.nn.sigmoid(theta["ahead"] - 2.0)

    def init(params: Params) -> SlimState:
        numbers = lambda *shape: jnp.zeros((len(jax.tree.leaves(params)), *shape), jnp.float32)
        empty = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)
        start = pace.starts(params)
        return SlimState(jnp.zeros((), jnp.int32), empty, empty, numbers(2), numbers(3), numbers(), start, numbers())

    def update(updates, state, params=None, **extra):
        del params, extra
        count = optax.safe_increment(state.count)
        t = count.astype(jnp.float32)
        at = (t, *of_all(state.course, state.unit, t))

        def advance(tensors, elements, numbers):
            (g, m, v), (*moving, start, unit) = elements, numbers
            rms, cosine = pace.sizes_and_cosines(tensors, g, -m / (root(v) + 1e-8))
            unit = jnp.where(unit > 0, unit, rms)
            g = jnp.clip(g / tensors.spread(jnp.where(unit > 0, unit, 1.0)), -_LARGEST, _LARGEST)
            m, v = m + fast * (g - m), v + slow * (g * g - v)
            looked = (1.0 - ahead) * m / (1.0 - (1.0 - fast) ** t) + ahead * g
            way = looked / (root(v / (1.0 - (1.0 - slow) ** t)) + 1e-8)
            seen = rms, cosine, root_mean_squares(tensors, way)
            stride, *moving = jax.vmap(partial(law, theta, *at))(*seen, *moving, start, *pace.kinds(tensors))
            return [-RATE * (1.0 - _WARMING**t) * tensors.spread(stride) * way, m, v], [*moving, start, unit]

        numbers = [state.agreement, state.size, state.course, state.start, state.unit]
        (moved, mean, square), after = in_batches(advance, [updates, state.mean, state.square], numbers)
        return for_size(moved, after[-1]), SlimState(count, mean, square, *after)

    return optax.GradientTransformationExtraArgs(init, update)


def of_all(
    course: Float[Array, "n"], unit: Float[Array, "n"], t: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What each tensor may know of all: the mean of the courses, and ½ log n − 1 of their number n, up to 64.

    Tensors that have had no gradient do not count: frozen ones would pull the mean down, step by step.
    """
    live = (unit > 0) | (t <= 1)
    n = jnp.maximum(jnp.sum(live.astype(jnp.float32)), 1.0)
    return jnp.sum(jnp.where(live, course, 0.0)) / n, jnp.log(jnp.minimum(n, _MANY)) / 2.0 - 1.0


def for_size(moved: Params, unit: Float[Array, "n"]) -> Params:
    """Steps times min(1, 20,000 / N)^½, for the N elements of all tensors that have had a gradient, this step's too."""
    sizes = np.array([jnp.size(x) for x in jax.tree.leaves(moved)], np.float32)
    if sizes.sum() <= SMALL:
        return moved
    n = jnp.maximum(jnp.sum(jnp.where(unit > 0, sizes, 0.0)), SMALL)
    return jax.tree.map(lambda x: root(SMALL / n) * x, moved)


def law(
    theta: Theta,
    t: Float[Array, ""],
    course_of_all: Float[Array, ""],
    how_many: Float[Array, ""],
    rms: Float[Array, ""],
    cosine: Float[Array, ""],
    signal: Float[Array, ""],
    agreement: Float[Array, "2"],
    size: Float[Array, "3"],
    course: Float[Array, ""],
    *known: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "2"], Float[Array, "3"], Float[Array, ""]]:
    """`pace.law` with six more features and a course that settles.

    Args:
        theta, t: as there.
        course_of_all, how_many: what `of_all` returns.
        rms, cosine: as there.
        signal: the direction's root-mean-square.
        agreement, size, course, known: as there.
    """
    agreement, size = pace.watch(t, rms, cosine, agreement, size)
    course = pace.follow(theta, agreement, course, 1.0 / (1.0 + t / _SETTLING))
    clear = jnp.clip(jnp.log(jnp.maximum(signal, 1e-8)), -5.0, 1.0) / 2.0 + 0.5
    certainty = -0.5 * jnp.log1p(-jnp.minimum(agreement, _CERTAIN))
    more = jnp.stack([clear, clear * pace.clock(t), *certainty, course_of_all, how_many])
    seen = jnp.concatenate([pace.features(t, agreement, size, course, *known), more])
    return pace.stride(theta, seen), agreement, size, course
