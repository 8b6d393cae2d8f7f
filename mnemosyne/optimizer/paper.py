"""The paper's own coordinate-wise rule, and the stack of the LSTM optimizer it is compared with (paper §3.4, §5).

Both feed each parameter's (log|g|, sign g) to a stack of memories, as one pattern ξ and with ordinary biases.
`odd.odd_rule` is our odd variant of the first. What a rule remembers with is one argument.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.memory.compact import cam
from mnemosyne.memory.contract import Memory
from mnemosyne.memory.layers import layer_norm, linear, linear_init
from mnemosyne.optimizer.rule import COORDINATE, Config, Rule, log_sign
from mnemosyne.types import State, Theta


def two_inputs(g: Float[Array, "*s"], p: float) -> Float[Array, "*s 2"]:
    """(log|g| / p, sign g) where |g| ≥ e^{−p}, (−1, e^p g) elsewhere (App. B.1, Andrychowicz et al. 2016)."""
    return jnp.concatenate(log_sign(g, p), axis=-1)


def paper_rule(
    config: Config = COORDINATE, memory: Memory | None = None, represent: Callable = two_inputs, inputs: int = 2
) -> Rule:
    """Build the rule as the paper draws it: embed → temporal encoders → MLP (§3.4, Fig. 2a).

        ξ ← W [log|g|/p, sign g] + b;   per encoder:  ξ ← ξ + memory(LN ξ),  ξ ← ξ + W_2 gelu(W_1 LN ξ);
        u = scale · wᵀ gelu(W_h LN ξ)

    Args:
        config: the sizes.
        memory: what each encoder remembers with; the paper's CAM of `config`'s sizes by default.
        represent: (gradient, p) → numbers [*s inputs], what the rule sees.
        inputs: how many.

    Returns:
        A `Rule`; its updates at zero gradient are whatever was learned, not zero.

    Reference: Jain et al. 2023, §3.3–3.4.
    """
    memory = memory or cam(projections=config.projections, discount=config.discount)
    d = config.hidden

    def init(key: Array) -> Theta:
        embed, up, out, *encoders = jax.random.split(key, 3 + config.encoders)
        return {
            "embed": linear_init(embed, inputs, d),
            "encoders": [encoder_init(k, config, memory) for k in encoders],
            "up": linear_init(up, d, d),
            "out": linear_init(out, d, 1, gain=0.1),
        }

    def state(shape: tuple) -> State:
        return tuple(memory.state(shape, d, d) for _ in range(config.encoders))

    def head(theta: Theta, x: Array) -> Array:
        return config.output_scale * linear(theta["out"], jax.nn.gelu(linear(theta["up"], layer_norm(x))))[..., 0]

    def step(theta: Theta, state: State, g: Array) -> tuple[State, Array]:
        state, x = remember(memory, theta["encoders"], state, linear(theta["embed"], represent(g, config.magnitude)))
        return state, head(theta, x)

    def window(theta: Theta, state: State, g: Array) -> Array:
        x = linear(theta["embed"], represent(g, config.magnitude))
        for encoder, remembered in zip(theta["encoders"], state, strict=True):
            pattern = layer_norm(x)
            x = feedforward(encoder, x + memory.window(encoder["memory"], remembered, pattern, pattern))
        return head(theta, x)

    return Rule(init, state, step, window)


def encoder_init(key: Array, config: Config, memory: Memory) -> Theta:
    """Weights of one temporal encoder: a memory and a feed-forward layer."""
    d, width = config.hidden, config.feedforward
    memory_key, up, down = jax.random.split(key, 3)
    return {
        "memory": memory.init(memory_key, d, d, d),
        "up": linear_init(up, d, width),
        "down": linear_init(down, width, d),
    }


def remember(memory: Memory, encoders: list[Theta], state: State, x: Float[Array, "*s d"]) -> tuple[State, Array]:
    """One step of stacked temporal encoders (§3.3): per encoder ξ ← ξ + memory(LN ξ), ξ ← ξ + W_2 gelu(W_1 LN ξ)."""
    after = []
    for encoder, remembered in zip(encoders, state, strict=True):
        pattern = layer_norm(x)
        remembered, recalled = memory.step(encoder["memory"], remembered, pattern, pattern)
        x = feedforward(encoder, x + recalled)
        after.append(remembered)
    return tuple(after), x


def feedforward(theta: Theta, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """x + W_2 gelu(W_1 LN(x) + b_1) + b_2."""
    return x + linear(theta["down"], jax.nn.gelu(linear(theta["up"], layer_norm(x))))


def stacked_rule(memory: Memory, *, layers: int = 2, width: int = 20, config: Config = COORDINATE) -> Rule:
    """Build the optimizer of Andrychowicz et al. 2016: memories one upon another, then one linear unit.

    With `recurrent.lstm(hidden=20)` it is theirs, two layers of 20 without embedding, residuals or normalisation, but
    for a linear read-out after each layer.

    Args:
        memory: one layer.
        layers: how many.
        width: numbers a layer hands on.
        config: only the preprocessing's p and the output's scale are read.

    Returns:
        A `Rule`.
    """
    sizes = [2] + [width] * (layers - 1)

    def init(key: Array) -> Theta:
        out, *keys = jax.random.split(key, 1 + layers)
        stack = [memory.init(k, n, n, width) for k, n in zip(keys, sizes, strict=True)]
        return {"layers": stack, "out": linear_init(out, width, 1, gain=0.1)}

    def state(shape: tuple) -> State:
        return tuple(memory.state(shape, n, n) for n in sizes)

    def head(theta: Theta, x: Array) -> Array:
        return config.output_scale * linear(theta["out"], x)[..., 0]

    def step(theta: Theta, state: State, g: Array) -> tuple[State, Array]:
        x, after = two_inputs(g, config.magnitude), []
        for layer, remembered in zip(theta["layers"], state, strict=True):
            remembered, x = memory.step(layer, remembered, x, x)
            after.append(remembered)
        return tuple(after), head(theta, x)

    def window(theta: Theta, state: State, g: Array) -> Array:
        x = two_inputs(g, config.magnitude)
        for layer, remembered in zip(theta["layers"], state, strict=True):
            x = memory.window(layer, remembered, x, x)
        return head(theta, x)

    return Rule(init, state, step, window)
