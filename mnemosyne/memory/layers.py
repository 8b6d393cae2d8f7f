"""Layers that every rule is built of: pure functions of their weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.types import Theta


def linear_init(key: Array, fan_in: int, fan_out: int, gain: float = 1.0) -> Theta:
    """Weights of variance gain²/fan_in and a zero bias."""
    w = jax.random.normal(key, (fan_in, fan_out), jnp.float32) * gain / fan_in**0.5
    return {"w": w, "b": jnp.zeros(fan_out, jnp.float32)}


def linear(theta: Theta, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
    """x W + b."""
    return x @ theta["w"] + theta["b"].reshape(*(1,) * (x.ndim - 1), -1)


def layer_norm(x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """(x − mean x) / √(var x + 1e−5)."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)
