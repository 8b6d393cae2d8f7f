"""Prompts of a random linear regression: examples (x_i, y_i), and one query x_{n+1} whose y is asked for.

distribution = skewed(jnp.array([1, 1, 0.5, 0.25, 1]), jax.random.key(0))
prompt = draw(distribution, 20, jax.random.key(1))      # one; `vmap` over keys for many
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnemosyne.types import Scalar


class Tokens(NamedTuple):
    """The prompt as a Transformer holds it, Z = [x; y], a token in every column. The last column is the query.

    It is also what a layer adds to it. Where a layer leaves all of x as it is, x is None there.
    """

    x: Float[Array, "d t"] | None
    y: Float[Array, " t"]  # zero in the query at first; in the end minus the answer


class Prompt(NamedTuple):
    """A question and its answer."""

    tokens: Tokens  # n examples and the query: t = n + 1
    answer: Scalar  # ⟨w, x_{n+1}⟩


class Distribution(NamedTuple):
    """x = root · z and w = task · u, with z and u of independent standard normal numbers."""

    root: Float[Array, "*s d d"]  # root · rootᵀ = Σ, the covariance of x
    task: Float[Array, "*s d d"]


def skewed(stretch: Float[Array, " d"], key: Array) -> Distribution:
    """x = U D z and w = U D⁻¹ u: the covariance of x is U D² Uᵀ, and ⟨w, x⟩ is as large in all directions.

    The text of the paper has U D Uᵀ for the covariance; its figures agree with D². The other reading is
    `skewed(jnp.sqrt(stretch), key)`; ones are isotropic.

    Args:
        stretch: the diagonal of D; a ValueError if it is empty, not positive or not finite, since D⁻¹ is needed.
        key: of the rotation U, which is uniform among all.
    """
    numbers = np.asarray(stretch, np.float64)
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all() or not (numbers > 0).all():
        raise ValueError(f"stretch must be one positive, finite number for each of d ≥ 1 directions, got {stretch}")
    rotation = jax.random.orthogonal(key, numbers.size)
    scale = jnp.asarray(numbers, jnp.float32)
    return Distribution(rotation * scale[None, :], rotation / scale[None, :])


def draw(distribution: Distribution, examples: int, key: Array) -> Prompt:
    """Draw one prompt.

    With n < d, or examples that are linearly dependent, w is not determined by the prompt. A ValueError if n < 1.
    """
    if examples < 1:
        raise ValueError(f"a prompt needs at least 1 example, got {examples}")
    of_z, of_u = jax.random.split(key)
    d = distribution.root.shape[-1]
    x = distribution.root @ jax.random.normal(of_z, (d, examples + 1))
    w = distribution.task @ jax.random.normal(of_u, (d,))
    y = w @ x
    return Prompt(Tokens(x, y.at[-1].set(0.0)), y[-1])


def transformed(tokens: Tokens, matrix: Float[Array, "d d"]) -> Tokens:
    """The same question with x in other coordinates, matrix · x: a method on it is the method preconditioned."""
    return Tokens(matrix @ tokens.x, tokens.y)
