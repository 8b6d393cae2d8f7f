"""What a learned update rule is: its sizes, its contract, and what it sees of a gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.memory.contract import check_memory, is_traced
from mnemosyne.types import Scalar, State, Theta


@dataclass(frozen=True)
class Config:
    """The sizes of a coordinate-wise Mnemosyne. Defaults are the paper's where it states them (App. B.1)."""

    hidden: int = 16  # d, the width of each stream
    projections: int = 16  # r, random projections of the memory; hyperbolic features make 2r of them
    encoders: int = 2  # temporal encoders, one memory each
    discount: float | int | Scalar = 0.1  # λ, per step
    feedforward: int = 32  # width of the gated layer after each memory; not stated in the paper
    magnitude: float | int | Scalar = 10.0  # p of the preprocessing of Andrychowicz et al. 2016
    output_scale: float | int | Scalar = 1e-2  # factor on the head's output; not stated in the paper

    def __post_init__(self):
        for name in ("hidden", "projections", "encoders", "feedforward"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be a whole number ≥ 1, got {size!r}")
        check_memory(self.discount, self.projections)
        for name in ("magnitude", "output_scale"):
            number = getattr(self, name)
            if not is_traced(number) and (not isinstance(number, int | float) or not 0 < number < math.inf):
                raise ValueError(f"{name} must be a finite number > 0, got {number!r}")


COORDINATE = Config()
LIGHT = Config(hidden=8, encoders=1, feedforward=16)


class Rule(NamedTuple):
    """A learned update rule: pure functions of its weights θ, its state and a gradient of any shape *s."""

    init: Callable[[Array], Theta]  # key → θ
    state: Callable[[tuple], State]  # *s → state of a rule that has seen nothing
    step: Callable[[Theta, State, Array], tuple[State, Array]]  # gradient [*s] → update [*s]
    window: Callable[[Theta, State, Array], Array]  # gradients [t *s] → updates [t *s], as t steps would


def log_sign(g: Float[Array, "*s"], p: float) -> tuple[Float[Array, "*s 1"], Float[Array, "*s 1"]]:
    """Split a gradient into magnitude and sign (App. B.1, after Andrychowicz et al. 2016).

        (log|g| / p, sign g)  where |g| ≥ e^{−p},     (−1, e^p g)  elsewhere

    Args:
        g: gradients, of order one.
        p: half the number of e-folds that are told apart.

    Returns:
        (even, odd): magnitude ≥ −1 and sign in [−1, 1], continuous in g, both 0-safe under differentiation.
    """
    smallest = jnp.exp(-p)
    size = jnp.abs(g)
    large = size >= smallest
    even = jnp.where(large, jnp.log(jnp.maximum(size, smallest)) / p, -1.0)
    odd = jnp.where(large, jnp.sign(g), g / smallest)
    return even[..., None], odd[..., None]


def log_value(g: Float[Array, "*s"], p: float) -> tuple[Float[Array, "*s 1"], Float[Array, "*s 1"]]:
    """The magnitude of `log_sign` beside the gradient itself, clipped to ±3.

    With a memory's average of past gradients, each divided by its own running size, Adam's step is within reach.
    """
    even, _ = log_sign(g, p)
    return even, jnp.clip(g, -3.0, 3.0)[..., None]
