"""Small networks far from the paper's: convolutions, recurrence, causal attention, plain stacks of any depth."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Stack(nn.Module):
    """Fully connected layers over flattened inputs, the last one linear."""

    hidden: tuple[int, ...]  # units per hidden layer; none makes a linear model
    activation: Callable[[Array], Array]
    outputs: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        x = inputs.reshape(inputs.shape[0], -1)
        for width in self.hidden:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)


class Convolutional(nn.Module):
    """3×3 convolutions of stride 2, then one linear layer over all places and channels.

    A convolution is a matrix product over patches. Under `vmap` over parameters that stays a batched matrix
    product, where a convolution primitive becomes a grouped one, which is slow on a CPU.
    """

    channels: tuple[int, ...]
    activation: Callable[[Array], Array]
    classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        x = images
        for width in self.channels:
            x = self.activation(nn.Dense(width)(patches(x, size=3, stride=2)))
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


class Pooled(nn.Module):
    """3×3 convolutions with ReLU, the mean over all places, a linear layer (Metz et al. 2022, App. E)."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        x = images
        for width, stride in zip(self.channels, self.strides, strict=True):
            x = nn.relu(nn.Conv(width, (3, 3), stride)(x))
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


def patches(images: Float[Array, "n h w c"], size: int, stride: int) -> Float[Array, "n a b p"]:
    """Cut out what a convolution with 'SAME' padding sees at each place.

    Args:
        images: with zeros all around them.
        size: of a patch's side.
        stride: from one patch to the next; there are ⌈h / stride⌉ × ⌈w / stride⌉.

    Returns:
        Patches of size · size · c numbers, row by row, channels last.
    """
    n, *sides, c = images.shape
    counts = [-(-side // stride) for side in sides]
    margins = [max((count - 1) * stride + size - side, 0) for count, side in zip(counts, sides, strict=True)]
    padded = jnp.pad(images, ((0, 0), *((m // 2, m - m // 2) for m in margins), (0, 0)))
    rows, columns = ((count - 1) * stride + 1 for count in counts)
    shifted = [
        jax.lax.slice(padded, (0, i, j, 0), (n, i + rows, j + columns, c), (1, stride, stride, 1))
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


class ByPatches(nn.Module):
    """A square convolution with the parameters of `nn.Conv`, as a product of `patches` with a matrix.

    Within a compiled loop XLA takes twenty times as long for a convolution on a CPU, and no longer for a product.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n a b f"]:
        shape = (*self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))[None, None, None] if self.use_bias else 0.0
        seen = patches(images, self.kernel_size[0], self.strides)
        return seen @ kernel.reshape(-1, self.features) + bias


class Recurrent(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) that foretells each next character.

    r, z = σ(W x + U h);   n = tanh(W x + r ⊙ U h);   h ← (1 − z) ⊙ n + z ⊙ h
    """

    vocabulary: int
    embedding: int
    hidden: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n t vocabulary"]:
        # A product with one-hot vectors, since the gradient of a look-up is a scatter, which is slow on a CPU.
        x = nn.Dense(self.embedding, use_bias=False)(jax.nn.one_hot(tokens, self.vocabulary))
        x = nn.Dense(3 * self.hidden)(x)
        recurrent = self.param("recurrent", nn.initializers.lecun_normal(), (self.hidden, 3 * self.hidden))

        def step(h, x):
            fresh, old = (
                jnp.split(x, (2 * self.hidden,), axis=-1),
                jnp.split(h @ recurrent, (2 * self.hidden,), axis=-1),
            )
            r, z = jnp.split(nn.sigmoid(fresh[0] + old[0]), 2, axis=-1)
            h = (1.0 - z) * jnp.tanh(fresh[1] + r * old[1]) + z * h
            return h, h

        start = jnp.zeros((x.shape[0], self.hidden))
        _, states = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
        return nn.Dense(self.vocabulary)(jnp.swapaxes(states, 0, 1))


def encoder(x: Array, heads: int, width: int, mlp: int, mask: Array | None = None) -> Array:
    """One pre-LN Transformer layer over [n t d], its modules named by the module that calls it.

    Args:
        x: tokens.
        heads: of the attention.
        width: of queries, keys and values, all heads together.
        mlp: hidden units behind the attention.
        mask: of the attention; none by default.
    """
    y = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(heads, qkv_features=width)(y, y, mask=mask)
    y = nn.gelu(nn.Dense(mlp)(nn.LayerNorm()(x)))
    return x + nn.Dense(x.shape[-1])(y)


class Attentive(nn.Module):
    """A causal pre-LN Transformer that foretells each next character."""

    vocabulary: int
    layers: int
    heads: int
    hidden: int
    mlp: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n t vocabulary"]:
        x = nn.Dense(self.hidden, use_bias=False)(jax.nn.one_hot(tokens, self.vocabulary))
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])[None]
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            x = encoder(x, self.heads, self.hidden, self.mlp, mask)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))
