"""VeLO's architecture with any memory: a small network per parameter, its weights chosen per tensor (Metz et al. 2022).

Every tensor is summed up in 30 features. They pass a layer that lets tensors see each other and then a memory, the
LSTM of VeLO or another under the same contract. What the memory answers mixes a bank of tiny networks into one, and
that network turns 30 features of each parameter into its update:

    learned = velo(lstm(hidden=64))                                # or velo(cam())
    tx = learned.make(learned.init(jax.random.key(0)))
    updates, state = tx.update(grads, state, params, value=loss, horizon=1000)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mnemosyne.memory.contract import Memory
from mnemosyne.memory.layers import layer_norm, linear, linear_init
from mnemosyne.optimizer.packing import beside, by_shape, cut, gathered, lay
from mnemosyne.optimizer.transform import for_any_network, in_float32
from mnemosyne.types import Learned, Params, Scalar, State, Theta

DECAYS = (0.9, 0.99, 0.999)
"""Of the momenta and of the row and column second moments, per step."""

SECOND_DECAY = 0.999
"""Of the second moment that is kept for every parameter."""

FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
"""Points of training that the memory can tell apart."""

WINDOWS = 10
"""Running means of the loss, over windows from 10 steps to all of training."""

_STEP = 1e-3  # of a tensor's own size: what an output of one moves it by
_FEATURES = len(FRACTIONS) + (WINDOWS - 1) + 5 + 1 + 2 * len(DECAYS)  # per tensor
_INPUTS = (18, 6, 6)  # per parameter: of its own, of its row, of its column


class Losses(NamedTuple):
    """What is remembered of the training loss."""

    means: Float[Array, "w"]  # running means, float32
    lowest: Float[Array, "w"]  # the lowest each has been, bias corrected, float32


class Traces(NamedTuple):
    """What is remembered of one tensor's gradients, without bias correction. Axes of the mean have length one."""

    m: Float[Array, "*p 3"]  # momenta, float32
    v: Float[Array, "*p"]  # second moment, float32
    row: Float[Array, "*r 3"]  # second moments averaged over the largest axis, float32
    col: Float[Array, "*c 3"]  # the same over the second largest, float32


class VeloState(NamedTuple):
    """What belongs to every parameter is a tree like theirs; the rest is in the order of its leaves."""

    count: Int[Array, ""]  # int32
    losses: Losses
    traces: Traces  # of trees m and v; row [n 3] and col [n 3] of all tensors end to end
    memory: State  # the memory's state for all tensors, a row for each


def velo(memory: Memory, *, width: int = 32, bank: int = 64, hidden: int = 4) -> Learned:
    """VeLO's architecture with a memory of your choice (Metz et al. 2022; Fig. 3d).

        x_i = W_1 f_i + max_j relu(W_2 f_j),      o_i = memory(LN x_i, x_i),      c_i, η_i = linear(o_i)
        w_i = 100 mean_b c_ib bank_b,             (d, a) = MLP_{w_i}(parameter's features)
        Δp  = −10⁻³ η_i RMS(p) d e^{a/1000}

    f_i are a tensor's features (`tensor_features`), and the tensors are the memory's batch. LSTM and CAM differ in
    nothing but `theta["memory"]`.

    The sizes are small: the release has an LSTM of 512 (128 in its code), as wide a mixing layer, and 2.2 million
    weights. The weights are untrained, or trained as little as you do: VeLO's own have seen four thousand
    TPU-months of tasks, and nothing measured here says anything of those.

    It differs from the release in this. Loss features are the ones described, over windows up to the horizon; the
    released code has them over ten equal windows by mistake. The memory starts empty, not from a learned state, has
    a read-out of its own, and its address is layer-normalised, since CAM needs one of order one. A vector counts as
    a matrix of one column. A third output of the MLP that nothing reads is left out. At the start the control is
    nearly constant and η nearly one, so that each tensor begins with one ordinary network and small steps.

    Args:
        memory: what each tensor remembers with, such as `recurrent.lstm(hidden=64)` or `memory.cam()`.
        width: features of a tensor behind the mixing layer, and of what the memory answers.
        bank: networks to mix.
        hidden: width of the two hidden layers of each; 4 in VeLO.

    Returns:
        A `Learned`. Its optimizer's `update(updates, state, params, *, value, horizon)` needs the parameters, the
        training loss `value` and the number `horizon` of training steps planned; numbers or traced scalars.

    Raises:
        ValueError: if a size is below one; at `update`, if params, value or horizon is missing or of another shape.

    Numerics: float32 throughout, updates in the gradients' dtypes. NaN and infinite gradients count as zero and are
    counted in the state, those above 1000 as 1000; a loss that is not finite counts as the largest running mean. No
    gradient passes through `value`. Empty tensors are carried along and influence no other.
    """
    if min(width, bank, hidden) < 1:
        raise ValueError(f"sizes must be at least one, got width = {width}, bank = {bank}, hidden = {hidden}")

    def init(key: Array) -> Theta:
        own, shared, remember, control, rate, layers = jax.random.split(key, 6)
        # 100 times a mean weighed by √B/100 is a network with weights as large as any in the bank.
        one = bank**0.5 / 100.0
        return {
            "own": linear_init(own, _FEATURES, width),
            "shared": linear_init(shared, _FEATURES, width),
            "memory": memory.init(remember, width, width, width),
            "control": {**linear_init(control, width, bank, gain=0.3 * one), "b": jnp.full(bank, one, jnp.float32)},
            "rate": {**linear_init(rate, width, 1, gain=0.1), "b": jnp.ones(1, jnp.float32)},
            "bank": jax.vmap(lambda k: network_init(k, hidden))(jax.random.split(layers, bank)),
        }

    def make(theta: Theta) -> optax.GradientTransformationExtraArgs:
        return for_any_network(scale_by_velo(theta, memory, width))

    return Learned(init, make)


def scale_by_velo(theta: Theta, memory: Memory, width: int) -> optax.GradientTransformationExtraArgs:
    """Turn finite gradients into updates by VeLO's rule; see `velo`, which takes care of those that are not."""

    def init(params: Params) -> VeloState:
        losses = Losses(jnp.zeros(WINDOWS, jnp.float32), jnp.full(WINDOWS, 1e30, jnp.float32))
        remembered = memory.state((len(jax.tree.leaves(params)),), width, width)
        return VeloState(jnp.zeros((), jnp.int32), losses, no_traces(params), remembered)

    def update(updates, state, params=None, *, value=None, horizon=None, **extra):
        del extra
        _check(updates, params, value, horizon)
        horizon = jnp.maximum(jnp.asarray(horizon, jnp.float32), 1.0)
        value = jax.lax.stop_gradient(jnp.asarray(value, jnp.float32))
        losses, outlook = watch(state.losses, state.count, value, horizon)
        tensors, tree = jax.tree.flatten(updates)
        if not tensors:
            return updates, state._replace(count=state.count + 1, losses=losses)
        p = tree.flatten_up_to(in_float32(params))
        g = [jnp.clip(x, -1e3, 1e3) for x in tensors]
        shapes = [x.shape for x in p]
        before = apart(state.traces, tree, shapes)
        done = state.count / horizon - jnp.array(FRACTIONS, jnp.float32)
        overall = jnp.concatenate([jnp.tanh(10.0 * done), outlook])
        seen = jnp.stack(by_shape(lambda *x: tensor_features(*x, overall), shapes, p, before))
        exists = np.array([x.size > 0 for x in p], np.float32)[:, None]
        remembered, networks, rates = choose(theta, memory, state.memory, seen, exists)
        networks = [jax.tree.map(lambda w, i=i: w[i], networks) for i in range(len(p))]
        after = by_shape(trace, shapes, before, g)
        steps = by_shape(lambda rate, *x: rate * move(*x), shapes, list(rates), networks, p, g, after)
        return tree.unflatten(steps), VeloState(state.count + 1, losses, together(after, tree, shapes), remembered)

    return optax.GradientTransformationExtraArgs(init, update)


def watch(losses: Losses, count: Int[Array, ""], value: Scalar, horizon: Scalar) -> tuple[Losses, Array]:
    """Follow the training loss, and say how fast it falls at every time scale (Metz et al. 2022).

        f_k = clip( (μ_k − min μ_k) / (μ_{k+1} − min μ_k) − 1, ±1 )

    with μ_k the running mean over the k-th window, windows in geometric order from 10 to the horizon.

    Args:
        losses: what is remembered.
        count: losses seen before.
        value: the loss now; no more than twice the largest mean is believed.
        horizon: steps of training planned.

    Returns:
        (losses, f [9]), unchanged if all losses are multiplied by a factor. The first two steps answer zero.
    """
    new = 1.0 / 10.0 ** jnp.linspace(1.0, jnp.log10(jnp.maximum(horizon, 10.0)), WINDOWS)
    corrected = lambda means, t: means / -jnp.expm1(-new * jnp.maximum(t, 1))
    largest = jnp.max(corrected(losses.means, count))
    value = jnp.where(jnp.isfinite(value), value, largest)
    value = jnp.where(count == 0, value, jnp.minimum(value, 2.0 * jnp.abs(largest)))
    means = losses.means - jnp.expm1(-new) * (value - losses.means)
    now = corrected(means, count + 1)
    lowest = jnp.minimum(losses.lowest, now)
    above = (now[:-1] - lowest[:-1]) / jnp.maximum(now[1:] - lowest[:-1], 1e-8)
    return Losses(means, lowest), jnp.where(count < 2, 0.0, jnp.clip(above - 1.0, -1.0, 1.0))


def tensor_features(p: Float[Array, "*p"], traces: Traces, overall: Float[Array, "o"]) -> Float[Array, "f"]:
    """Sum up a tensor for the memory: 30 numbers of order one, from what was known before this step's gradient.

    They are the fraction of training done (9), the loss (9), the mean of v (1), the number of axes longer than one
    (5, one-hot), the variance of each momentum (3) and the mean square of v about each momentum's mean (3). Momenta
    and v are divided by RMS(p), and their statistics enter as logarithms.
    """
    unit = jax.lax.rsqrt(jnp.maximum(mean(p * p), 1e-9))
    m, v = unit * traces.m, unit * traces.v[..., None]
    centre = mean(m, keep_last=True)
    spread = lambda x: mean((x - centre.reshape(*(1,) * p.ndim, -1)) ** 2, keep_last=True)
    log_size = lambda x: 0.5 * jnp.clip(jnp.log(1e-8 + 10.0 * jnp.abs(x)), -5.0, 5.0)
    rank = jax.nn.one_hot(sum(n > 1 for n in p.shape), 5, dtype=jnp.float32)
    sizes = [log_size(mean(v, keep_last=True)), rank, log_size(spread(m)), log_size(spread(v))]
    return jnp.concatenate([overall, *sizes])


def choose(
    theta: Theta, memory: Memory, state: State, seen: Float[Array, "n f"], exists: np.ndarray
) -> tuple[State, Theta, Float[Array, "n"]]:
    """What the memory makes of n tensors: a network for each, mixed from the bank, and a step size."""
    shared = jnp.max(exists * jax.nn.relu(linear(theta["shared"], seen)), axis=0, keepdims=True)
    x = linear(theta["own"], seen) + shared
    state, out = memory.step(theta["memory"], state, layer_norm(x), x)
    control, rate = linear(theta["control"], out), linear(theta["rate"], out)
    mixed = jax.tree.map(lambda w: 100.0 / w.shape[0] * jnp.tensordot(control, w, 1), theta["bank"])
    return state, mixed, rate[:, 0]


def network_init(key: Array, hidden: int) -> Theta:
    """One network of the bank: 30 inputs, two hidden layers and two outputs."""
    sizes = (sum(_INPUTS), hidden, hidden, 2)
    keys = jax.random.split(key, 3)
    return [linear_init(k, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def move(network: Theta, p: Float[Array, "*p"], g: Float[Array, "*p"], traces: Traces) -> Float[Array, "*p"]:
    """The update of one tensor at η = 1: −10⁻³ RMS(p) d e^{a/1000} with (d, a) = MLP(features)."""
    first, second, last = network
    inputs = parameter_features(p, g, traces)
    # Features of a row or a column pass the first layer once per row or column, not once per parameter.
    parts = zip(inputs, jnp.split(first["w"], np.cumsum(_INPUTS)[:-1]), strict=True)
    x = sum(features @ w for features, w in parts)
    x = jax.nn.relu(x + first["b"].reshape(*(1,) * (x.ndim - 1), -1))
    out = linear(last, jax.nn.relu(linear(second, x)))
    size = jnp.sqrt(mean(p * p) + 1e-9)
    return (-_STEP * size * out[..., 0] * jnp.exp(1e-3 * out[..., 1])).reshape(p.shape)


def parameter_features(p: Float[Array, "*p"], g: Float[Array, "*p"], traces: Traces) -> tuple[Array, Array, Array]:
    """What the small networks see of a parameter (Metz et al. 2022).

        g, clip(g, ±0.1), p, m, v, m/√v, 1/√v, g/√v̂, g/√v, m/√v̂;      row, 1/√row;      col, 1/√col

    with v̂ = row col / mean(row), the second moment of Adafactor. Every channel is divided by its root mean square
    over the tensor, so a factor on p or g matters only where it meets a floor (1e-9 to 1e-5) or the clipping.

    Returns:
        Features of the parameter [*p 18], its row [*r 6] and its column [*c 6], with p seen as a matrix at least.
    """
    p, g, v = (as_matrix(x)[..., None] for x in (p, g, traces.v))
    m = jnp.stack([as_matrix(traces.m[..., i]) for i in range(len(DECAYS))], axis=-1)
    along = axes(p.shape[:-1])[1]
    root = jax.lax.rsqrt(v + 1e-6)
    floored = lambda x: jax.lax.rsqrt(jnp.maximum(x, 1e-9))
    rows = traces.row / (jnp.sum(traces.row, along, keepdims=True) / max(p.shape[along], 1) + 1e-9)
    factor = floored(rows) * floored(traces.col)
    own = [g, jnp.clip(g, -0.1, 0.1), p, m, v, m * root, root, g * factor, g * root, m * factor]
    sides = ([x, jax.lax.rsqrt(x + 1e-8)] for x in (traces.row, traces.col))
    return tuple(unit_size(jnp.concatenate(group, axis=-1)) for group in (own, *sides))


def no_traces(params: Params) -> Traces:
    """Traces of tensors that have had no gradient, as the state keeps them."""
    n = len(DECAYS)
    sides = zip(*(without_axes(jnp.shape(p)) for p in jax.tree.leaves(params)), strict=True)
    row, col = (sum(map(math.prod, side)) for side in sides) if jax.tree.leaves(params) else (0, 0)
    kept = lambda *shape: jax.tree.map(lambda p: beside(p, jnp.zeros(shape, jnp.float32)), params)
    ends = [jnp.zeros((count, n), jnp.float32) for count in (row, col)]
    return Traces(kept(n), kept(), *ends)


def without_axes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a tensor's row and column: its own with the largest, or the second largest, axis of length one."""
    full = shape if len(shape) > 1 else (math.prod(shape), 1)
    row, col = ((*full[:axis], 1, *full[axis + 1 :]) for axis in axes(full))
    return row, col


def apart(traces: Traces, tree: Any, shapes: list[tuple]) -> list[Traces]:
    """Traces of each tensor, from those that the state keeps."""
    rows, cols = zip(*map(without_axes, shapes), strict=True)
    fields = tree.flatten_up_to(traces.m), tree.flatten_up_to(traces.v), cut(traces.row, rows), cut(traces.col, cols)
    return [Traces(*each) for each in zip(*fields, strict=True)]


def together(traces: list[Traces], tree: Any, shapes: list[tuple]) -> Traces:
    """Undo `apart`."""
    m, v, *sides = zip(*traces, strict=True)
    places = zip(*map(without_axes, shapes), strict=True)
    row, col = (lay(list(map(gathered, side)), where) for side, where in zip(sides, places, strict=True))
    return Traces(tree.unflatten(m), tree.unflatten(v), row, col)


def trace(traces: Traces, g: Float[Array, "*p"]) -> Traces:
    """Add a gradient to the running means: m of g, v of g², row and col of the mean of g² over one axis."""
    decay = lambda like: jnp.array(DECAYS, jnp.float32).reshape(*(1,) * (like.ndim - 1), -1)
    blend = lambda old, new: old + (1.0 - decay(old)) * (new[..., None] - old)
    square = as_matrix(g) ** 2
    over = lambda axis: jnp.sum(square, axis, keepdims=True) / max(square.shape[axis], 1)
    largest, second = axes(square.shape)
    v = traces.v + (1.0 - SECOND_DECAY) * (g * g - traces.v)
    return Traces(blend(traces.m, g), v, blend(traces.row, over(largest)), blend(traces.col, over(second)))


def axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The largest axis and the second largest; of equal ones, the last first."""
    order = np.argsort(shape, kind="stable")
    return int(order[-1]), int(order[-2])


def as_matrix(x: Array) -> Array:
    """Give scalars and vectors one column; leave the rest as it is."""
    return x if x.ndim > 1 else x[:, None] if x.ndim else x.reshape(1, 1)


def mean(x: Array, keep_last: bool = False) -> Array:
    """The mean over all axes, or all but the last; zero of nothing."""
    over = tuple(range(x.ndim - keep_last))
    return jnp.sum(x, axis=over) / max(math.prod(x.shape[: len(over)]), 1)


def unit_size(x: Float[Array, "*s f"]) -> Float[Array, "*s f"]:
    """Divide each channel by its root mean square over all else."""
    over = tuple(range(x.ndim - 1))
    square = jnp.sum(x * x, axis=over, keepdims=True) / max(math.prod(x.shape[:-1]), 1)
    return x * jax.lax.rsqrt(square + 1e-5)


def _check(updates: Params, params: Params | None, value: Any, horizon: Any) -> None:
    right = "call tx.update(grads, state, params, value=loss, horizon=number_of_training_steps)"
    given = {"params": params, "value": value, "horizon": horizon}
    missing = [name for name, x in given.items() if x is None]
    if missing:
        raise ValueError(
            f"VeLO's architecture looks at the parameters, the training loss and how much training is left, but got "
            f"no {' and no '.join(missing)}: {right}"
        )
    for name in ("value", "horizon"):
        if jnp.shape(given[name]) != ():
            raise ValueError(f"{name} must be one number, got an array of shape {jnp.shape(given[name])}: {right}")
    if isinstance(horizon, int | float | np.number) and not 1 <= horizon < math.inf:
        raise ValueError(f"horizon is a number of training steps, at least 1, got {horizon}: {right}")
    shapes = [jax.tree.map(jnp.shape, x) for x in (updates, params)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"gradients and parameters differ:\n  gradients   {shapes[0]}\n  parameters  {shapes[1]}")
