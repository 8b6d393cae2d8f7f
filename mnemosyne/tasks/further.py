"""Tasks of kinds that `suite` has not, from other data: what a release of weights is looked at on, once."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mnemosyne.tasks.data.images import Dataset, Split, draw, resize, standardise
from mnemosyne.tasks.data.text import Text
from mnemosyne.tasks.models import further
from mnemosyne.tasks.models.networks import Stack
from mnemosyne.tasks.suite import (
    ACTIVATIONS,
    classifier,
    cross_entropy,
    language,
    mlp,
    tabular,
    task_of,
    teacher,
)
from mnemosyne.types import Scalar, Task


def mosaic(images: Dataset, across: int = 4, hidden: tuple[int, ...] = (40, 40), batch_size: int = 128) -> Task:
    """Learn `across`² grey images, side by side, by heart: from a pixel's place to its brightness.

    A place is told as sines and cosines of seven frequencies.
    """
    side = images.train.images.shape[1]
    grey = np.asarray(resize(images, side, 1).train.images[: across**2], np.float64)
    whole = grey.reshape(across, across, side, side).swapaxes(1, 2).reshape(-1, 1)
    rows, columns = np.mgrid[: across * side, : across * side].reshape(2, -1) / (across * side)
    angles = np.pi * np.stack([2.0**k * place for k in range(7) for place in (rows, columns)], axis=1)
    x, y = np.concatenate([np.sin(angles), np.cos(angles)], axis=1), (whole - whole.mean()) / whole.std()
    order = np.random.default_rng(0).permutation(len(x))
    return tabular("mosaic by heart", Stack(hidden, ACTIVATIONS["gelu"], 1), x[order], y[order], batch_size)


def factorisation(
    shape: tuple[int, int] = (80, 60), rank: int = 5, noise: float = 0.3, batch_size: int = 64, seed: int = 0
) -> Task:
    """Complete a matrix of low rank and unit variance from half of its entries, seen through noise."""
    rng = np.random.default_rng(seed)
    left, right = (rng.normal(size=(n, rank)) / rank**0.25 for n in shape)
    places = np.stack(np.unravel_index(rng.permutation(shape[0] * shape[1]), shape), axis=1)
    places = places[: len(places) // 2]
    y = (left @ right.T)[tuple(places.T)][:, None] + noise * rng.normal(size=(len(places), 1))
    return tabular(f"matrix of rank {rank}", further.Factors(shape, rank + 3), places, y, batch_size)


def window(text: Text, before: int = 8, embedding: int = 12, hidden: int = 48, batch_size: int = 32) -> Task:
    """Foretell a character from the `before` ones before it."""
    held = np.lib.stride_tricks.sliding_window_view(text.validation, before + 1)[:: before + 1][:1_000]
    train = jnp.asarray(text.train)

    def sample(tokens: Array, key: Array) -> tuple[Array, Array]:
        starts = jax.random.randint(key, (batch_size,), 0, len(tokens) - before)
        stretch = tokens[starts[:, None] + jnp.arange(before + 1)[None]]
        return stretch[:, :-1], stretch[:, -1]

    network = further.Window(text.vocabulary, embedding, hidden)
    held = jnp.asarray(held[:, :-1]), jnp.asarray(held[:, -1])
    return task_of(f"window of {before}", network, train, sample, held, cross_entropy)


def dilated(text: Text, width: int = 16, layers: int = 4, length: int = 16, batch_size: int = 16) -> Task:
    """Foretell each next character by gated causal convolutions."""
    return language(
        f"dilated {layers}x{width}", further.Dilated(text.vocabulary, width, layers), text, length, batch_size
    )


def residuals(images: Dataset, width: int = 48, blocks: int = 4, batch_size: int = 64) -> Task:
    """Classify images by fully connected residual blocks behind layer norms."""
    network = further.Residuals(width, blocks, images.classes)
    return classifier(f"residual mlp {blocks}×{width}", network, images, batch_size)


def mixer(images: Dataset, layers: int = 1, width: int = 16, batch_size: int = 16) -> Task:
    """Classify images by mixing patches and channels in turn."""
    network = further.Mixer(layers, width, images.train.images.shape[1] // 4, images.classes)
    return classifier(f"mixer {layers}x{width}", network, images, batch_size)


def rows(images: Dataset, hidden: int = 32, batch_size: int = 32) -> Task:
    """Classify images by a plain recurrence over their rows."""
    return classifier(f"rows by rnn {hidden}", further.Rows(hidden, images.classes), images, batch_size)


def variational(images: Dataset, hidden: int = 48, code: int = 6, batch_size: int = 32) -> Task:
    """Code standardised images by normal numbers; the loss is the negative evidence bound at unit variance."""

    def with_noise(pixels: Float[Array, "n h w c"], key: Array) -> tuple[Array, Array]:
        pixels = pixels.reshape(pixels.shape[0], -1)
        return jnp.concatenate([pixels, jax.random.normal(key, (len(pixels), code))], axis=1), pixels

    def sample(part: Split, key: Array) -> tuple[Array, Array]:
        image, noise = jax.random.split(key)
        return with_noise(draw(images, part, image, batch_size)[0], noise)

    def measure(outputs: tuple[Array, Array], pixels: Array) -> dict[str, Scalar]:
        again, divergence = outputs
        return {"loss": jnp.mean(0.5 * jnp.sum((again - pixels) ** 2, axis=1) + divergence)}

    held = with_noise(standardise(images, images.validation.images), jax.random.key(0))
    return task_of(f"variational {code}", further.Variational(hidden, code), images.train, sample, held, measure)


def contrastive(images: Dataset, hidden: int = 48, outputs: int = 16, noise: float = 0.5, batch_size: int = 32) -> Task:
    """Find the other noisy view of an image among a batch's, by cosines at temperature 0.2."""

    def views(pixels: Float[Array, "n h w c"], key: Array) -> tuple[Array, Array]:
        pixels = pixels.reshape(pixels.shape[0], 1, -1)
        noisy = pixels + noise * jax.random.normal(key, (pixels.shape[0], 2, pixels.shape[2]))
        return noisy, jnp.arange(pixels.shape[0])

    def sample(part: Split, key: Array) -> tuple[Array, Array]:
        image, noise_key = jax.random.split(key)
        return views(draw(images, part, image, batch_size)[0], noise_key)

    def measure(found: Float[Array, "n 2 e"], which: Int[Array, "n"]) -> dict[str, Scalar]:
        return cross_entropy(found[:, 0] @ found[:, 1].T / 0.2, which)

    held = views(standardise(images, images.validation.images)[:batch_size], jax.random.key(0))
    return task_of("two views", further.Views(hidden, outputs), images.train, sample, held, measure)


def mislabelled(images: Dataset, share: float = 0.4, hidden: tuple[int, ...] = (24,), batch_size: int = 8) -> Task:
    """Classify images of which a share has labels drawn at random."""
    rng, labels = np.random.default_rng(0), np.asarray(images.train.labels)
    drawn = rng.integers(images.classes, size=len(labels)).astype(labels.dtype)
    labels = jnp.asarray(np.where(rng.random(len(labels)) < share, drawn, labels))
    train = images.train._replace(labels=labels)
    task = mlp(images._replace(train=train), hidden, "elu", batch_size)
    return task._replace(name=f"{task.name}, {share:.0%} mislabelled")


def absolute(inputs: int = 12, hidden: tuple[int, ...] = (32,), batch_size: int = 16, seed: int = 7) -> Task:
    """Imitate a random network with the absolute error, whose gradient does not shrink as errors do."""
    x, y = teacher(inputs, noise=0.1, seed=seed)
    measure = lambda outputs, targets: {"loss": jnp.mean(jnp.abs(outputs - targets))}
    return tabular("absolute error", Stack(hidden, ACTIVATIONS["tanh"], 4), x, y, batch_size, measure)


def tumours(hidden: tuple[int, ...] = (16,), batch_size: int = 32) -> Task:
    """Tell tumours apart by 30 numbers as they were measured, from thousandths to thousands (569 patients).

    Only their common scale is divided out.
    """
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    network = Stack(hidden, ACTIVATIONS["silu"], 2)
    return tabular("raw tumours", network, x[order] / x.std(), y[order], batch_size, cross_entropy)


def wines(hidden: tuple[int, ...] = (16, 16), smoothing: float = 0.1) -> Task:
    """Tell three wines apart by 13 standardised numbers, all 138 of them in every step, with smoothed labels."""
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = ((x - x.mean(axis=0)) / x.std(axis=0))[order], y[order]
    soft = (1.0 - smoothing) * np.eye(3)[y] + smoothing / 3.0
    train, held = ((jnp.float32(x[part]), jnp.float32(soft[part])) for part in (slice(40, None), slice(40)))

    def measure(logits: Float[Array, "n 3"], wanted: Float[Array, "n 3"]) -> dict[str, Scalar]:
        return {"loss": -jnp.mean(jnp.sum(wanted * jax.nn.log_softmax(logits), axis=1))}

    network = Stack(hidden, ACTIVATIONS["tanh"], 3)
    return task_of("all wines", network, train, lambda part, key: part, held, measure)
