"""T5 v1.1 (Raffel et al. 2020; Shazeer 2020): an encoder and a decoder, and soft prompts (Lester et al. 2021).

t5 = T5["small"]
params = t5.init(key, *t5.example())["params"]
logits = t5.apply({"params": params}, tokens, shift_right(targets), mask=mask, prompt=prompt)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mnemosyne.tasks.models.transformer import Attention, GatedMlp, repeated, visible

START = 0
"""The token every decoder starts from; it also fills up a text's length."""


def shift_right(targets: Int[Array, "n t"]) -> Int[Array, "n t"]:
    """What the decoder reads while it foretells `targets`: `START`, then all of them but the last."""
    return jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=START)


def buckets(
    queries: int, keys: int, bidirectional: bool, number: int = 32, farthest: int = 128
) -> Int[np.ndarray, "queries keys"]:
    """Number the distance from each query to each key: near ones exactly, far ones by their logarithm.

    With e = m / 2 for m buckets a side, distance r < e has bucket r, and r ≥ e has
    min(m − 1, ⌊e + (m − e) log(r / e) / log(farthest / e)⌋).

    Args:
        queries: how many places look.
        keys: how many places are looked at.
        bidirectional: keys behind a query and keys before it have half of the buckets each; otherwise those behind
            all have the bucket 0.
        number: of buckets in all.
        farthest: distances from here on share one bucket.
    """
    distance = np.arange(keys)[None] - np.arange(queries)[:, None]
    side = number // 2 if bidirectional else number
    offset = side * (distance > 0) if bidirectional else 0
    distance = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    exact = side // 2
    # float32 as in the public code: with other precision, a distance on a border may fall on its other side.
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / exact) / np.float32(np.log(farthest / exact))
    far = np.minimum(exact + (ratio * (side - exact)).astype(np.int32), side - 1)
    return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) ⊙ scale, in float32: no mean taken off, no bias."""

    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).astype(jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.epsilon)
        return (x * scale[None, None]).astype(self.dtype)


class Layer(nn.Module):
    """One pre-LN layer: x ← x + f(RMS x) for f self-attention, in a decoder attention to the encoder, gated MLP."""

    heads: int
    head_dim: int
    mlp_dim: int
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n t d"],
        bias: Float[Array, "1 h t t"],
        mask: Bool[Array, "#n 1 #t t"] | None,
        encoded: Float[Array, "n s d"] | None = None,
        encoded_mask: Bool[Array, "n 1 1 s"] | None = None,
    ) -> Float[Array, "n t d"]:
        y = self._norm("norm_attention", x)
        x = x + self._attention("attention", x.shape[-1])(y, y, mask, bias)
        if encoded is not None:
            y = self._norm("norm_cross", x)
            x = x + self._attention("cross", x.shape[-1])(y, encoded, encoded_mask)
        return x + GatedMlp(self.mlp_dim, self.dtype, name="mlp")(self._norm("norm_mlp", x))

    def _norm(self, name: str, x: Array) -> Array:
        return RMSNorm(self.epsilon, self.dtype, name=name)(x)

    def _attention(self, name: str, width: int) -> Attention:
        # Scores are not divided by √head_dim; queries start smaller by as much instead.
        smaller = nn.initializers.normal((width * self.head_dim) ** -0.5)
        return Attention(self.heads, self.head_dim, 1.0, False, query_init=smaller, dtype=self.dtype, name=name)


class Stack(nn.Module):
    """Layers that share the first one's bias over relative positions, then a norm: an encoder or a decoder."""

    layers: int
    heads: int
    head_dim: int
    mlp_dim: int
    epsilon: float
    causal: bool  # a place looks at none behind it
    remat: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n t d"],
        mask: Bool[Array, "n t"] | None,
        encoded: Float[Array, "n s d"] | None = None,
        encoded_mask: Bool[Array, "n s"] | None = None,
    ) -> Float[Array, "n t d"]:
        t, width = x.shape[1:]
        normal = nn.initializers.normal(width**-0.5)
        biases = nn.Embed(32, self.heads, jnp.float32, embedding_init=normal, name="positions")
        bias = biases(jnp.asarray(buckets(t, t, bidirectional=not self.causal))).transpose(2, 0, 1)[None]
        seen = visible(mask)
        if self.causal:
            past = jnp.tril(jnp.ones((t, t), bool))[None, None]
            seen = past if seen is None else past & seen
        layer = repeated(Layer, self.remat)
        for i in range(self.layers):
            block = layer(self.heads, self.head_dim, self.mlp_dim, self.epsilon, self.dtype, name=f"layer_{i}")
            x = block(x, bias, seen, encoded, visible(encoded_mask))
        return RMSNorm(self.epsilon, self.dtype, name="norm")(x)


class EncoderDecoder(nn.Module):
    """T5 v1.1: one embedding for both sides, pre-LN layers, and a head of its own.

    Raises:
        ValueError: if the prompt's width is not the model's.
    """

    layers: int  # in the encoder, and as many in the decoder
    heads: int
    head_dim: int  # heads · head_dim need not be `hidden`
    hidden: int
    mlp_dim: int  # hidden units behind each attention
    vocabulary: int = 32_128
    epsilon: float = 1e-6  # in every norm
    remat: bool = False  # compute each layer again in the backward pass: less memory, more time
    dtype: DTypeLike = jnp.float32  # of the computation; parameters stay as they are

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "n s"],
        targets: Int[Array, "n t"],
        mask: Bool[Array, "n s"] | None = None,
        target_mask: Bool[Array, "n t"] | None = None,
        prompt: Float[Array, "p d"] | None = None,
    ) -> Float[Array, "n t vocabulary"]:
        """Foretell each token of the target from those before it and from the encoder's text.

        Args:
            tokens: the encoder's text.
            targets: what the decoder reads: `shift_right` of what it foretells.
            mask: False where a token only fills up the encoder's text.
            target_mask: the same for the decoder's; filling at its end needs none, as nothing before looks there.
            prompt: p vectors that stand before the embedded text of every example, in float32 whatever `dtype` is.
                It is no parameter of the model, so that it can be trained while the model rests.
        """
        shared = nn.Embed(
            self.vocabulary, self.hidden, self.dtype, embedding_init=nn.initializers.normal(1.0), name="tokens"
        )
        x, mask = _prepended(prompt, shared(tokens), mask)
        encoded = self._stack("encoder", causal=False)(x, mask)
        decoded = self._stack("decoder", causal=True)(shared(targets), target_mask, encoded, mask)
        return nn.Dense(self.vocabulary, False, self.dtype, name="head")(decoded).astype(jnp.float32)

    def example(self) -> tuple[Int[Array, "1 8"], Int[Array, "1 8"]]:
        """Eight tokens for the encoder and eight for the decoder; other lengths will do as well."""
        return jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 8), jnp.int32)

    def _stack(self, name: str, causal: bool) -> Stack:
        sizes = (self.layers, self.heads, self.head_dim, self.mlp_dim)
        return Stack(*sizes, self.epsilon, causal, self.remat, self.dtype, name=name)


def _prepended(prompt: Array | None, x: Array, mask: Array | None) -> tuple[Array, Array | None]:
    if prompt is None:
        return x, mask
    if prompt.shape[1] != x.shape[2]:
        raise ValueError(f"the prompt's vectors have {prompt.shape[1]} numbers, this model's have {x.shape[2]}")
    x = jnp.concatenate([jnp.broadcast_to(prompt.astype(x.dtype)[None], (len(x), *prompt.shape)), x], axis=1)
    return x, None if mask is None else jnp.pad(mask, ((0, 0), (len(prompt), 0)), constant_values=True)


T5 = {
    "small": EncoderDecoder(layers=8, heads=6, head_dim=64, hidden=512, mlp_dim=1_024),  # 77 million
    "base": EncoderDecoder(layers=12, heads=12, head_dim=64, hidden=768, mlp_dim=2_048),  # 248 million
    "large": EncoderDecoder(layers=24, heads=16, head_dim=64, hidden=1_024, mlp_dim=2_816),  # 783 million
    "xl": EncoderDecoder(layers=24, heads=32, head_dim=64, hidden=2_048, mlp_dim=5_120),  # 2.8 billion
    "xxl": EncoderDecoder(layers=24, heads=64, head_dim=64, hidden=4_096, mlp_dim=10_240),  # 11 billion
}
"""The public sizes; `clone` changes any field."""
