"""A small network for every parameter, the same for all: small_fc and fc (Metz et al. 2022, App. A).

    x = [ features / RMS over the tensor,  tanh(t/τ − 1) ];   (d, a) = MLP(x);   Δp = −10⁻³ d e^{a/1000}

`small_fc` has 197 weights, of which seven are the decays of what it remembers. Its four hidden units are so few that
arithmetic on whole arrays, unit by unit, beats products with matrices of four columns; `fc` has 32.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mnemosyne.optimizer.accumulators import TIMES, Accumulators, Features, accumulate, apart, empty, seen_of, together
from mnemosyne.optimizer.packing import by_shape
from mnemosyne.optimizer.transform import for_any_network, in_float32
from mnemosyne.types import Learned, Params, Theta

STEP = 1e-3
"""The factors λ₁ and λ₂ of Δp = λ₁ d e^{λ₂ a}."""

LARGEST = 1e15
"""Gradients beyond count as this."""

WIDE = 12
"""Hidden units from which the network is products with matrices. At four, sums of whole arrays are much the faster."""

SMALL_FC = Features()
"""What small_fc sees."""


class PerParameterState(NamedTuple):
    """What belongs to every parameter is a tree like theirs; the rest is in the order of its leaves."""

    count: Int[Array, ""]  # int32
    kept: Accumulators


def per_parameter(
    features: Features = SMALL_FC, *, width: int = 4, layers: int = 2, learn_decays: bool = True
) -> Learned:
    """Build an optimizer that is a small network for every parameter (Metz et al. 2022, App. A).

    Args:
        features: decays of the accumulators whose values the network sees.
        width: units of each hidden layer.
        layers: hidden layers; the paper's text has one, its appendix and its code two.
        learn_decays: whether θ holds corrections of the decays, β = 1 − e^{log(1−β₀) + 10 θ}.

    Returns:
        A `Learned`. Its optimizer's `update` needs the parameters; updates are to be *added*.

    Raises:
        ValueError: if a size is below one or a decay outside [0, 1); at `update`, without the parameters.

    Numerics: float32; gradients beyond ±`LARGEST` count as that. Empty tensors and features that are zero throughout
    stay finite.

    Example:
        learned = per_parameter(Features(momenta=(0.9,), second=(), factored=()), width=16)
    """
    if width < 1 or layers < 1:
        raise ValueError(f"sizes must be at least one, got width = {width}, layers = {layers}")
    if not all(0.0 <= beta < 1.0 for decays in features for beta in decays):
        raise ValueError(f"decays must lie in [0, 1), got {features}")
    if len(features.second) not in (0, 1, len(features.momenta)) and features.momenta:
        raise ValueError(f"there must be no second moment, one, or one for each momentum, got {features}")
    sizes = [features.seen() + len(TIMES), *[width] * layers, 2]

    def init(key: Array) -> Theta:
        keys = jax.random.split(key, len(sizes) - 1)
        theta = {"layers": [truncated_init(k, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]}
        decays = {name: jnp.zeros(len(of), jnp.float32) for name, of in features._asdict().items()}
        return theta | ({"decays": decays} if learn_decays else {})

    def make(theta: Theta) -> optax.GradientTransformationExtraArgs:
        return for_any_network(optax.clip(LARGEST), scale_by_networks(theta, features))

    return Learned(init, make)


def small_fc() -> Learned:
    """The paper's own: 39 inputs, two hidden layers of four units, 197 weights, 16 bytes a parameter."""
    return per_parameter()


def fc() -> Learned:
    """The one of Metz et al. 2019: six momenta of fixed decay, two hidden layers of 32 units, 1,762 weights."""
    momenta = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
    return per_parameter(Features(momenta, (), ()), width=32, learn_decays=False)


def truncated_init(key: Array, fan_in: int, fan_out: int) -> Theta:
    """A normal distribution of deviation 1/√fan_in, cut off at two deviations, and a zero bias."""
    w = jax.random.truncated_normal(key, -2.0, 2.0, (fan_in, fan_out), jnp.float32) / fan_in**0.5
    return {"w": w, "b": jnp.zeros(fan_out, jnp.float32)}


def decays_of(theta: Theta, features: Features) -> Theta:
    """β = 1 − e^{log(1−β₀) + 10 θ}, those of squares no less than zero and no more than one."""
    base = {name: jnp.asarray(of, jnp.float32) for name, of in features._asdict().items()}
    if "decays" not in theta:
        return base
    moved = {name: 1.0 - (1.0 - beta) * jnp.exp(10.0 * theta["decays"][name]) for name, beta in base.items()}
    return {name: beta if name == "momenta" else jnp.clip(beta, 0.0, 1.0) for name, beta in moved.items()}


def scale_by_networks(theta: Theta, features: Features) -> optax.GradientTransformationExtraArgs:
    """Turn finite gradients into updates by a small network for each parameter; see `per_parameter`."""

    def init(params: Params) -> PerParameterState:
        return PerParameterState(jnp.zeros((), jnp.int32), empty(params, features))

    def update(updates, state, params=None, **extra):
        del extra
        check_params(params)
        g, tree = jax.tree.flatten(updates)
        if not g:
            return updates, state._replace(count=optax.safe_increment(state.count))
        p, shapes = tree.flatten_up_to(in_float32(params)), [x.shape for x in g]
        decays, times = decays_of(theta, features), time_features(state.count)
        add = lambda kept, g: accumulate(kept, g, decays)
        kept = jax.lax.optimization_barrier(by_shape(add, shapes, apart(state.kept, tree, shapes), g))
        steps = by_shape(partial(move, theta["layers"], times), shapes, p, g, kept)
        return tree.unflatten(steps), PerParameterState(optax.safe_increment(state.count), together(kept, tree, shapes))

    return optax.GradientTransformationExtraArgs(init, update)


def time_features(count: Int[Array, ""]) -> Float[Array, "k"]:
    """tanh(t/τ − 1) with t the steps taken before this one."""
    return jnp.tanh(count.astype(jnp.float32) / jnp.array(TIMES, jnp.float32) - 1.0)


def move(
    layers: list[Theta], times: Float[Array, "k"], p: Float[Array, "*p"], g: Float[Array, "*p"], kept: Accumulators
) -> Float[Array, "*p"]:
    """The update of one tensor."""
    first, *others = layers
    seen = seen_of(p, g, kept)
    count, constant = len(seen), times @ first["w"][len(seen) :] + first["b"]
    if len(constant) >= WIDE:
        x = side_by_side(seen, g.shape)
        scale = jax.lax.rsqrt(jnp.sum(x * x, axis=tuple(range(1, x.ndim))) / max(g.size, 1) + 1e-5)
        form = by_products
    else:
        scale = inverse_sizes(seen)
        # Otherwise the compiler would keep what was worked out for the sizes, or work out a scale at every parameter.
        scale, constant, p, g, kept = jax.lax.optimization_barrier((scale, constant, p, g, kept))
        x, form = seen_of(p, g, kept), by_elements
    # Inputs are divided by their sizes where they are fewest: in the weights that they meet.
    scaled = {"w": scale[:, None] * first["w"][:count], "b": constant}
    direction, magnitude = (jnp.reshape(x, g.shape) for x in form([scaled, *others], x))
    return step_of(direction, magnitude)


def step_of(direction: Array, magnitude: Array) -> Array:
    """Δp = −λ₁ d e^{λ₂ a} with λ₁ = λ₂ = `STEP`."""
    return -STEP * direction * jnp.exp(STEP * magnitude)


def side_by_side(seen: list[Array], shape: tuple) -> Float[Array, "f *p"]:
    """Inputs of a tensor's parameters, each in its shape."""
    return jnp.stack([jnp.broadcast_to(x, shape) for x in seen])


def by_products(layers: list[Theta], x: Float[Array, "f *p"]) -> list[Array]:
    """The network as products with matrices, for all parameters at once."""
    for i, layer in enumerate(layers):
        x = jnp.tensordot(layer["w"].T, jax.nn.relu(x) if i else x, 1) + layer["b"].reshape(-1, *(1,) * (x.ndim - 1))
    return list(x)


def by_elements(layers: list[Theta], seen: list[Array]) -> list[Array]:
    """The network unit by unit, as sums of whole arrays; what is the same along an axis is summed up once."""
    units = seen
    for i, layer in enumerate(layers):
        active = [jax.nn.relu(x) for x in units] if i else units
        units = [weighted(active, layer["w"][:, k], layer["b"][k]) for k in range(len(layer["b"]))]
    return units


def weighted(arrays: list[Array], weights: Float[Array, "f"], constant: Float[Array, ""]) -> Array:
    """Σ w_i x_i + c, summed shape by shape."""
    sums: dict[tuple, Array] = {}
    for i, x in enumerate(arrays):
        sums[x.shape] = sums[x.shape] + weights[i] * x if x.shape in sums else weights[i] * x
    smallest_first = sorted(sums.values(), key=lambda x: x.size)
    return sum(smallest_first, constant)


def inverse_sizes(arrays: list[Array]) -> Float[Array, "f"]:
    """One over the root mean square of each."""
    squares = jnp.stack([jnp.sum(x * x) / max(x.size, 1) for x in arrays])
    return jax.lax.rsqrt(squares + 1e-5)


def check_params(params: Params | None) -> None:
    """Raise a ValueError without parameters."""
    if params is None:
        raise ValueError("this optimizer looks at the parameters: call tx.update(grads, state, params)")
