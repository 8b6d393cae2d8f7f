"""A memory for every tensor beside a network for every parameter: rnn_fc (Metz et al. 2020).

    features of each tensor → memory → seventeen inputs of a network for every parameter → step

The memory is an argument, as of `nn_adam`; the paper has an LSTM of 64 there.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mnemosyne.memory.contract import Memory
from mnemosyne.memory.layers import linear
from mnemosyne.optimizer.accumulators import TIMES
from mnemosyne.optimizer.controlled_adam import clipped_log
from mnemosyne.optimizer.packing import Tensors, beside, in_batches
from mnemosyne.optimizer.perparameter import check_params, step_of, truncated_init
from mnemosyne.optimizer.sizes import root
from mnemosyne.optimizer.transform import for_any_network, in_float32
from mnemosyne.types import Learned, Params, Scalar, State, Theta

DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
"""Of rnn_fc's momenta and second moments, per step."""

_TO_NETWORK, _TO_MEMORY, _SHARED, _SEEN = 17, 16, 18, 18
_INPUTS = 3 + 4 * len(DECAYS)  # of each parameter
_PER_TENSOR = len(TIMES) + 3 + _TO_NETWORK
CLIP = 10.0
"""A gradient is clipped at so many times the running size of all of them."""


class Running(NamedTuple):
    """A loss's running mean and variance."""

    mean: Float[Array, ""]
    var: Float[Array, ""]
    count: Int[Array, ""]


class RNNState(NamedTuple):
    """Momenta and second moments, a memory for each tensor, and what they told each other at the last step."""

    count: Int[Array, ""]  # int32
    m: Params  # tree of arrays [*p 5], float32
    v: Params  # tree of arrays [*p 5], float32
    memory: State  # a row for each tensor
    shared: Float[Array, "s"]  # the mean of what all memories said
    heard: Float[Array, "n k"]  # the mean of what the networks of a tensor's parameters said
    train: Running  # of the training loss
    validation: Running  # of the validation loss, if it is ever given
    size: Float[Array, ""]  # running gradient size


def rnn_fc(memory: Memory, *, width: int = 64, hidden: int = 32) -> Learned:
    """A memory for each tensor beside a network for each parameter, which tell each other things (Metz et al. 2020).

        o = memory([ tensor's features, what its networks said, what all memories said ])
        (d, a, said) = MLP([ parameter's features, W o ]),       Δp = −10⁻³ d e^{a/1000}

    Args:
        memory: what each tensor remembers with; `recurrent.lstm(hidden=64)` in the paper.
        width: of the memory's answer.
        hidden: width of the network's two hidden layers.

    Returns:
        A `Learned` of 40 bytes a parameter. Its optimizer's `update(updates, state, params, *, value,
        validation=None)` needs the parameters and the training loss; a validation loss may be given now and then.

    Numerics: float32. Gradients are clipped at ten times their running size; a loss that is not finite is passed over.
    Empty tensors are carried along.

    Reference: Metz et al. 2020, https://arxiv.org/abs/2009.11243.
    """
    sizes = (_INPUTS + _PER_TENSOR, hidden, hidden, 2 + _TO_MEMORY)

    def init(key: Array) -> Theta:
        remember, network, shared, heard, *layers = jax.random.split(key, 4 + len(sizes) - 1)
        inputs = _SHARED + _TO_MEMORY + _SEEN
        normal = lambda k, n: jax.random.normal(k, (n,), jnp.float32) / n**0.5
        pairs = zip(layers, sizes[:-1], sizes[1:], strict=True)
        return {
            "memory": memory.init(remember, inputs, inputs, width),
            "start": memory.state((), inputs, inputs),
            "to_network": truncated_init(network, width, _TO_NETWORK),
            "to_memories": truncated_init(jax.random.fold_in(network, 1), width, _SHARED),
            "layers": [truncated_init(k, a, b) for k, a, b in pairs],
            "shared": normal(shared, _SHARED),
            "heard": normal(heard, _TO_MEMORY),
        }

    def make(theta: Theta) -> optax.GradientTransformationExtraArgs:
        return for_any_network(scale_by_memories_and_networks(theta, memory))

    return Learned(init, make)


def scale_by_memories_and_networks(theta: Theta, memory: Memory) -> optax.GradientTransformationExtraArgs:
    """Turn finite gradients into updates; see `rnn_fc`."""

    def init(params: Params) -> RNNState:
        n, zero, none = len(jax.tree.leaves(params)), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        traces = jax.tree.map(lambda p: beside(p, jnp.zeros(len(DECAYS), jnp.float32)), params)
        each = lambda x: jnp.broadcast_to(x, (n, *x.shape))
        start, losses = jax.tree.map(each, theta["start"]), Running(zero, zero, none)
        size = jnp.float32(0.01)
        return RNNState(none, traces, traces, start, theta["shared"], each(theta["heard"]), losses, losses, size)

    def update(updates, state, params=None, *, value=None, validation=None, **extra):
        del extra
        _check(params, value)
        value = jnp.asarray(value, jnp.float32)
        n, t = len(jax.tree.leaves(updates)), state.count.astype(jnp.float32)
        limit = CLIP * state.size / (1.0 - 0.99 ** (t + 1.0))
        g, p = jax.tree.map(lambda g: jnp.clip(g, -limit, limit), updates), in_float32(params)
        train, validated = follow(state.train, value, 0.9), state.validation
        if validation is not None:
            validated = follow(validated, jnp.asarray(validation, jnp.float32), 0.95)
        losses = jnp.stack([standing(train, value), standing(train, corrected(validated, 0.95)[0])])
        (_, m, v, _), (seen, squares) = in_batches(trace, [g, state.m, state.v, p], [zeros(n, _SEEN - 2), zeros(n)])
        if not n:
            return updates, state._replace(count=state.count + 1, train=train, validation=validated)
        inputs = memory_inputs(state, seen, losses)
        remembered, out = memory.step(theta["memory"], state.memory, inputs, inputs)
        step = partial(move, theta["layers"], sines(state.count), n)
        told = linear(theta["to_network"], out)
        (steps, *_), (_, heard) = in_batches(step, [g, p, m, v], [told, zeros(n, _TO_MEMORY)])
        shared = jnp.mean(linear(theta["to_memories"], out), axis=0)
        size = 0.99 * state.size + 0.01 * jnp.sqrt(1e-8 + jnp.mean(squares))
        return steps, RNNState(state.count + 1, m, v, remembered, shared, heard, train, validated, size)

    def trace(tensors: Tensors, elements: list[Array], numbers: list[Array]) -> tuple[list[Array], list[Array]]:
        del numbers
        g, m, v, p = elements
        beta = jnp.array(DECAYS, jnp.float32).reshape(*(1,) * g.ndim, -1)
        m, v = beta * m + (1.0 - beta) * g[..., None], beta * v + (1.0 - beta) * (g * g)[..., None]
        return [g, m, v], [statistics(tensors, m, v, p, g), tensors.mean(g * g)]

    return optax.GradientTransformationExtraArgs(init, update)


def statistics(tensors: Tensors, m: Array, v: Array, p: Array, g: Array) -> Float[Array, "n 16"]:
    """What rnn_fc's memory sees of each tensor, but for losses and what it is told, in its code's order of names."""
    over_both = lambda x: tensors.mean(jnp.mean(x, axis=-1))
    spread_in = lambda x, centre: over_both((x - tensors.spread(centre)[..., None]) ** 2)
    norm = lambda x: root(tensors.total(x * x))
    mean_m, mean_v, mean_p = over_both(m), over_both(v), tensors.mean(p)
    number = lambda f: jnp.array([f(shape) for shape in tensors.shapes], jnp.float32)
    shape = [number(lambda s, j=j: math.log(max(s[j], 1)) - 1.0 if j < len(s) else -1.0) for j in range(4)]
    sizes = [clipped_log(norm(g)), number(lambda s: -1.0 if s else 1.0)]
    means = [clipped_log(mean_m), jnp.sign(mean_m), clipped_log(mean_v), jnp.sign(mean_v)]
    means += [clipped_log(mean_p), jnp.sign(mean_p), clipped_log(norm(p))]
    variances = [spread_in(m, mean_m), spread_in(v, mean_v), tensors.mean((p - tensors.spread(mean_p)) ** 2)]
    return jnp.stack([*sizes, *means, *shape, *map(clipped_log, variances)], axis=-1)


def memory_inputs(state: RNNState, seen: Float[Array, "n 16"], losses: Float[Array, "2"]) -> Float[Array, "n 52"]:
    """All that a tensor's memory gets: what was said, and statistics with the losses before the variances."""
    n = len(seen)
    alike = lambda x: jnp.broadcast_to(x, (n, len(x)))
    return jnp.concatenate([alike(state.shared), state.heard, seen[:, :-3], alike(losses), seen[:, -3:]], axis=1)


def move(
    layers: list[Theta], times: Float[Array, "k"], n: int, tensors: Tensors, elements: list, numbers: list
) -> tuple[list[Array], list[Array]]:
    """Updates, and the mean of what the networks of each tensor say to its memory."""
    (g, p, m, v), (told, _) = elements, numbers
    first, second, last = layers
    inverse = jax.lax.rsqrt(v + 1e-6)
    x = jnp.concatenate([jnp.stack([g, p, jnp.log(jnp.abs(p) + 1e-8)], axis=-1), m, v, m * inverse, inverse], axis=-1)
    x = x * jax.lax.rsqrt(1e-5 + tensors.spread(tensors.mean(x * x)))
    norm = jnp.log(root(tensors.total(p * p)) + 1e-8)
    alike = [
        jnp.full_like(norm, math.log(n) - 1.0),
        norm,
        jnp.log(jnp.asarray(np.maximum(tensors.sizes, 1), norm.dtype)),
    ]
    of_tensor = jnp.concatenate([jnp.stack(alike, axis=-1), told], axis=-1)
    # What all parameters of a tensor share passes the first layer once.
    k = len(times)
    alike = times @ first["w"][_INPUTS : _INPUTS + k] + first["b"]
    shared = of_tensor @ first["w"][_INPUTS + k :] + alike[None]
    x = jax.nn.relu(x @ first["w"][:_INPUTS] + tensors.spread(shared))
    out = linear(last, jax.nn.relu(linear(second, x)))
    return [step_of(out[..., 0], out[..., 1])], [told, tensors.mean(out[..., 2:])]


def sines(count: Int[Array, ""]) -> Float[Array, "k"]:
    """sin(t / πτ) at the time scales τ."""
    return jnp.sin(count.astype(jnp.float32) / (jnp.pi * jnp.array(TIMES, jnp.float32)))


def follow(running: Running, loss: Scalar, decay: float) -> Running:
    """Add a loss to its running mean and variance; one that is not finite is passed over."""
    loss = jnp.where(jnp.isfinite(loss), jnp.clip(loss, -1e15, 1e15), corrected(running, decay)[0])
    mean = decay * running.mean + (1.0 - decay) * loss
    return Running(mean, decay * running.var + (1.0 - decay) * (mean - loss) ** 2, running.count + 1)


def corrected(running: Running, decay: float) -> tuple[Scalar, Scalar]:
    """Its mean and variance without the bias of the zero they started at."""
    factor = 1.0 / jnp.maximum(1.0 - decay ** running.count.astype(jnp.float32), 1e-8)
    return running.mean * factor, running.var * factor


def standing(running: Running, loss: Scalar, decay: float = 0.9) -> Scalar:
    """How many deviations a loss lies above its running mean, within ±5."""
    mean, var = corrected(running, decay)
    loss = jnp.where(jnp.isfinite(loss), loss, mean)
    return jnp.clip((loss - mean) * jax.lax.rsqrt(var + 1e-8), -5.0, 5.0)


def zeros(*shape: int) -> Array:
    """In float32."""
    return jnp.zeros(shape, jnp.float32)


def _check(params: Params | None, value: Any) -> None:
    check_params(params)
    if jnp.shape(value) != () or value is None:
        raise ValueError("this optimizer looks at the training loss: call tx.update(grads, state, params, value=loss)")
