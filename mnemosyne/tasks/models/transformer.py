"""What Transformers have in common: patches, attention over several heads, the layers behind it, counting.

The parameters of a public model's module are a plain dict, and every leaf is one tensor of the public checkpoint.
There is no dropout: a model is a function of its parameters and inputs alone.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mnemosyne.types import Params

LECUN = nn.initializers.lecun_normal()


class Attention(nn.Module):
    """Attention of several heads (Vaswani et al. 2017): softmax(s Q Kᵀ + B) V, heads side by side, then one matrix.

    Scores and softmax are float32 whatever `dtype` is.
    """

    heads: int
    head_dim: int
    scale: float  # s; head_dim^−½ as a rule, 1 in T5
    use_bias: bool = True  # of the four dense layers
    kernel_init: Initializer = LECUN
    query_init: Initializer | None = None  # `kernel_init` by default
    dtype: DTypeLike = jnp.float32  # of the computation; parameters stay as they are

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n q d"],
        y: Float[Array, "n k d"],
        mask: Bool[Array, "#n #1 #q k"] | None = None,
        bias: Float[Array, "1 h q k"] | None = None,
    ) -> Float[Array, "n q d"]:
        """Attend from `x` to `y`.

        Args:
            x: what queries are made of.
            y: what keys and values are made of; `x` again for self-attention.
            mask: True where a query may look; everywhere by default.
            bias: B, added to the scores of each head.
        """

        def project(name: str, inputs: Array, kernel_init: Initializer) -> Array:
            dense = self._dense(self.heads * self.head_dim, name, kernel_init)
            return dense(inputs).reshape(*inputs.shape[:2], self.heads, self.head_dim)

        query = project("query", x, self.query_init or self.kernel_init)
        key, value = (project(name, y, self.kernel_init) for name in ("key", "value"))
        scores = self.scale * jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        weights = nn.softmax(scores).astype(self.dtype)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, value)
        return self._dense(x.shape[-1], "out", self.kernel_init)(mixed.reshape(*x.shape[:2], -1))

    def _dense(self, features: int, name: str, kernel_init: Initializer) -> nn.Dense:
        return nn.Dense(features, self.use_bias, self.dtype, kernel_init=kernel_init, name=name)


def self_attention(heads: int, width: int, kernel_init: Initializer, dtype: DTypeLike) -> Attention:
    """Attention whose heads share the width evenly, scores divided by √head_dim."""
    head_dim = width // heads
    return Attention(heads, head_dim, head_dim**-0.5, kernel_init=kernel_init, dtype=dtype, name="attention")


class Mlp(nn.Module):
    """Two dense layers: W₂ gelu(W₁ x + b₁) + b₂, with the exact gelu x Φ(x)."""

    hidden: int
    kernel_init: Initializer = LECUN
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        up = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=self.kernel_init, name="up")(x)
        down = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.kernel_init, name="down")
        return down(nn.gelu(up, approximate=False))


class GatedMlp(nn.Module):
    """Gated gelu without biases (Shazeer 2020): W (gelu(G x) ⊙ U x), with the tanh form of gelu."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        gate, up = (nn.Dense(self.hidden, False, self.dtype, name=name)(x) for name in ("gate", "up"))
        return nn.Dense(x.shape[-1], False, self.dtype, name="down")(nn.gelu(gate, approximate=True) * up)


def patches(images: Float[Array, "n h w c"], side: int) -> Float[Array, "n t f"]:
    """Cut images into squares, row by row, each flattened: a convolution of that stride is a product with these."""
    n, h, w, c = images.shape
    squares = images.reshape(n, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(n, -1, side * side * c)


def layer_norm(epsilon: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """(x − mean) / √(variance + ε) ⊙ scale + bias in float32, with the variance from deviations, not from squares."""
    return nn.LayerNorm(epsilon, dtype, use_fast_variance=False, name=name)


def repeated(layer: type[nn.Module], remat: bool) -> Callable[..., nn.Module]:
    """A layer as it is, or one whose activations the backward pass computes again instead of keeping them."""
    return nn.remat(layer) if remat else layer


def visible(mask: Bool[Array, "n k"] | None) -> Bool[Array, "n 1 1 k"] | None:
    """A mask of attention from a mask of tokens: every query may look at every real token."""
    return None if mask is None else mask[:, None, None]


def shapes(module: nn.Module) -> Params:
    """Shapes and dtypes of a model's parameters, without making any.

    Args:
        module: one with a method `example`, which gives inputs it accepts.

    Returns:
        The parameters' tree with a `jax.ShapeDtypeStruct` at each leaf, whatever the size of the model.
    """
    return jax.eval_shape(lambda key: module.init(key, *module.example())["params"], jax.random.key(0))


def count(params: Params) -> int:
    """How many numbers a tree of arrays or shapes holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
