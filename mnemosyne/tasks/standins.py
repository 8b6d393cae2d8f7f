"""Small models pre-trained here, in the place of public ones that nothing downloads (paper Fig. 4–9, 16, 17).

fashion = vit(load("fashion_mnist"), size=(4, 64), patch=7)
params, measured = pretrain(fashion.task, steps=3_000, seed=0)       # `chapter.Run.pretrain` keeps them
books = t5("gutenberg", size=(4, 64))
task = prompted(load_rows("cb"), books.tokenizer, books.module)      # see `regimes.trained_part`
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from tokenizers import Tokenizer

from mnemosyne.inner import inner_step
from mnemosyne.tasks.classification import classifier
from mnemosyne.tasks.data.images import Dataset
from mnemosyne.tasks.data.text import read_text
from mnemosyne.tasks.data.tokens import BERT_SPECIAL, T5_SPECIAL, stream, with_sentinels, wordpiece
from mnemosyne.tasks.denoising import masked_lm, span_corruption
from mnemosyne.tasks.models.bert import Bert
from mnemosyne.tasks.models.t5 import EncoderDecoder
from mnemosyne.tasks.models.vision import VisionTransformer
from mnemosyne.types import Data, Params, Scalar, Task

Size = tuple[int, int]  # layers, width
HEADS = 4

VOCABULARY = 2_000
"""Pieces of words, where the text has so many."""

RATE = 1e-3
"""Adam's largest learning rate; it rises over a tenth of the steps and falls to zero by a cosine."""


class Standin(NamedTuple):
    """A small model and what it is pre-trained on."""

    module: nn.Module
    task: Task
    tokenizer: Tokenizer | None = None


def vit(images: Dataset, size: Size, patch: int, batch_size: int = 128) -> Standin:
    """Make a small ViT that classifies images as large as they are.

    Args:
        images: to pre-train on.
        size: layers and width; the paper's have 12 × 768 and more.
        patch: side of a patch in pixels; it must divide the images'.
        batch_size: images a step.
    """
    side = images.train.images.shape[1]
    module = VisionTransformer(*_sizes(size), patch=patch, side=side, classes=images.classes)
    return Standin(module, classifier(f"{described(module)} {images.name}", module, images, batch_size))


def bert(text: str, size: Size, length: int = 32, batch_size: int = 32) -> Standin:
    """Make a small BERT that foretells masked pieces of words, which are learnt from its text.

    Args:
        text: a name that `text.read_text` knows.
        size: layers and width; BERT-base has 12 × 768.
        length: tokens of an example; the public one was given 128 and 512.
        batch_size: examples a step.
    """
    train, validation = read_text(text)
    tokenizer = wordpiece(train.splitlines(), VOCABULARY, BERT_SPECIAL)
    module = Bert(*_sizes(size), vocabulary=tokenizer.get_vocab_size(), length=length)
    rows = (stream(tokenizer, part) for part in (train, validation))
    return Standin(module, _named(masked_lm(module, tokenizer, *rows, length, batch_size), text), tokenizer)


def t5(text: str, size: Size, length: int = 64, batch_size: int = 32) -> Standin:
    """Make a small T5 that writes corrupted spans of its text, with half of the layers in encoder and decoder each.

    Args:
        text: a name that `text.read_text` knows.
        size: layers of both together, of which an odd one is left out, and width; T5-XXL has 48 × 4,096.
        length: tokens of an example; the public ones were given 512.
        batch_size: examples a step.
    """
    train, validation = read_text(text)
    tokenizer = with_sentinels(wordpiece(train.splitlines(), VOCABULARY, T5_SPECIAL))
    layers, heads, hidden, mlp_dim = _sizes(size)
    vocabulary = tokenizer.get_vocab_size()
    module = EncoderDecoder(layers // 2, heads, hidden // heads, hidden, mlp_dim, vocabulary=vocabulary)
    rows = (stream(tokenizer, part) for part in (train, validation))
    return Standin(module, _named(span_corruption(module, tokenizer, *rows, length, batch_size), text), tokenizer)


def described(module: VisionTransformer) -> str:
    """'vit 4x64 patch 7'."""
    return f"vit {module.layers}x{module.hidden} patch {module.patch}"


def pretrain(task: Task, steps: int, seed: int) -> tuple[Params, dict[str, Scalar]]:
    """Train a task once by Adam with a schedule, in one compiled program, and keep the parameters.

    Args:
        task: of a `Standin`.
        steps: training steps.
        seed: of the initialisation and the batches.

    Returns:
        The parameters, and the task's metrics with them.
    """
    return jax.jit(pretraining(task, steps))(jax.random.key(seed), task.data)


def pretraining(task: Task, steps: int) -> Callable[[Array, Data], tuple[Params, dict[str, Scalar]]]:
    """Make the program of `pretrain`: (key, data) → (parameters, metrics)."""
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 10, steps))

    def run(key: Array, data: Data) -> tuple[Params, dict[str, Scalar]]:
        init_key, batch_key = jax.random.split(key)

        def step(carry, t):
            return inner_step(task, tx, carry, task.batch(data, jax.random.fold_in(batch_key, t)))[0], None

        params = task.init(init_key)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
        return params, task.metrics(params, data)

    return run


def _sizes(size: Size) -> tuple[int, int, int, int]:
    """Layers, heads, width, units behind each attention."""
    layers, hidden = size
    return layers, HEADS, hidden, 4 * hidden


def _named(task: Task, text: str) -> Task:
    return task._replace(name=f"{task.name} {text}")
