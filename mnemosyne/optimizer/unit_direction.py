"""A learned direction whose length is the user's: the kind of Celo2 (Moudgil et al. 2026).

    x = features / RMS over the last two axes,    d = MLP(x),    Δp = −α · NS(d) / RMS(NS(d))

The network has 347 weights and sees neither time nor loss, so nothing in its input runs out of range in a long
training; each update of a tensor has size α whatever the network says, so that rate and schedule are the user's, as
with Adam. NS is five steps of Newton and Schulz, which bring singular values near one, as in Muon. Vectors and scalars
are left to AdamW at twenty times the rate.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mnemosyne.optimizer.accumulators import Accumulators, Features, accumulate, apart, empty, seen_of, together
from mnemosyne.optimizer.composite import by_rank
from mnemosyne.optimizer.packing import by_shape, gathered, sharded_as
from mnemosyne.optimizer.perparameter import by_elements, check_params, decays_of, truncated_init
from mnemosyne.optimizer.transform import for_any_network, in_float32
from mnemosyne.types import Learned, Params, Theta

RATE = 1e-3
"""α at a step size of one: that of meta-training."""

VECTORS = 20.0
"""AdamW's rate on vectors, in units of α."""

SEEN = Features(momenta=(0.9, 0.99, 0.999), second=(0.95,), factored=(0.9, 0.99, 0.999))
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Celo2State(NamedTuple):
    """Sixteen bytes a parameter, and three numbers a row and a column."""

    kept: Accumulators


def celo2(*, width: int = 8, layers: int = 2, orthogonal: bool = True) -> Learned:
    """Build the optimizer (Moudgil et al. 2026).

    Args:
        width: units of each hidden layer.
        layers: hidden layers.
        orthogonal: whether updates of matrices pass Newton and Schulz.

    Returns:
        A `Learned`. An update of a tensor of two axes or more has root mean square `RATE`; a rate or a schedule is a
        factor on that. Its optimizer's `update` needs the parameters. Weight decay is the user's.

    Raises:
        ValueError: if a size is below one; at `update`, without the parameters.

    Numerics: float32; gradients beyond ±1000 count as that. A tensor without a gradient so far does not move.
    """
    if width < 1 or layers < 1:
        raise ValueError(f"sizes must be at least one, got width = {width}, layers = {layers}")
    sizes = [SEEN.seen() + 2, *[width] * layers, 3]

    def init(key: Array) -> Theta:
        keys = jax.random.split(key, len(sizes) - 1)
        return {"layers": [truncated_init(k, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]}

    def make(theta: Theta) -> optax.GradientTransformationExtraArgs:
        matrices = scale_by_direction(theta, orthogonal)
        adam = optax.chain(optax.scale_by_adam(0.9, 0.95, eps_root=1e-30), optax.scale(-VECTORS * RATE))
        return for_any_network(optax.clip(1e3), optax.partition({"matrix": matrices, "vector": adam}, by_rank))

    return Learned(init, make)


def scale_by_direction(theta: Theta, orthogonal: bool) -> optax.GradientTransformationExtraArgs:
    """Turn gradients of matrices into updates of size `RATE`; see `celo2`."""
    decays = decays_of(theta, SEEN)

    def init(params: Params) -> Celo2State:
        return Celo2State(empty(params, SEEN))

    def update(updates, state, params=None, **extra):
        del extra
        check_params(params)
        g, tree = jax.tree.flatten(updates)
        if not g:
            return updates, state
        p, shapes = tree.flatten_up_to(in_float32(params)), [x.shape for x in g]
        add = lambda kept, g: accumulate(kept, g, decays)
        kept = jax.lax.optimization_barrier(by_shape(add, shapes, apart(state.kept, tree, shapes), g))
        steps = by_shape(partial(move, theta["layers"], orthogonal), shapes, p, g, kept)
        return tree.unflatten(steps), Celo2State(together(kept, tree, shapes))

    return optax.GradientTransformationExtraArgs(init, update)


def move(
    layers: list[Theta], orthogonal: bool, p: Float[Array, "*p"], g: Float[Array, "*p"], kept: Accumulators
) -> Float[Array, "*p"]:
    """The update of one tensor."""
    root = jax.lax.rsqrt(kept.v[0] + 1e-6)
    seen = [x / rms_of_matrices(x) for x in (*seen_of(p, g, kept), jnp.clip(g, -0.1, 0.1), g * root)]
    direction = jnp.broadcast_to(by_elements(layers, jax.lax.optimization_barrier(seen))[0], g.shape)
    if orthogonal:
        direction = sharded_as(newton_schulz(gathered(direction)), g)
    size = jnp.sqrt(jnp.sum(direction * direction) / max(direction.size, 1) + 1e-30)
    moved = jnp.any(kept.m[0] != 0) if g.size else False
    return jnp.where(moved, -RATE * direction / size, 0.0)


def rms_of_matrices(x: Float[Array, "*p r c"]) -> Float[Array, "*p 1 1"]:
    """√(mean x² + 1e-9) over the last two axes."""
    count = max(x.shape[-1] * x.shape[-2], 1)
    return jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True) / count + 1e-9)


def newton_schulz(x: Float[Array, "*p r c"], steps: int = 5) -> Float[Array, "*p r c"]:
    """Bring the singular values of matrices near one (Jordan et al. 2024): X ← aX + b(XXᵀ)X + c(XXᵀ)²X."""
    a, b, c = _NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = jnp.swapaxes(x, -2, -1) if tall else x
    x = x * jax.lax.rsqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True) + 1e-14)
    for _ in range(steps):
        square = x @ jnp.swapaxes(x, -2, -1)
        x = a * x + (b * square + c * square @ square) @ x
    return jnp.swapaxes(x, -2, -1) if tall else x
