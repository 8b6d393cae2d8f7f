"""Pace: how far to go, learned apart from where to go.

A rule that was trained on windows of 20 steps knows directions, and little of step sizes: a short window rewards
small steps (Wu et al. 2018), and nothing in a memory of ten steps says that training is late. So the direction is
multiplied, tensor by tensor, by a power law of what can be seen at the time,

    Δx_t = exp( wᵀ f_t + b ) · direction_t,

whose nine numbers (w, b) are evolved over whole runs. The law reads as one: a weight on log t is an exponent of a
schedule, a weight on the agreement of gradients with past steps speeds up where steps were too short.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mnemosyne.coordinate import Rule
from mnemosyne.optimizer import drop_in, root_mean_square, zero_nonfinite
from mnemosyne.types import Learned, Params, State, Theta

FEATURES = (
    "time",  # log(1 + t), centred at t = 54
    "scale",  # log of the tensor's root-mean-square at the start
    "vector",  # 1 for biases, gains and scalars
    "agreement, 10 steps",  # running cosine of gradient and minus the step before
    "agreement, 50 steps",
    "decline",  # log of the running gradient size over its largest so far
    "trend",  # log of the gradient's size over 10 steps against 100
    "extent",  # log of the number of elements
)
"""What the law knows of a tensor. None changes when the loss is multiplied by a constant."""

_RANGE = (-6.0, 4.0)  # of log pace


class PaceState(NamedTuple):
    """One copy of the parameters, and eight numbers per tensor."""

    direction: State  # of the direction's optimizer
    count: Int[Array, ""]  # int32, steps taken
    step: Params  # tree of float32 arrays, the last update
    agreement: Params  # tree of float32 [2], running cosines over 10 and 50 steps
    size: Params  # tree of float32 [3], running gradient sizes over 10 and 100 steps, and the latter's maximum
    start: Params  # tree of float32 scalars, root-mean-square of each tensor at initialisation


def pace_init(key: Array) -> Theta:
    """A law that does nothing but decay: (1 + t)^{−1/5}, once t has passed 54."""
    del key
    return {"w": jnp.zeros(len(FEATURES)).at[0].set(-0.8), "b": jnp.zeros(())}


def features(
    t: Float[Array, ""], agreement: Float[Array, "2"], size: Float[Array, "3"], start: Float[Array, ""], like: Array
) -> Float[Array, "k"]:
    """f_t of one tensor, each of order one; see `FEATURES`."""
    short, long = size[0] / (1.0 - 0.9**t), size[1] / (1.0 - 0.99**t)
    ratio = lambda a, b: jnp.log(jnp.maximum(a, 1e-37) / jnp.maximum(b, 1e-37))
    seen = [
        jnp.log1p(t) / 4.0 - 1.0,
        jnp.log(start + 1e-3) / 3.0 + 0.7,
        jnp.float32(like.ndim < 2),
        *jnp.tanh(5.0 * agreement),
        jnp.clip(ratio(long, size[2]), -4.0, 0.0) / 2.0,
        jnp.clip(ratio(short, long), -3.0, 3.0),
        jnp.log(jnp.float32(max(like.size, 1))) / 5.0 - 1.4,
    ]
    return jnp.stack(seen)


def watch(
    t: Float[Array, ""], g: Array, step: Array, agreement: Float[Array, "2"], size: Float[Array, "3"]
) -> tuple[Array, Array]:
    """Update one tensor's running numbers with a gradient: (agreement, size)."""
    g = g.astype(jnp.float32)
    rms = root_mean_square(g)
    unit = g / jnp.where(rms > 0, rms, 1.0)
    length = root_mean_square(step) * max(g.size, 1)
    cosine = -jnp.sum(unit * step) / jnp.where(length > 0, length, 1.0)
    keep = jnp.array([0.9, 0.98])
    agreement = keep * agreement + (1.0 - keep) * cosine
    short, long = 0.9 * size[0] + 0.1 * rms, 0.99 * size[1] + 0.01 * rms
    return agreement, jnp.stack([short, long, jnp.maximum(size[2], long / (1.0 - 0.99**t))])


def at_pace(theta: Theta, direction: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Multiply an optimizer's updates, tensor by tensor, by exp(wᵀ f_t + b).

    Args:
        theta: {"w": [8], "b": []}, the law.
        direction: any optimizer; gradients must be finite.

    Returns:
        A transformation whose updates have the dtypes of the direction's.
    """
    direction = optax.with_extra_args_support(direction)

    def init(params: Params) -> PaceState:
        inner = direction.init(params)
        numbers = lambda n: jax.tree.map(lambda _: jnp.zeros(n, jnp.float32), params)
        step = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), params)
        start = jax.tree.map(lambda p: root_mean_square(jnp.asarray(p, jnp.float32)), params)
        return PaceState(inner, jnp.zeros((), jnp.int32), step, numbers(2), numbers(3), start)

    def update(updates, state, params=None, **extra):
        steps, inner = direction.update(updates, state.direction, params, **extra)
        count = optax.safe_increment(state.count)
        t = count.astype(jnp.float32)
        gradients, tree = jax.tree.flatten(updates)
        last, agreements, sizes, starts = (tree.flatten_up_to(f) for f in state[2:])
        seen = [watch(t, *tensor) for tensor in zip(gradients, last, agreements, sizes, strict=True)]
        after = []
        for (agreement, size), start, u in zip(seen, starts, jax.tree.leaves(steps), strict=True):
            f = features(t, agreement, size, start, u)
            after.append(jnp.exp(jnp.clip(f @ theta["w"] + theta["b"], *_RANGE)) * u.astype(jnp.float32))
        out = tree.unflatten([a.astype(u.dtype) for a, u in zip(after, jax.tree.leaves(steps), strict=True)])
        agreements, sizes = ([s[i] for s in seen] for i in (0, 1))
        fields = [tree.unflatten(f) for f in (after, agreements, sizes, starts)]
        return out, PaceState(inner, count, *fields)

    return optax.GradientTransformationExtraArgs(init, update)


def paced(rule: Rule) -> Learned:
    """A coordinate-wise rule at a learned pace: θ = {"direction": the rule's, "pace": the law's}."""

    def init(key: Array) -> Theta:
        return {"direction": rule.init(key), "pace": pace_init(key)}

    return Learned(init, lambda theta: optax.chain(zero_nonfinite(), at_pace(theta["pace"], drop_in(theta["direction"], rule))))


def pace_of(direction: Callable[[], optax.GradientTransformation]) -> Learned:
    """The law alone, to be evolved over a direction that is given."""
    return Learned(pace_init, lambda theta: optax.chain(zero_nonfinite(), at_pace(theta, direction())))
