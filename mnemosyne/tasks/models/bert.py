"""BERT (Devlin et al. 2019) with the head that foretells masked tokens.

bert = BERT["base"]
params = bert.init(key, *bert.example())["params"]
logits = bert.apply({"params": params}, tokens, types, mask)
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mnemosyne.tasks.models.transformer import Mlp, layer_norm, repeated, self_attention, visible

NORMAL = nn.initializers.truncated_normal(0.02)


class Layer(nn.Module):
    """One post-LN layer: x ← LN(x + attention(x)), x ← LN(x + MLP(x))."""

    heads: int
    mlp_dim: int
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"], mask: Bool[Array, "n 1 1 t"] | None = None) -> Float[Array, "n t d"]:
        attention = self_attention(self.heads, x.shape[-1], NORMAL, self.dtype)
        x = layer_norm(self.epsilon, self.dtype, "norm_attention")(x + attention(x, x, mask))
        return layer_norm(self.epsilon, self.dtype, "norm_mlp")(
            x + Mlp(self.mlp_dim, NORMAL, self.dtype, name="mlp")(x)
        )


class Bert(nn.Module):
    """Sums of embeddings → LN → post-LN layers → dense, gelu, LN → the transposed embedding of tokens and a bias.

    Raises:
        ValueError: if heads do not divide the width, or there are more tokens than learned positions.
    """

    layers: int
    heads: int  # must divide `hidden`
    hidden: int
    mlp_dim: int  # hidden units behind each attention
    vocabulary: int = 30_522
    length: int = 512  # learned positions: the most tokens a text may have
    kinds: int = 2  # of tokens: the first and the second sentence
    epsilon: float = 1e-12  # in every LN
    remat: bool = False  # compute each layer again in the backward pass: less memory, more time
    dtype: DTypeLike = jnp.float32  # of the computation; parameters stay float32

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "n t"],
        types: Int[Array, "n t"] | None = None,
        mask: Bool[Array, "n t"] | None = None,
    ) -> Float[Array, "n t vocabulary"]:
        """Foretell the token at each place.

        Args:
            tokens: numbers below `vocabulary`.
            types: which sentence each token belongs to; all to the first, 0, by default.
            mask: False where a token only fills up a text's length; nothing looks there. What is foretold at such a
                place means nothing.
        """
        self._check(tokens)
        embed = self._embed(self.vocabulary, "tokens")
        x = embed(tokens) + self._embed(self.kinds, "types")(jnp.zeros_like(tokens) if types is None else types)
        x = x + self._embed(self.length, "positions")(jnp.arange(tokens.shape[1]))[None]
        x = layer_norm(self.epsilon, self.dtype, "norm")(x)
        layer = repeated(Layer, self.remat)
        for i in range(self.layers):
            x = layer(self.heads, self.mlp_dim, self.epsilon, self.dtype, name=f"layer_{i}")(x, visible(mask))
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=NORMAL, name="transform")(x)
        x = layer_norm(self.epsilon, self.dtype, "norm_transform")(nn.gelu(x, approximate=False))
        bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        return embed.attend(x).astype(jnp.float32) + bias.astype(jnp.float32)[None, None]

    def example(self) -> tuple[Int[Array, "1 length"]]:
        """One text of zeros, as long as may be."""
        return (jnp.zeros((1, self.length), jnp.int32),)

    def _embed(self, number: int, name: str) -> nn.Embed:
        return nn.Embed(number, self.hidden, self.dtype, embedding_init=NORMAL, name=name)

    def _check(self, tokens: Array) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.hidden}")
        if tokens.shape[1] > self.length:
            raise ValueError(f"texts have {tokens.shape[1]} tokens, this model has {self.length} positions: cut them")


BERT = {"base": Bert(layers=12, heads=12, hidden=768, mlp_dim=3_072)}  # 110 million
"""The public sizes; `clone` changes any field."""
