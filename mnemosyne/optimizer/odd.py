"""The coordinate-wise learned rule: one small network per parameter, the same weights for all (paper §3.4).

Every parameter is a sequence of its own. Its gradient is embedded, passes through stacked temporal encoders,
each with a memory, and a head turns the result into the update. Nothing here knows about tensors or trees:
an input of any shape is a batch.

The rule is odd by construction: u(−g) = −u(g) and u(0) = 0. The paper's two inputs already come apart that way,
log|g| being even and sign g odd, so the pattern ξ is kept as two streams. The even one makes queries, keys and
gates; the odd one makes values and, without any bias, the update. W_Q, W_K and W_V of Eq. 2 thus have zero
blocks, and Eq. 3–5 are untouched. Without it, trained rules push parameters that have no gradient at all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.memory.compact import cam
from mnemosyne.memory.contract import Memory
from mnemosyne.memory.layers import layer_norm, linear, linear_init
from mnemosyne.optimizer.rule import Config, Rule, log_sign
from mnemosyne.types import State, Theta


def odd_rule(config: Config, memory: Memory | None = None, represent: Callable = log_sign) -> Rule:
    """Build the coordinate-wise rule: embed → temporal encoders → head (paper §3.4, Fig. 2a).

    Args:
        config: the sizes.
        memory: what each encoder remembers with; the paper's CAM of `config`'s sizes by default.
        represent: (gradient [*s], p) → (even [*s 1], odd [*s 1]), what the rule sees of a gradient.

    Returns:
        A `Rule` whose state per parameter is the memories' alone.

    Reference: Jain et al. 2023, §3.3–3.4.

    Example:
        rule = odd_rule(Config())
        theta = rule.init(jax.random.key(0))
        state, update = rule.step(theta, rule.state(g.shape), g)
    """
    memory = memory or cam(projections=config.projections, discount=config.discount)
    # The first encoder's content is what the sign was multiplied with, before any weights: see `memory.cam`.
    contents = [2] + [config.hidden] * (config.encoders - 1)

    def init(key: Array) -> Theta:
        embed_key, head_key, *encoder_keys = jax.random.split(key, 2 + config.encoders)
        return {
            "embed": embed_init(embed_key, config.hidden),
            "encoders": [encoder_init(k, config, memory, c) for k, c in zip(encoder_keys, contents, strict=True)],
            "head": head_init(head_key, config.hidden),
        }

    def state(shape: tuple) -> State:
        return tuple(memory.state(shape, config.hidden, c) for c in contents)

    def pattern(theta: Theta, g: Array) -> tuple[Array, Array, Array]:
        even, odd = represent(g, config.magnitude)
        magnitude = 2.0 * even + 1.0  # of order one, which suits the embedding
        content = jnp.concatenate([odd, odd * magnitude], axis=-1)
        return linear(theta["embed"]["even"], magnitude), content @ theta["embed"]["odd"], content

    def step(theta: Theta, state: State, g: Array) -> tuple[State, Array]:
        e, x, content = pattern(theta, g)
        after = []
        for encoder, remembered in zip(theta["encoders"], state, strict=True):
            remembered, recalled = memory.step(encoder["memory"], remembered, layer_norm(e), content)
            e, x = mix(encoder, e, x + recalled)
            content = x
            after.append(remembered)
        return tuple(after), config.output_scale * head(theta["head"], e, x)

    def window(theta: Theta, state: State, g: Array) -> Array:
        e, x, content = pattern(theta, g)
        for encoder, remembered in zip(theta["encoders"], state, strict=True):
            recalled = memory.window(encoder["memory"], remembered, layer_norm(e), content)
            e, x = mix(encoder, e, x + recalled)
            content = x
        return config.output_scale * head(theta["head"], e, x)

    return Rule(init, state, step, window)


def embed_init(key: Array, d: int) -> Theta:
    """Random weights and, for the even stream, random biases, so that magnitudes are told apart at once."""
    even_key, bias_key, odd_key = jax.random.split(key, 3)
    even = {"w": jax.random.normal(even_key, (1, d), jnp.float32), "b": jax.random.normal(bias_key, (d,), jnp.float32)}
    return {"even": even, "odd": jax.random.normal(odd_key, (2, d), jnp.float32)}


def encoder_init(key: Array, config: Config, memory: Memory, content: int) -> Theta:
    """Weights of one temporal encoder: a memory and the gated layer behind it."""
    d, width = config.hidden, config.feedforward
    memory_key, up, down, gate, odd = jax.random.split(key, 5)
    return {
        "memory": memory.init(memory_key, d, content, d),
        "up": linear_init(up, 2 * d, width),
        "down": linear_init(down, width, d),
        "gate": linear_init(gate, width, d, gain=0.5),
        "odd": jax.random.normal(odd, (d, d), jnp.float32) / d**0.5,
    }


def mix(theta: Theta, e: Float[Array, "*s d"], x: Float[Array, "*s d"]) -> tuple[Array, Array]:
    """The feed-forward half of an encoder: x is gated by what e and |x| say, so that x stays odd.

    h = gelu(W_1 LN[e, |x|] + b_1),   e ← e + W_2 h + b_2,   x ← x + tanh(W_g h + b_g) ⊙ W_x x
    """
    h = jax.nn.gelu(linear(theta["up"], layer_norm(jnp.concatenate([e, jnp.abs(x)], axis=-1))))
    return e + linear(theta["down"], h), x + jnp.tanh(linear(theta["gate"], h)) * (x @ theta["odd"])


def head_init(key: Array, d: int) -> Theta:
    """A gate that starts near one and a small projection: the first updates are small and spread."""
    gate_key, out_key = jax.random.split(key)
    return {
        "gate": linear_init(gate_key, d, d, gain=0.1),
        "out": 0.1 * jax.random.normal(out_key, (d,), jnp.float32) / d**0.5,
    }


def head(theta: Theta, e: Float[Array, "*s d"], x: Float[Array, "*s d"]) -> Float[Array, "*s"]:
    """The fully connected layer that ends the rule: wᵀ( x ⊙ (1 + tanh(W_h LN(e) + b_h)) )."""
    return (x * (1.0 + jnp.tanh(linear(theta["gate"], layer_norm(e))))) @ theta["out"]
