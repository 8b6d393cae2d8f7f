"""Running sizes of gradients: what a learned rule is to see does not depend on the loss's unit.

One number for each tensor, `scale_by_tensor_rms`, or one more for each element, `scale_by_own_rms`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mnemosyne.optimizer.packing import Tensors, in_batches
from mnemosyne.optimizer.transform import in_float32
from mnemosyne.types import Params

RMS_DECAY = 0.999
"""Decay of each tensor's running gradient size: long enough that the rule sees gradients shrink."""

LIMIT = 1e3
"""The largest gradient let through, in units of its tensor's running size."""


def root_mean_squares(tensors: Tensors, g: Array) -> Float[Array, "n"]:
    """√(mean g²) of each tensor, without overflow or underflow of the squares; 0 for an empty one."""
    largest = tensors.largest(jnp.abs(g))
    # The reciprocal of a very large number would be flushed to zero.
    shrink = jnp.where(largest > 1.0, 2.0**-10, 1.0)
    unit = tensors.spread(shrink) * g / tensors.spread(jnp.where(largest > 0, shrink * largest, 1.0))
    return largest * root(tensors.total(unit * unit) / np.maximum(tensors.sizes, 1))


def root(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """√x of x ≥ 0, with the derivative 0 at 0, where that of √ is infinite: 0 · ∞ in a meta-gradient is NaN."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


class ScaleByTensorRmsState(NamedTuple):
    """One number per tensor."""

    count: Int[Array, ""]  # int32
    size: Float[Array, "n"]  # float32, running mean of each tensor's gradient root-mean-square, in the leaves' order


def scale_by_tensor_rms(decay: float = RMS_DECAY, limit: float = LIMIT) -> optax.GradientTransformation:
    """Divide each tensor's gradient by the running size of that tensor's gradients.

        s_t = β s_{t−1} + (1 − β) rms(g_t)        ĝ_t = clip( g_t (1 − β^t) / s_t, ±limit )

    Whatever the loss is multiplied by cancels, so a rule trained on gradients of one magnitude serves all.
    The paper feeds raw gradients; this is our addition, since log|g| alone makes an optimizer fail as soon
    as a loss is rescaled. `optax.identity()` in its place gives the paper's input.

    Args:
        decay: β in [0, 1), per step.
        limit: largest magnitude let through, in units of the running size.

    Returns:
        A transformation whose updates are float32. A tensor that has had only zero gradients gives zeros.

    Raises:
        ValueError: if decay is outside [0, 1).

    Numerics: sizes from 1e-37 to 1e38 are told apart, since squares are taken after dividing by the maximum.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")

    def init(params: Params) -> ScaleByTensorRmsState:
        size = jnp.zeros(len(jax.tree.leaves(params)), jnp.float32)
        return ScaleByTensorRmsState(count=jnp.zeros((), jnp.int32), size=size)

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        unbias = 1.0 - decay ** count.astype(jnp.float32)

        def scale(tensors, elements, sizes):
            g, size = by_running_size(tensors, elements[0], sizes[0], unbias, decay)
            return [jnp.clip(g, -limit, limit)], [size]

        (updates,), (size,) = in_batches(scale, [in_float32(updates)], [state.size])
        return updates, ScaleByTensorRmsState(count, size)

    return optax.GradientTransformation(init, update)


def by_running_size(
    tensors: Tensors, g: Array, size: Float[Array, "n"], unbias: Float[Array, ""], decay: float
) -> tuple[Array, Float[Array, "n"]]:
    """Divide gradients by their tensors' running sizes: (ĝ before it is clipped, sizes); see `scale_by_tensor_rms`."""
    g = g.astype(jnp.float32)
    size = decay * size + (1.0 - decay) * root_mean_squares(tensors, g)
    typical = tensors.spread(jnp.where(size > 0, size / unbias, 1.0))
    return g / typical, size


def scale_by_own_rms(decay: float = RMS_DECAY) -> optax.GradientTransformation:
    """Divide each tensor's gradient by its running size, then each element by its own, as Adam does.

    Returns:
        A transformation with one more number of state per parameter, float32. Invariant to a factor on the loss.

    Numerics: elements whose size stays below a thousandth of their tensor's are not raised to one.
    """
    tensor, own = scale_by_tensor_rms(decay), optax.scale_by_rms(decay, eps=1e-6, bias_correction=True)

    def init(params: Params) -> tuple:
        return tensor.init(params), own.init(in_float32(params))

    def update(updates, state, params=None):
        del params
        of_tensors, of_elements = state
        count = optax.safe_increment(of_tensors.count)
        unbias = 1.0 - decay ** count.astype(jnp.float32)

        def scale(tensors, elements, sizes):
            g, size = by_running_size(tensors, elements[0], sizes[0], unbias, decay)
            (g,), after = own.update([jnp.clip(g, -LIMIT, LIMIT)], of_elements._replace(nu=[elements[1]]))
            return [g, *after.nu], [size]

        (updates, nu), (size,) = in_batches(scale, [in_float32(updates), of_elements.nu], [of_tensors.size])
        return updates, (ScaleByTensorRmsState(count, size), of_elements._replace(count=count, nu=nu))

    return optax.GradientTransformation(init, update)
