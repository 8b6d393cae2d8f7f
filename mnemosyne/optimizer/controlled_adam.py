"""Adam under control: a memory for every tensor moves its rate, β₁, β₂ and ε (Metz et al. 2022, §2.2).

    features of each tensor → memory → linear → four hyper-parameters, moved a little each step

The memory is an argument. The paper has an LSTM there:

    nn_adam(lstm(hidden=32))                 # theirs
    nn_adam(cam(projections=16))             # the same controller with a compact associative memory
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mnemosyne.memory.contract import Memory
from mnemosyne.memory.layers import linear
from mnemosyne.optimizer.packing import Tensors, in_batches
from mnemosyne.optimizer.perparameter import check_params
from mnemosyne.optimizer.transform import for_any_network, in_float32
from mnemosyne.types import Learned, Params, State, Theta

ADAM = (1e-4, 0.9, 0.999, 1e-8)
"""Where nn_adam's hyper-parameters start: α, β₁, β₂ and ε."""

_FEATURES = 19
_MOVE = 0.01  # what an output of one moves a tenth of a hyper-parameter's logarithm by


class NNAdamState(NamedTuple):
    """Adam's two moments, and for each tensor four hyper-parameters and a memory."""

    m: Params  # tree of arrays, float32
    v: Params  # tree of arrays, float32
    control: Float[Array, "n 4"]  # a tenth of log rate, log(1 − β₁), log(1 − β₂) and log ε, tensors in leaves' order
    memory: State  # a row for each tensor


def nn_adam(memory: Memory, *, width: int = 32) -> Learned:
    """Adam whose rate, β₁, β₂ and ε a memory moves step by step, for each tensor its own (Metz et al. 2022, §2.2).

        m ← β₁ m + (1 − β₁) g,     v ← β₂ v + (1 − β₂) g²,     Δp = −α (1 + ε) m / (ε + √(v + 10⁻¹⁰))
        [log α, log(1−β₁), log(1−β₂), log ε] ← clip( … + 0.1 W memory(features) ),   used from the next step on

    There is no bias correction. α(1 + ε) lets a large ε make it momentum without α growing alike. W starts at zero, so
    that an untrained one is Adam with `ADAM`'s values, which are weights too.

    Args:
        memory: what each tensor remembers with; `recurrent.lstm(hidden=32)` in the paper.
        width: of the memory's answer.

    Returns:
        A `Learned` of 8 bytes a parameter. Its optimizer's `update` needs the parameters.

    Numerics: float32; gradients beyond ±1000 count as that. Empty tensors are carried along.

    Reference: the paper lists 12 features of a tensor, its code has these 19, see `tensor_features`.
    """

    def init(key: Array) -> Theta:
        rate, beta1, beta2, epsilon = ADAM
        return {
            "memory": memory.init(key, _FEATURES, _FEATURES, width),
            "start": memory.state((), _FEATURES, _FEATURES),
            "control": {"w": jnp.zeros((width, len(ADAM)), jnp.float32), "b": jnp.zeros(len(ADAM), jnp.float32)},
            "adam": 0.1 * jnp.log(jnp.array([rate, 1.0 - beta1, 1.0 - beta2, epsilon], jnp.float32)),
        }

    def make(theta: Theta) -> optax.GradientTransformationExtraArgs:
        return for_any_network(scale_by_controlled_adam(theta, memory))

    return Learned(init, make)


def scale_by_controlled_adam(theta: Theta, memory: Memory) -> optax.GradientTransformationExtraArgs:
    """Turn finite gradients into updates by Adam under control; see `nn_adam`."""

    def init(params: Params) -> NNAdamState:
        zeros, n = jax.tree.map(jnp.zeros_like, params), len(jax.tree.leaves(params))
        each = lambda x: jnp.broadcast_to(x, (n, *x.shape))
        return NNAdamState(zeros, zeros, within(each(theta["adam"])), jax.tree.map(each, theta["start"]))

    def step(tensors: Tensors, elements: list[Array], numbers: list[Array]) -> tuple[list[Array], list[Array]]:
        (g, p, m, v), (control, _) = elements, numbers
        g = jnp.clip(g, -1e3, 1e3)
        rate, beta1, beta2, epsilon = (tensors.spread(x) for x in from_control(control))
        m, v = beta1 * m + (1.0 - beta1) * g, beta2 * v + (1.0 - beta2) * g * g
        moved = -rate * (1.0 + epsilon) * m / (epsilon + jnp.sqrt(v + 1e-10))
        return [moved, p, m, v], [control, tensor_features(tensors, p, g, m, v, control)]

    def update(updates, state, params=None, **extra):
        del extra
        check_params(params)
        n = len(jax.tree.leaves(updates))
        unseen = jnp.zeros((n, _FEATURES), jnp.float32)
        trees = [updates, in_float32(params), state.m, state.v]
        (steps, _, m, v), (control, seen) = in_batches(step, trees, [state.control, unseen])
        remembered, out = memory.step(theta["memory"], state.memory, seen, seen) if n else (state.memory, unseen)
        moved = control + _MOVE * linear(theta["control"], out) if n else control
        return steps, NNAdamState(m, v, within(moved), remembered)

    return optax.GradientTransformationExtraArgs(init, update)


def from_control(control: Float[Array, "n 4"]) -> tuple[Array, Array, Array, Array]:
    """(α, β₁, β₂, ε) of each tensor."""
    rate, beta1, beta2, epsilon = jnp.moveaxis(jnp.exp(10.0 * control), -1, 0)
    return rate, 1.0 - beta1, 1.0 - beta2, epsilon


def within(control: Float[Array, "n 4"]) -> Float[Array, "n 4"]:
    """The nearest values that are allowed: α in [10⁻⁸, 10³], 1 − β in [e⁻¹⁰, 1], ε in [10⁻¹¹, 10⁴]."""
    low = [math.log(1e-8), -10.0, -10.0, math.log(1e-11)]
    high = [math.log(1e3), 0.0, 0.0, math.log(1e4)]
    return jnp.clip(control, *(0.1 * jnp.array([limit], jnp.float32) for limit in (low, high)))


def tensor_features(
    tensors: Tensors, p: Array, g: Array, m: Array, v: Array, control: Float[Array, "n 4"]
) -> Float[Array, "n 19"]:
    """What nn_adam's memory sees of each tensor, in the order of their names in its authors' code.

    β₁, β₂, ε, is_bias, is_scalar, α, then of g its mean (log and sign) and mean size, of m and p their means (log and
    sign), of v its mean (log and sign), and the variances of g, m, p and v. Logarithms are 0.5 clip(log|x|, ±5).
    """
    log = lambda x: 0.5 * clipped_log(x)
    rate, beta1, beta2, epsilon = jnp.moveaxis(0.2 * jnp.clip(control, -5.0, 5.0), -1, 0)
    mean = {name: tensors.mean(x) for name, x in {"g": g, "m": m, "p": p, "v": v}.items()}
    var = lambda x, centre: tensors.mean((x - tensors.spread(centre)) ** 2)
    is_rank = lambda rank: jnp.array([1.0 if len(s) == rank else -1.0 for s in tensors.shapes], jnp.float32)
    both = lambda x: [log(x), jnp.sign(x)]
    means = [*both(mean["g"]), log(tensors.mean(jnp.abs(g))), *both(mean["m"]), *both(mean["p"]), *both(mean["v"])]
    variances = [log(var(x, mean[name])) for name, x in {"g": g, "m": m, "p": p, "v": v}.items()]
    return jnp.stack([beta1, beta2, epsilon, is_rank(1), is_rank(0), rate, *means, *variances], axis=-1)


def clipped_log(x: Array) -> Array:
    """clip(log(|x| + 10⁻⁸), ±5)."""
    return jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5.0, 5.0)
