"""Small networks of kinds that `networks` has not: embeddings, dilated convolutions, plain recurrence, codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mnemosyne.tasks.models.networks import patches


class Factors(nn.Module):
    """A matrix of low rank, known by some of its entries: u_i · v_j. A step changes few rows of either factor."""

    shape: tuple[int, int]  # rows and columns of the matrix
    rank: int

    @nn.compact
    def __call__(self, places: Int[Array, "n 2"]) -> Float[Array, "n 1"]:
        table = lambda name, rows: self.param(name, nn.initializers.normal(0.3), (rows, self.rank))
        left, right = (table(name, rows) for name, rows in zip(("left", "right"), self.shape, strict=True))
        return jnp.sum(left[places[:, 0]] * right[places[:, 1]], axis=1, keepdims=True)


class Window(nn.Module):
    """Foretell a character from the few before it, through one table of embeddings (Bengio et al. 2003)."""

    vocabulary: int
    embedding: int
    hidden: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n vocabulary"]:
        x = nn.Embed(self.vocabulary, self.embedding)(tokens)
        x = nn.tanh(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.vocabulary)(x)


class Dilated(nn.Module):
    """Gated causal convolutions over two places, ever further apart (van den Oord et al. 2016)."""

    vocabulary: int
    width: int
    layers: int  # layer l looks 2^l places back

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n t vocabulary"]:
        x = nn.Dense(self.width, use_bias=False)(jax.nn.one_hot(tokens, self.vocabulary))
        for layer in range(self.layers):
            back = min(2**layer, x.shape[1])
            before = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, : x.shape[1]]
            value, gate = jnp.split(nn.Dense(2 * self.width)(jnp.concatenate([x, before], axis=-1)), 2, axis=-1)
            x = x + nn.Dense(self.width)(jnp.tanh(value) * nn.sigmoid(gate))
        return nn.Dense(self.vocabulary)(nn.relu(x))


class Residuals(nn.Module):
    """Fully connected residual blocks behind layer norms."""

    width: int
    blocks: int
    outputs: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        x = nn.Dense(self.width)(inputs.reshape(inputs.shape[0], -1))
        for _ in range(self.blocks):
            x = x + nn.Dense(self.width)(nn.relu(nn.Dense(self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.outputs)(nn.LayerNorm()(x))


class Mixer(nn.Module):
    """Mix what patches say, channel by channel, then what channels say, patch by patch (Tolstikhin et al. 2021)."""

    layers: int
    width: int
    patch: int  # side, in pixels; it divides the image's
    classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        x = nn.Dense(self.width)(patches(images, self.patch, self.patch))
        x = x.reshape(x.shape[0], -1, self.width)
        mixed = lambda y: nn.Dense(y.shape[-1])(nn.gelu(nn.Dense(2 * self.width)(y)))
        for _ in range(self.layers):
            x = x + jnp.swapaxes(mixed(jnp.swapaxes(nn.LayerNorm()(x), 1, 2)), 1, 2)
            x = x + mixed(nn.LayerNorm()(x))
        return nn.Dense(self.classes)(nn.LayerNorm()(x).mean(axis=1))


class Rows(nn.Module):
    """Read an image row by row with a plain recurrence (Elman 1990): h ← tanh(W x + U h + b)."""

    hidden: int
    classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        n, rows = images.shape[:2]
        x = nn.Dense(self.hidden)(images.reshape(n, rows, -1))
        recurrent = self.param("recurrent", nn.initializers.orthogonal(), (self.hidden, self.hidden))
        h, _ = jax.lax.scan(
            lambda h, x: (jnp.tanh(x + h @ recurrent), None), jnp.zeros((n, self.hidden)), jnp.swapaxes(x, 0, 1)
        )
        return nn.Dense(self.classes)(h)


class Variational(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014): a normal code for each image, and the image from it."""

    hidden: int
    code: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "n p_and_code"]) -> tuple[Float[Array, "n p"], Float[Array, "n"]]:
        """From pixels, followed by standard normal numbers, to pixels and the code's divergence from the prior."""
        pixels, noise = inputs[:, : -self.code], inputs[:, -self.code :]
        mean, spread = jnp.split(nn.Dense(2 * self.code)(nn.silu(nn.Dense(self.hidden)(pixels))), 2, axis=-1)
        spread = jnp.clip(spread, -10.0, 10.0)  # log of the variance
        code = mean + jnp.exp(spread / 2.0) * noise
        again = nn.Dense(pixels.shape[1])(nn.silu(nn.Dense(self.hidden)(code)))
        return again, 0.5 * jnp.sum(jnp.exp(spread) + mean**2 - 1.0 - spread, axis=1)


class Views(nn.Module):
    """Map two views of each image to unit vectors (Chen et al. 2020)."""

    hidden: int
    outputs: int

    @nn.compact
    def __call__(self, views: Float[Array, "n 2 p"]) -> Float[Array, "n 2 outputs"]:
        x = nn.Dense(self.outputs)(nn.relu(nn.Dense(self.hidden)(views)))
        return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)
