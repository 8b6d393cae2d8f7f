"""What every memory fulfils, and the maps of Eq. 2 and the checks that they share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.memory.features import orthogonal_projections
from mnemosyne.memory.layers import linear, linear_init
from mnemosyne.types import Scalar, State, Theta


class Memory(NamedTuple):
    """The contract every memory fulfils. Patterns come split into an address and a content, both [*s d].

    The paper's pattern ξ is the special case address = content = ξ.
    """

    init: Callable[[Array, int, int, int], Theta]  # (key, address dim, content dim, output dim) → θ
    state: Callable[[tuple, int, int], State]  # (batch shape, address dim, content dim) → empty memory
    step: Callable[[Theta, State, Array, Array], tuple[State, Array]]  # → (state, out [*s d_out])
    window: Callable[[Theta, State, Array, Array], Array]  # sequences [t *s d] → outs [t *s d_out]


def check_memory(discount: float | Scalar, projections: int = 1) -> None:
    """Raise a ValueError unless λ is a number in [0, 1], or one of several in a `vmap`, and r a whole number ≥ 1."""
    number = isinstance(discount, int | float) and not isinstance(discount, bool) and 0 <= discount <= 1
    if not number and not is_traced(discount):
        raise ValueError(
            f"the discount λ must be one number from 0 to 1 per step, got {discount!r}. At each step the memory keeps "
            "e^(−λ) of itself: 0 forgets nothing, 0.1 most of it in some ten steps, and a decay β is λ = −log β"
        )
    if not isinstance(projections, int) or isinstance(projections, bool) or projections < 1:
        raise ValueError(f"a memory needs at least one random projection, got projections = {projections}")


def is_traced(x: Any) -> bool:
    """Whether this is a single number of a traced program, such as one of several in a `vmap`."""
    return isinstance(x, jax.core.Tracer) and x.shape == ()


def init_with_projections(projections: int, draw: Callable) -> Callable:
    """`Memory.init` of a memory with r projections: W_Q, W_K, W_V and ω."""

    def init(key: Array, address: int, content: int, out: int) -> Theta:
        *keys, o = jax.random.split(key, 4)
        return {**linear_maps(keys, address, content, out), "omega": draw(o, projections, address)}

    return init


def linear_maps(keys: Sequence[Array] | Array, address: int, content: int, out: int) -> Theta:
    """W_Q, W_K and W_V of Eq. 2."""
    q, k, v = keys
    value = jax.random.normal(v, (content, out), jnp.float32) / content**0.5
    return {"query": linear_init(q, address, address), "key": linear_init(k, address, address), "value": value}


def queries_and_keys(theta: Theta, address: Float[Array, "*s d"]) -> tuple[Array, Array]:
    """q = N^{-1/4} (W_Q a + b_Q) and k = N^{-1/4} (W_K a + b_K) (Eq. 2), both [*s N]."""
    temper = address.shape[-1] ** -0.25
    return temper * linear(theta["query"], address), temper * linear(theta["key"], address)


def check_pattern(theta: Theta, address: Array, content: Array) -> None:
    """Raise a ValueError unless a pattern has the dimensions θ was made for."""
    wanted = {"address": theta["query"]["w"].shape[0], "content": theta["value"].shape[0]}
    for name, x in (("address", address), ("content", content)):
        if jnp.ndim(x) < 1 or x.shape[-1] != wanted[name]:
            raise ValueError(
                f"the {name} of shape {jnp.shape(x)} does not fit this memory, whose θ was made for {name} dimension "
                f"{wanted[name]}: the last axis must agree with what memory.init was told"
            )
    if address.shape[:-1] != content.shape[:-1]:
        raise ValueError(f"address {address.shape} and content {content.shape} differ before their last axes")


def redraw(theta: Theta, key: Array, draw: Callable = orthogonal_projections) -> Theta:
    """Replace every memory's projections ω in θ by new ones of the same size.

    A state belongs to the ω it was written with: start from an empty memory afterwards.

    Args:
        theta: weights of a memory, or of anything that contains memories.
        key: a JAX random key.
        draw: how to draw ω.

    Returns:
        θ with new projections and all else unchanged.
    """
    leaves, tree = jax.tree.flatten_with_path(theta)
    keys = jax.random.split(key, len(leaves))
    is_omega = lambda path: getattr(path[-1], "key", None) == "omega"
    return tree.unflatten(
        [
            draw(k, *leaf.shape).astype(leaf.dtype) if is_omega(path) else leaf
            for k, (path, leaf) in zip(keys, leaves, strict=True)
        ]
    )
