"""Pre-training on text: masked tokens as public BERT has them, corrupted spans as public T5 has them (paper §5).

train, validation = (stream(tokenizer, part) for part in read_text("gutenberg"))
bert = masked_lm(module, tokenizer, train, validation, length=128, batch_size=32)
t5 = span_corruption(module, tokenizer, train, validation, length=512, batch_size=32)

Examples are cut from one long row of tokens at random places and corrupted anew each time, in the compiled program, so
that a task's data are the row alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from mnemosyne.tasks.data.tokens import BERT_SPECIAL, SENTINEL, special_tokens
from mnemosyne.tasks.models.bert import Bert
from mnemosyne.tasks.models.t5 import EncoderDecoder, shift_right
from mnemosyne.types import Batch, Data, Params, Scalar, Task

HELD_OUT = 8
"""Batches that metrics are measured on."""


class Masked(NamedTuple):
    """What BERT reads and what it should have read."""

    tokens: Int[Array, "*n t"]
    targets: Int[Array, "*n t"]
    chosen: Bool[Array, "*n t"]  # where the loss is taken


class Corrupted(NamedTuple):
    """What T5 reads and what it should write."""

    tokens: Int[Array, "*n s"]
    targets: Int[Array, "*n t"]


class Pieces(NamedTuple):
    """What masking must know of a vocabulary."""

    size: int
    mask: int  # the token [MASK]
    spared: tuple[int, ...]  # tokens that are never chosen


class Spans(NamedTuple):
    """Lengths of an example of span corruption; all follow from the first three."""

    length: int  # tokens that are cut from the text
    density: float = 0.15  # share of them that is corrupted
    mean: float = 3.0  # tokens in a span

    @property
    def corrupted(self) -> int:
        """Tokens that are replaced."""
        return min(max(round(self.length * self.density), 1), self.length - 1)

    @property
    def number(self) -> int:
        """Spans, of corrupted and of other tokens alike."""
        return min(max(round(self.corrupted / self.mean), 1), self.length - self.corrupted)

    @property
    def inputs(self) -> int:
        """Tokens T5 reads: what is left, a sentinel a span, </s>."""
        return self.length - self.corrupted + self.number + 1

    @property
    def targets(self) -> int:
        """Tokens T5 writes: what was replaced, a sentinel a span, </s>."""
        return self.corrupted + self.number + 1


def mask_tokens(key: Array, tokens: Int[Array, "t"], pieces: Pieces, rate: float = 0.15) -> Masked:
    """Choose tokens and hide most of them: 80% become [MASK], 10% any piece, 10% stay (Devlin et al. 2019, §3.1).

    Args:
        key: of the draws.
        tokens: one text; of its n tokens max(1, round(rate · n)) are chosen, no more than there are to choose from.
        pieces: the vocabulary.
        rate: share that is chosen, the special tokens counted in, as in the public code.

    Returns:
        The text as BERT reads it, as it was, and where tokens were chosen.
    """
    which, how, what = jax.random.split(key, 3)
    free = ~jnp.isin(tokens, jnp.array(pieces.spared, tokens.dtype))
    place = jnp.argsort(jnp.argsort(jnp.where(free, jax.random.uniform(which, tokens.shape), 2.0)))
    chosen = free & (place < max(1, round(rate * len(tokens))))
    fate = jax.random.uniform(how, tokens.shape)
    other = jax.random.randint(what, tokens.shape, 0, pieces.size, tokens.dtype)
    hidden = jnp.where(fate < 0.8, pieces.mask, jnp.where(fate < 0.9, other, tokens))
    return Masked(jnp.where(chosen, hidden, tokens), tokens, chosen)


def spans_for(inputs: int, density: float = 0.15, mean: float = 3.0) -> Spans:
    """The longest cut of a text that becomes at most `inputs` tokens to read, so that nothing is filled up.

    Raises:
        ValueError: if `inputs` is too small for any.
    """
    if inputs < 3:
        raise ValueError(f"{inputs} tokens have no room for a word, a sentinel and </s>: give at least 3")
    spans = Spans(2, density, mean)
    while spans._replace(length=spans.length + 1).inputs <= inputs:
        spans = spans._replace(length=spans.length + 1)
    return spans


def random_spans(key: Array, spans: Spans) -> Bool[Array, "length"]:
    """Choose which tokens are corrupted: spans of random lengths, the first one not corrupted.

    The corrupted tokens are cut into `spans.number` parts and the others into as many, each way of cutting being
    equally probable, and the parts are laid in turns (Raffel et al. 2020, §3.1.4; the public code).
    """
    lengths = [
        _parts(k, n, spans.number)
        for k, n in zip(jax.random.split(key), (spans.length - spans.corrupted, spans.corrupted), strict=True)
    ]
    ends = jnp.cumsum(jnp.stack(lengths, axis=1).reshape(-1))
    return jnp.searchsorted(ends, jnp.arange(spans.length), side="right") % 2 == 1


def corrupt(key: Array, tokens: Int[Array, "length"], spans: Spans, sentinel: int, end: int) -> Corrupted:
    """Replace spans by sentinels, and write what they were (Raffel et al. 2020, Fig. 2).

        Thank you <X> me to your party <Y> week </s>   →   <X> for inviting <Y> last </s>

    Args:
        key: of the draws.
        tokens: one text of `spans.length` tokens.
        spans: how much is replaced.
        sentinel: the first sentinel, the others follow downwards.
        end: the token </s>.

    Returns:
        `spans.inputs` tokens to read and `spans.targets` to write, always.
    """
    noise = random_spans(key, spans)
    read = _with_sentinels(tokens, noise, spans.inputs - 1, sentinel)
    write = _with_sentinels(tokens, ~noise, spans.targets - 1, sentinel)
    return Corrupted(*(jnp.append(x, jnp.asarray(end, x.dtype)) for x in (read, write)))


def masked_lm(
    module: Bert,
    tokenizer: Tokenizer,
    train: Int[np.ndarray, "n"],
    validation: Int[np.ndarray, "m"],
    length: int = 128,
    batch_size: int = 32,
) -> Task:
    """Make a task of foretelling masked tokens (paper Fig. 7, Tab. 3).

    Args:
        module: of the tokeniser's vocabulary or a larger one.
        tokenizer: with BERT's special tokens.
        train: one row of tokens, as `tokens.stream` makes it.
        validation: the same for the metrics, which are measured on 8 batches that stay the same.
        length: of an example: [CLS], a stretch of the row, [SEP].
        batch_size: examples a step; the paper uses 512.

    Returns:
        A `Task` whose loss is the mean cross-entropy over chosen tokens. The public code also asks whether one
        sentence follows another, and masks each text in ten ways once for all; here every draw is masked anew.

    Raises:
        ValueError: if the module's vocabulary is smaller, or a row shorter than an example.
    """
    pad, _, cls, sep, mask = special_tokens(tokenizer, *BERT_SPECIAL)
    pieces = Pieces(tokenizer.get_vocab_size(), mask, (pad, cls, sep, mask))
    _check_vocabulary(module.vocabulary, pieces.size)

    def example(key: Array, cut: Int[Array, "k"]) -> Masked:
        framed = jnp.concatenate([jnp.array([cls], cut.dtype), cut, jnp.array([sep], cut.dtype)])
        return mask_tokens(key, framed, pieces)

    def measure(params: Params, batch: Masked) -> dict[str, Scalar]:
        logits = module.apply({"params": params}, batch.tokens)
        return _cross_entropy(logits, batch.targets, batch.chosen)

    sizes = (length - 2, batch_size)
    return _task(f"bert {module.layers}x{module.hidden}", module, (train, validation), sizes, example, measure)


def span_corruption(
    module: EncoderDecoder,
    tokenizer: Tokenizer,
    train: Int[np.ndarray, "n"],
    validation: Int[np.ndarray, "m"],
    length: int = 128,
    batch_size: int = 32,
) -> Task:
    """Make a task of writing what corrupted spans were: T5's pre-training.

    Args:
        module: of the tokeniser's vocabulary or a larger one.
        tokenizer: with </s> and as many sentinels as an example has spans.
        train: one row of tokens, as `tokens.stream` makes it.
        validation: the same for the metrics, which are measured on 8 batches that stay the same.
        length: tokens to read; the public models were given 512.
        batch_size: examples a step.

    Returns:
        A `Task` whose loss is the mean cross-entropy over the tokens to write. Nothing is filled up.

    Raises:
        ValueError: if the module's vocabulary is smaller, or a row shorter than an example.
        DataError: if the tokeniser lacks a token.
    """
    spans = spans_for(length)
    end, *sentinels = special_tokens(tokenizer, "</s>", *(SENTINEL.format(i) for i in range(spans.number)))
    _check_vocabulary(module.vocabulary, tokenizer.get_vocab_size())
    if sentinels != list(range(sentinels[0], sentinels[0] - spans.number, -1)):
        raise ValueError(f"sentinels must have descending numbers, these have {sentinels}")

    def example(key: Array, cut: Int[Array, "k"]) -> Corrupted:
        return corrupt(key, cut, spans, sentinels[0], end)

    def measure(params: Params, batch: Corrupted) -> dict[str, Scalar]:
        logits = module.apply({"params": params}, batch.tokens, shift_right(batch.targets))
        return _cross_entropy(logits, batch.targets, jnp.ones(batch.targets.shape, bool))

    sizes = (spans.length, batch_size)
    return _task(f"t5 {module.layers}x{module.hidden}", module, (train, validation), sizes, example, measure)


def _task(
    name: str,
    module: Bert | EncoderDecoder,
    rows: tuple[np.ndarray, np.ndarray],
    sizes: tuple[int, int],
    example: Callable[[Array, Array], Batch],
    measure: Callable[[Params, Batch], dict[str, Scalar]],
) -> Task:
    cut, batch_size = sizes
    for row in rows:
        if len(row) < cut:
            raise ValueError(f"a text of {len(row)} tokens has no example of {cut}: give a longer one")

    def draw(row: Int[Array, "n"], key: Array) -> Batch:
        where, *how = jax.random.split(key, 1 + batch_size)
        starts = jax.random.randint(where, (batch_size,), 0, len(row) - cut + 1)
        return jax.vmap(example)(jnp.stack(how), row[starts[:, None] + jnp.arange(cut)[None]])

    def metrics(params: Params, data: Data) -> dict[str, Scalar]:
        return jax.tree.map(jnp.mean, jax.lax.map(lambda batch: measure(params, batch), data["held"]))

    train, validation = (jnp.asarray(row, jnp.int32) for row in rows)
    held = jax.jit(lambda keys: jax.lax.map(lambda key: draw(validation, key), keys))
    return Task(
        name,
        data={"train": train, "held": held(jax.random.split(jax.random.key(0), HELD_OUT))},
        init=lambda key: module.init(key, *module.example())["params"],
        batch=lambda data, key: draw(data["train"], key),
        loss=lambda params, batch: measure(params, batch)["loss"],
        metrics=metrics,
    )


def _check_vocabulary(model: int, tokenizer: int) -> None:
    if model < tokenizer:
        raise ValueError(f"the model knows {model} tokens, the tokeniser {tokenizer}: clone(vocabulary={tokenizer})")


def _cross_entropy(
    logits: Float[Array, "n t v"], targets: Int[Array, "n t"], where: Bool[Array, "n t"]
) -> dict[str, Scalar]:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = jnp.argmax(logits, axis=-1) == targets
    return {"loss": jnp.mean(losses, where=where), "accuracy": jnp.mean(right, where=where)}


def _parts(key: Array, items: int, number: int) -> Int[Array, "number"]:
    """Cut items into so many parts, none of them empty."""
    first = jax.random.permutation(key, jnp.arange(items - 1) < number - 1)
    part = jnp.cumsum(jnp.pad(first, (1, 0)).astype(jnp.int32))
    return jnp.bincount(part, length=number)


def _with_sentinels(tokens: Array, replaced: Array, size: int, sentinel: int) -> Array:
    """Put one sentinel in the place of each span that is replaced; `size` tokens come out."""
    first = replaced & ~jnp.pad(replaced[:-1], (1, 0))
    marked = jnp.where(first, sentinel + 1 - jnp.cumsum(first), tokens)
    return marked[jnp.nonzero(first | ~replaced, size=size)[0]]
