"""Tasks of many kinds: images, text, regression, badly scaled problems; each cheap enough to train by the dozen."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mnemosyne.tasks.classification import ViTSpec, classify
from mnemosyne.tasks.data.images import Dataset, draw, pool, standardise
from mnemosyne.tasks.data.text import Text
from mnemosyne.tasks.models.networks import Attentive, Convolutional, Pooled, Recurrent, Stack
from mnemosyne.tasks.models.residual import Residual
from mnemosyne.types import Data, Scalar, Task

HELD_OUT = 1_000
"""Examples that metrics are measured on, at most."""

ACTIVATIONS: dict[str, Callable] = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "elu": nn.elu,
    "sigmoid": nn.sigmoid,
}


def small(images: Dataset, side: int) -> Dataset:
    """Pool square images as far as their side stays at least `side`, and keep `HELD_OUT` for validation."""
    pixels = images.train.images.shape[1]
    factor = max(f for f in range(1, pixels + 1) if pixels % f == 0 and (f == 1 or pixels // f >= side))
    held = images.validation._replace(
        images=images.validation.images[:HELD_OUT], labels=images.validation.labels[:HELD_OUT]
    )
    images = images._replace(validation=held)
    return pool(images, factor) if factor > 1 else images


def mlp(images: Dataset, hidden: tuple[int, ...], activation: str, batch_size: int = 64) -> Task:
    """Classify images by fully connected layers; no hidden layer makes it logistic regression.

    Args:
        images: as large as the network should see them.
        hidden: units per hidden layer, LeCun-initialised and without skip connections at any depth.
        activation: a key of `ACTIVATIONS`.
        batch_size: examples a step.
    """
    network = Stack(hidden, ACTIVATIONS[activation], images.classes)
    name = f"mlp {_sizes(hidden)} {activation}" if hidden else "logistic regression"
    return classifier(_batched(name, batch_size), network, images, batch_size)


def by_heart(images: Dataset, examples: int, hidden: tuple[int, ...], activation: str, batch_size: int = 64) -> Task:
    """Classify so few images that all are soon known by heart; in one batch of fifty a single one is repeated.

    Gradients shrink to nothing and agree, which invites large steps, until a batch comes that is unlike the others.
    """
    part = images.train._replace(images=images.train.images[:examples], labels=images.train.labels[:examples])
    few = mlp(images._replace(train=part), hidden, activation, batch_size)

    def batch(data, key):
        whether, key = jax.random.split(key)
        inputs, labels = few.batch(data, key)
        same = jnp.where(jax.random.bernoulli(whether, 0.02), 0, jnp.arange(batch_size))
        return inputs[same], labels[same]

    return few._replace(name=f"{few.name}, {examples} by heart", batch=batch)


def conv(images: Dataset, channels: tuple[int, ...], activation: str, batch_size: int = 64) -> Task:
    """Classify images by 3×3 convolutions of stride 2 and a linear layer."""
    network = Convolutional(channels, ACTIVATIONS[activation], images.classes)
    return classifier(_batched(f"conv {_sizes(channels)}", batch_size), network, images, batch_size)


def pooled_conv(images: Dataset, channels: tuple[int, ...], strides: tuple[int, ...], batch_size: int = 128) -> Task:
    """Classify images by 3×3 convolutions and the mean over places; channels 32-64-64, strides 2-1-1 in Metz et al."""
    network = Pooled(channels, strides, images.classes)
    name = f"conv {_sizes(channels)}, strides {_sizes(strides)}"
    return classifier(_batched(name, batch_size), network, images, batch_size)


def residual(
    images: Dataset,
    blocks: tuple[int, ...],
    bottleneck: bool = False,
    width: int = 64,
    batch_size: int = 64,
    conv: Callable[..., nn.Module] = nn.Conv,
) -> Task:
    """Classify images by a residual network: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) with bottlenecks ResNet-50."""
    layers = 2 + sum(blocks) * (3 if bottleneck else 2)
    network = Residual(blocks, bottleneck, images.classes, width, conv)
    name = f"resnet {layers}" if width == 64 else f"resnet {layers}, width {width}"
    return classifier(_batched(name, batch_size), network, images, batch_size)


def vit(images: Dataset, layers: int, heads: int, hidden: int, head_dim: int, mlp: int, batch_size: int = 64) -> Task:
    """Classify images by a Vision Transformer that cuts each into 4×4 patches.

    Raises:
        ValueError: if 4 does not divide the images' side.
    """
    side = images.train.images.shape[1]
    if side % 4:
        raise ValueError(f"4×4 patches do not tile images of side {side}; pool them to a multiple of 4")
    spec = ViTSpec(layers, heads, hidden, head_dim, mlp, patch=side // 4)
    return classify(images, spec, batch_size)._replace(name=_batched(str(spec), batch_size))


def autoencoder(images: Dataset, hidden: tuple[int, ...], activation: str, batch_size: int = 64) -> Task:
    """Reproduce standardised images through a narrow layer, with the squared error."""
    network = Stack(hidden, ACTIVATIONS[activation], images.train.images[0].size)

    def sample(part, key):
        return _with_itself(draw(images, part, key, batch_size)[0])

    held = _with_itself(standardise(images, images.validation.images))
    name = _batched(f"autoencoder {'-'.join(map(str, hidden))}", batch_size)
    return task_of(name, network, images.train, sample, held, squared_error)


def recurrent(text: Text, hidden: int, embedding: int, length: int = 32, batch_size: int = 16) -> Task:
    """Foretell the next character with a gated recurrent unit, over stretches of `length` characters."""
    network = Recurrent(text.vocabulary, embedding, hidden)
    return language(_batched(f"gru lm {hidden}", batch_size, 16), network, text, length, batch_size)


def attentive(
    text: Text, layers: int, heads: int, hidden: int, mlp: int, length: int = 32, batch_size: int = 16
) -> Task:
    """Foretell the next character with a causal Transformer, over stretches of `length` characters."""
    network = Attentive(text.vocabulary, layers, heads, hidden, mlp)
    name = _batched(f"attention lm {layers}x{hidden}", batch_size, 16)
    return language(name, network, text, length, batch_size)


def regression(
    inputs: int, hidden: tuple[int, ...], activation: str, noise: float = 0.1, batch_size: int = 64, seed: int = 0
) -> Task:
    """Imitate a fixed random network of one hidden layer of tanh units, seen through noise.

    Args:
        inputs: standard normal numbers per example.
        hidden: the learner's units per hidden layer.
        activation: the learner's, a key of `ACTIVATIONS`.
        noise: standard deviation on targets of variance about 1; its square is the lowest expected loss.
        batch_size: examples a step.
        seed: of the teacher and its 5,000 examples.
    """
    x, y = teacher(inputs, noise, seed)
    network = Stack(hidden, ACTIVATIONS[activation], 4)
    return tabular(_batched(f"regression {_sizes(hidden)} {activation}", batch_size), network, x, y, batch_size)


def teacher(inputs: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """5,000 examples of what `regression` says: (inputs, targets)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5_000, inputs))
    first, second = rng.normal(size=(inputs, 32)) / inputs**0.5, rng.normal(size=(32, 4)) / 32**0.5
    return x, np.tanh(2.0 * x @ first) @ second * 1.4 + noise * rng.normal(size=(5_000, 4))


def diabetes(hidden: tuple[int, ...], activation: str, batch_size: int = 64) -> Task:
    """Foretell the progress of diabetes from ten numbers (scikit-learn's 442 patients), standardised."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = ((a - a.mean(axis=0)) / a.std(axis=0) for a in (x[order], y[order, None]))
    network = Stack(hidden, ACTIVATIONS[activation], 1)
    return tabular(_batched(f"diabetes {_sizes(hidden)}", batch_size), network, x, y, batch_size)


def ill_conditioned(
    condition: float = 1e4, inputs: int = 32, outputs: int = 10, batch_size: int = 64, seed: int = 0
) -> Task:
    """Fit a linear map whose Hessian has eigenvalues from 1 down to 1 / `condition`, from noisy batches.

    Inputs are x = Q Λ^½ z with Q a random rotation, so that no coordinate is an eigenvector. Directions of small
    curvature λ need larger weights, in proportion λ^−¼; without them the loss stays above its noise of 0.01.
    """
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(inputs, inputs)))[0]
    eigenvalues = np.logspace(0, -np.log10(condition), inputs)
    z = rng.normal(size=(5_000, inputs))
    y = (z * eigenvalues**0.25) @ rng.normal(size=(inputs, outputs)) + 0.1 * rng.normal(size=(5_000, outputs))
    x = (z * eigenvalues**0.5) @ rotation.T
    name = _batched(f"ill-conditioned {_power(condition)}", batch_size)
    return tabular(name, Stack((), nn.relu, outputs), x, y, batch_size)


def scaled(task: Task, factor: float) -> Task:
    """Multiply a task's loss, its gradients and its `loss` metric by a factor."""

    def loss(params, examples):
        return factor * task.loss(params, examples)

    def metrics(params, data):
        measured = task.metrics(params, data)
        return measured | {"loss": factor * measured["loss"]}

    return task._replace(name=f"{task.name} loss×{_power(factor)}", loss=loss, metrics=metrics)


def reparametrised(task: Task, factor: float) -> Task:
    """Store every tensor of two or more axes multiplied by a factor; the network sees it divided again.

    The functions that can be represented stay the same; the best step of these tensors is multiplied by the factor,
    that of biases stays.
    """

    def units(params, by: float):
        return jax.tree.map(lambda p: by * p if p.ndim > 1 else p, params)

    return task._replace(
        name=f"{task.name} weights×{_power(factor)}",
        init=lambda key: units(task.init(key), factor),
        loss=lambda params, examples: task.loss(units(params, 1.0 / factor), examples),
        metrics=lambda params, data: task.metrics(units(params, 1.0 / factor), data),
    )


def cross_entropy(logits: Float[Array, "*n classes"], labels: Int[Array, "*n"]) -> dict[str, Scalar]:
    """Mean cross-entropy, and how often the most probable class is the right one."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return {"loss": loss, "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == labels)}


def squared_error(outputs: Float[Array, "n d"], targets: Float[Array, "n d"]) -> dict[str, Scalar]:
    """Mean squared error over examples and outputs."""
    return {"loss": jnp.mean((outputs - targets) ** 2)}


def task_of(name: str, network: nn.Module, train: Data, sample: Callable, held: tuple, measure: Callable) -> Task:
    """A network with `sample` (train, key) → (inputs, targets) and `measure` (outputs, targets) → metrics."""
    shape, dtype = (1, *held[0].shape[1:]), held[0].dtype

    def measured(params, examples):
        inputs, targets = examples
        return measure(network.apply({"params": params}, inputs), targets)

    return Task(
        name,
        data={"train": train, "held": held},
        init=lambda key: network.init(key, jnp.zeros(shape, dtype))["params"],
        batch=lambda data, key: sample(data["train"], key),
        loss=lambda params, examples: measured(params, examples)["loss"],
        metrics=lambda params, data: measured(params, data["held"]),
    )


def classifier(name: str, network: nn.Module, images: Dataset, batch_size: int) -> Task:
    """Classify standardised images."""
    held = (standardise(images, images.validation.images), images.validation.labels)
    return task_of(
        name, network, images.train, lambda part, key: draw(images, part, key, batch_size), held, cross_entropy
    )


def language(name: str, network: nn.Module, text: Text, length: int, batch_size: int) -> Task:
    """Foretell each next character of stretches of text."""
    stretches = min(256, (len(text.validation) - 1) // length)

    def cut(tokens: Array, starts: Array) -> tuple[Array, Array]:
        stretch = tokens[starts[:, None] + jnp.arange(length + 1)[None]]
        return stretch[:, :-1], stretch[:, 1:]

    def sample(tokens, key):
        return cut(tokens, jax.random.randint(key, (batch_size,), 0, len(tokens) - length))

    held = cut(jnp.asarray(text.validation), length * jnp.arange(stretches))
    return task_of(name, network, jnp.asarray(text.train), sample, held, cross_entropy)


def tabular(
    name: str, network: nn.Module, x: np.ndarray, y: np.ndarray, batch_size: int, measure: Callable = squared_error
) -> Task:
    """Learn y from x, rows of numbers; the first quarter of them, or `HELD_OUT`, is kept for validation."""
    held = min(HELD_OUT, len(x) // 4)
    x, y = (jnp.asarray(a, jnp.float32 if a.dtype.kind == "f" else jnp.int32) for a in (x, y))
    train, validation = (x[held:], y[held:]), (x[:held], y[:held])

    def sample(part, key):
        i = jax.random.randint(key, (batch_size,), 0, part[0].shape[0])
        return part[0][i], part[1][i]

    return task_of(name, network, train, sample, validation, measure)


def _with_itself(images: Array) -> tuple[Array, Array]:
    return images, images.reshape(images.shape[0], -1)


def _sizes(widths: tuple[int, ...]) -> str:
    if len(widths) > 2 and len(set(widths)) == 1:
        return f"{len(widths)}×{widths[0]}"
    return "+".join(map(str, widths))


def _batched(name: str, batch_size: int, usual: int = 64) -> str:
    return name if batch_size == usual else f"{name} batch {batch_size}"


def _power(factor: float) -> str:
    mantissa, exponent = f"{factor:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if abs(int(exponent)) > 2 else f"{factor:g}"
