"""Image classifiers as tasks: MLPs and small Vision Transformers (paper App. B.1)."""

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mnemosyne.tasks.data.images import Dataset, Split, draw, standardise
from mnemosyne.tasks.models.networks import encoder
from mnemosyne.tasks.models.transformer import patches
from mnemosyne.types import Params, Task

ACTIVATIONS: dict[str, Callable] = {"sigmoid": nn.sigmoid, "relu": nn.relu}


class MLP(nn.Module):
    """Fully connected layers over flattened images."""

    hidden: tuple[int, ...]  # units per hidden layer
    activation: str  # a key of ACTIVATIONS
    classes: int = 10

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        x = images.reshape(images.shape[0], -1)
        for width in self.hidden:
            x = ACTIVATIONS[self.activation](nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


class ViT(nn.Module):
    """A pre-LN Vision Transformer without class token: patches → encoder layers → mean → linear head."""

    layers: int
    heads: int
    hidden: int
    head_dim: int
    mlp: int
    patch: int  # pixels on a side; must divide the image's side
    classes: int = 10

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        if images.shape[1] % self.patch or images.shape[2] % self.patch:
            raise ValueError(f"patches of {self.patch} do not tile images of {images.shape[1:3]}")
        x = nn.Dense(self.hidden, name="embedding")(patches(images, self.patch))
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])[None]
        for _ in range(self.layers):
            x = encoder(x, self.heads, self.heads * self.head_dim, self.mlp)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x).mean(axis=1))


@dataclass(frozen=True)
class MLPSpec:
    """An MLP's shape."""

    hidden: tuple[int, ...]
    activation: str

    def module(self, classes: int) -> nn.Module:
        return MLP(self.hidden, self.activation, classes)

    def __str__(self) -> str:
        return f"mlp {'+'.join(map(str, self.hidden))} {self.activation}"


@dataclass(frozen=True)
class ViTSpec:
    """A small ViT's shape."""

    layers: int
    heads: int
    hidden: int
    head_dim: int
    mlp: int
    patch: int = 7

    def module(self, classes: int) -> nn.Module:
        return ViT(self.layers, self.heads, self.hidden, self.head_dim, self.mlp, self.patch, classes)

    def __str__(self) -> str:
        return f"vit {self.layers}x{self.hidden} {self.heads}h"


def classify(data: Dataset, spec: MLPSpec | ViTSpec, batch_size: int = 64) -> Task:
    """Make a task of classifying images with the cross-entropy loss.

    Args:
        data: images and labels.
        spec: the network.
        batch_size: examples a step; the paper uses 64.

    Returns:
        A `Task` whose metrics are the mean loss and the accuracy on the whole validation split.
    """
    return classifier(f"{spec} {data.name}", spec.module(data.classes), data, batch_size)


def classifier(name: str, module: nn.Module, data: Dataset, batch_size: int) -> Task:
    """The same for any module from images [n h w c] to logits [n classes], such as a `vision.VisionTransformer`."""
    shape = (1, *data.train.images.shape[1:])
    arrays = {"train": data.train, "validation": data.validation}

    def init(key):
        return module.init(key, jnp.zeros(shape))["params"]

    def batch(arrays: dict[str, Split], key: Array):
        return draw(data, arrays["train"], key, batch_size)

    def cross_entropy(params, examples):
        images, labels = examples
        logits = module.apply({"params": params}, images)
        return logits, optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def loss(params, examples):
        return cross_entropy(params, examples)[1]

    def metrics(params, arrays: dict[str, Split]):
        held = arrays["validation"]
        logits, mean = cross_entropy(params, (standardise(data, held.images), held.labels))
        return {"loss": mean, "accuracy": jnp.mean(jnp.argmax(logits, -1) == held.labels)}

    return Task(name, arrays, init, batch, loss, metrics)


def last_layer(name: str, module: nn.Module, params: Params, data: Dataset, batch_size: int) -> Task:
    """Make a task of a model's head alone, on features that are computed once (paper Fig. 4, 16, 17, Tab. 1).

    The same batches, losses and gradients as `regimes.trained_part` with LAST_LAYER has, without its forward pass
    through frozen layers at every step.

    Args:
        name: of the task.
        module: with a width `hidden`, `classes` and a linear "head", such as a `vision.VisionTransformer`.
        params: its frozen parameters; a head among them is left out.
        data: images as large as the module's.
        batch_size: examples a step.

    Returns:
        A `Task` whose parameters are {"head": …}, which begins at zero.
    """
    same = {"kernel": jnp.eye(module.hidden), "bias": jnp.zeros(module.hidden)}
    model = module.clone(classes=module.hidden)  # a head that hands on what it is given
    head = nn.Dense(data.classes, kernel_init=nn.initializers.zeros)

    def features(image: Array) -> Array:
        return model.apply({"params": {**params, "head": same}}, standardise(data, image[None]))[0]

    def seen(part: Split) -> tuple[Array, Array]:
        return jax.jit(lambda images: jax.lax.map(features, images, batch_size=batch_size))(part.images), part.labels

    def batch(arrays: dict, key: Array):
        inputs, labels = arrays["train"]
        i = jax.random.randint(key, (batch_size,), 0, len(labels))
        return inputs[i], labels[i]

    def measure(params: Params, examples: tuple[Array, Array]) -> dict[str, Array]:
        inputs, labels = examples
        logits = head.apply({"params": params["head"]}, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"loss": losses.mean(), "accuracy": jnp.mean(jnp.argmax(logits, -1) == labels)}

    return Task(
        name,
        {"train": seen(data.train), "validation": seen(data.validation)},
        init=lambda key: {"head": head.init(key, jnp.zeros((1, module.hidden)))["params"]},
        batch=batch,
        loss=lambda params, examples: measure(params, examples)["loss"],
        metrics=lambda params, arrays: measure(params, arrays["validation"]),
    )
