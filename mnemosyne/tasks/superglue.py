"""SuperGLUE as text to text (Raffel et al. 2020), and soft prompts for it (paper Fig. 6).

rows = load_rows("rte")
task = prompted(rows, tokenizer, module, prompt=30)
task = trained_part(task, {"model": weights}, SOFT_PROMPT)  # of `regimes`: the prompt is all that is trained
"""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from mnemosyne.tasks.data.images import DataError, paths, verify
from mnemosyne.tasks.data.text import read_text
from mnemosyne.tasks.data.tokens import T5_SPECIAL, checked, special_tokens
from mnemosyne.tasks.files import File
from mnemosyne.tasks.files import read_text as read_file
from mnemosyne.tasks.models.t5 import EncoderDecoder, shift_right
from mnemosyne.types import Data, Params, Scalar, Task

Row = dict[str, Any]


class Labelled(NamedTuple):
    """Texts, each with the number of its label."""

    texts: tuple[str, ...]
    labels: Int[np.ndarray, "n"]


class Rows(NamedTuple):
    """A SuperGLUE task as text to text."""

    name: str
    train: Labelled
    validation: Labelled
    words: tuple[str, ...]  # of each label


class Examples(NamedTuple):
    """Labelled texts as tokens."""

    tokens: Int[Array, "n s"]
    mask: Bool[Array, "n s"]  # False where a token only fills up the text's length
    labels: Int[Array, "n"]


class Kind(NamedTuple):
    """How a row becomes a text."""

    fields: tuple[str, ...]  # written as "field: value", in this order
    words: tuple[Any, ...]  # labels as the rows have them, in their order
    written: tuple[str, ...] = ()  # labels as words; as the rows have them by default


KINDS = {
    "cb": Kind(("hypothesis", "premise"), ("entailment", "contradiction", "neutral")),
    "copa": Kind(("choice1", "choice2", "premise", "question"), (0, 1), ("choice1", "choice2")),
    "rte": Kind(("hypothesis", "premise"), ("entailment", "not_entailment")),
    "wic": Kind(("sentence1", "sentence2", "word"), (False, True)),
}
"""By name: texts as T5's public code writes them."""

NAMES = ("synthetic", *KINDS)


def load_rows(name: str) -> Rows:
    """Load a SuperGLUE task as text to text: "rte hypothesis: … premise: …" → "entailment" or "not_entailment".

    Args:
        name: one of `NAMES`. "synthetic" is no part of SuperGLUE and always there: sentences of `text.grammar` whose
            first article is left out, to be found out again: "synthetic sentence: bold cats chase a dog." → "these",
            or "this" before one.

    Raises:
        DataError: an unknown name, files that are absent or not the published ones, or rows without their fields.
    """
    if name not in NAMES:
        raise DataError(f"unknown SuperGLUE task {name!r}; there are {', '.join(NAMES)}")
    if name == "synthetic":
        return _made_up(*read_text(name))
    verify(name)
    kind = KINDS[name]
    train, validation = (_labelled(name, kind, _read(path)) for path in paths(name))
    return Rows(name, train, validation, words=kind.written or tuple(map(str, kind.words)))


def encode(tokenizer: Tokenizer, part: Labelled, length: int) -> Examples:
    """Turn texts into tokens of one length: the ends of longer ones are lost but for </s>, shorter ones are filled.

    Args:
        tokenizer: T5's.
        part: labelled texts.
        length: tokens of each example, </s> among them.

    Raises:
        ValueError: if the length has no room for </s>.
        DataError: if a text is no text in Unicode.
    """
    tokens, mask = _filled(tokenizer, part.texts, length)
    return Examples(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(part.labels, jnp.int32))


def prompted(
    rows: Rows, tokenizer: Tokenizer, module: EncoderDecoder, prompt: int = 30, length: int = 256, batch_size: int = 32
) -> Task:
    """Make a task of answering in words, with a soft prompt before every text (Lester et al. 2021; paper Fig. 6).

    Args:
        rows: texts and labels.
        tokenizer: T5's.
        module: the model that reads the prompt and the text and writes the label's word.
        prompt: p, vectors of the prompt; the paper has 30, which are 122,880 numbers for T5-XXL.
        length: tokens of each text.
        batch_size: examples a step; the paper uses 32.

    Returns:
        A `Task` whose parameters are {"model": …, "prompt": [p d]}; `regimes.trained_part` leaves the prompt alone.
        A prompt begins uniform in ±½, as Lester et al. do it. The loss is the mean cross-entropy over the word's
        tokens and </s>. Metrics are the loss and the accuracy: which label's word has the highest log-likelihood,
        Σ_t log p(w_t | w_<t, text), </s> included.

    Raises:
        ValueError: if the module's vocabulary is smaller than the tokeniser's.
        DataError: if the tokeniser lacks a token of T5.
    """
    special_tokens(tokenizer, *T5_SPECIAL)
    if module.vocabulary < tokenizer.get_vocab_size():
        raise ValueError(f"the model knows {module.vocabulary} tokens, the tokeniser {tokenizer.get_vocab_size()}")
    longest = max(len(e.ids) for e in tokenizer.encode_batch(list(rows.words)))
    words, real = (jnp.asarray(x) for x in _filled(tokenizer, rows.words, longest))
    train, held = (encode(tokenizer, part, length) for part in (rows.train, rows.validation))

    def init(key: Array) -> Params:
        model, vectors = jax.random.split(key)
        start = jax.random.uniform(vectors, (prompt, module.hidden), minval=-0.5, maxval=0.5)
        return {"model": module.init(model, *module.example())["params"], "prompt": start}

    def batch(data: Data, key: Array) -> Examples:
        i = jax.random.randint(key, (batch_size,), 0, len(data["train"].labels))
        return jax.tree.map(lambda x: x[i], data["train"])

    def likelihoods(params: Params, read: Examples, targets: Int[Array, "n t"]) -> Float[Array, "n t"]:
        """log p of each token of a word."""
        logits = module.apply(
            {"params": params["model"]}, read.tokens, shift_right(targets), read.mask, prompt=params["prompt"]
        )
        return jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]

    def loss(params: Params, read: Examples) -> Scalar:
        return -jnp.mean(likelihoods(params, read, words[read.labels]), where=real[read.labels])

    def metrics(params: Params, data: Data) -> dict[str, Scalar]:
        def each(row: Examples) -> tuple[Array, Array]:
            read = jax.tree.map(lambda x: x[None], row)
            # The encoder sees one text and runs once for all words.
            score = jax.vmap(lambda word: likelihoods(params, read, word[None])[0])(words)
            right = jnp.argmax(jnp.sum(score, axis=1, where=real)) == row.labels
            return jnp.sum(-score[row.labels], where=real[row.labels]), right

        losses, right = jax.lax.map(each, data["held"], batch_size=batch_size)
        return {"loss": losses.sum() / real[data["held"].labels].sum(), "accuracy": right.mean()}

    name = f"prompt {prompt} t5 {module.layers}x{module.hidden} {rows.name}"
    return Task(name, {"train": train, "held": held}, init, batch, loss, metrics)


def _filled(tokenizer: Tokenizer, texts: tuple[str, ...], length: int) -> tuple[np.ndarray, np.ndarray]:
    pad, end = special_tokens(tokenizer, "<pad>", "</s>")
    if length < 1:
        raise ValueError(f"a length of {length} tokens has no room for </s>: ask for one at least")
    tokens = np.full((len(texts), length), pad, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, encoded in enumerate(tokenizer.encode_batch([checked(text) for text in texts])):
        kept = [*encoded.ids[:-1][: length - 1], end]
        tokens[i, : len(kept)], mask[i, : len(kept)] = kept, True
    return tokens, mask


def _made_up(*texts: str) -> Rows:
    parts = []
    for text in texts:
        sentences = [line.split(maxsplit=1) for line in text.splitlines()[:-1]]  # the last one may be cut
        labels = np.array([article in ("these", "some") for article, _ in sentences], np.int32)
        parts.append(Labelled(tuple(f"synthetic sentence: {rest}" for _, rest in sentences), labels))
    return Rows("synthetic", *parts, words=("this", "these"))


def _labelled(name: str, kind: Kind, rows: list[Row]) -> Labelled:
    try:
        written = [" ".join(f"{field}: {row[field]}" for field in kind.fields) for row in rows]
        labels = [kind.words.index(row["label"]) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"a row of {name} has no {', '.join(kind.fields)} and label as it should: {error!r}") from error
    return Labelled(tuple(f"{name} {text}" for text in written), np.array(labels, np.int32))


def _read(path: File) -> list[Row]:
    """A row a line; JSON strings may hold all separators but the line's end."""
    rows = []
    for number, line in enumerate(read_file(path).split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise DataError(f"line {number} of {path} is no row in JSON: {error}") from error
    return rows
