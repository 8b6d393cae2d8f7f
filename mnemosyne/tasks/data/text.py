"""Text as characters: a grammar's sentences, Shakespeare, Wikipedia, books.

grammar = load_text("synthetic")       # made in memory, always there
plays = load_text("shakespeare")       # from the original file; an error says how to get it
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mnemosyne.tasks.data.images import DataError, paths, verify
from mnemosyne.tasks.data.sources import SOURCES
from mnemosyne.tasks.files import read_text as read_file

TEXTS = ("synthetic", "shakespeare", "wikitext2", "gutenberg")
OTHER = "\N{REPLACEMENT CHARACTER}"
"""Stands for every character outside the vocabulary."""


class Text(NamedTuple):
    """Characters by number, in two parts."""

    name: str
    train: Int[np.ndarray, "n"]  # int32, below `vocabulary`
    validation: Int[np.ndarray, "m"]
    symbols: str  # the character of each number

    @property
    def vocabulary(self) -> int:
        """How many different characters there are."""
        return len(self.symbols)

    def decode(self, tokens: Int[np.ndarray, "k"]) -> str:
        """Turn numbers into characters again."""
        return "".join(self.symbols[i] for i in tokens)


def load_text(name: str) -> Text:
    """Load a text as numbers of characters.

    Args:
        name: one of `TEXTS`. "synthetic": 50,000 characters of a small grammar, the same each time. "shakespeare":
            65 characters, the last tenth is for validation. "wikitext2": its validation part to train on, its test
            part for validation, in lower case, the 63 most frequent characters and one for all others. "gutenberg":
            17 books, the last half million characters for validation, the 127 most frequent characters and one for
            all others.

    Returns:
        A `Text` whose numbers follow the order of the characters' code points.

    Raises:
        DataError: an unknown name, or originals that are absent or damaged. Never waits for a network.
    """
    train, validation = read_text(name)
    if name == "wikitext2":
        return _text(name, train.lower(), validation.lower(), limit=64)
    return _text(name, train, validation)


def read_text(name: str) -> tuple[str, str]:
    """Read a text as it is, to train on and for validation: what pieces of words are learnt from.

    Args:
        name: one of `TEXTS`, cut in two as `load_text` says.

    Raises:
        DataError: as `load_text`.
    """
    if name == "synthetic":
        written = grammar(50_000)
        return written[:45_000], written[45_000:]
    if name not in TEXTS:
        raise DataError(f"unknown text {name!r}; there are {', '.join(TEXTS)}")
    verify(name)
    parts = [read_file(path) for path in paths(name)]
    if len(parts) == 2:
        return parts[0], parts[1]
    kept = len(parts[0]) - SOURCES[name].held_back
    return parts[0][:kept], parts[0][kept:]


NOUNS = ("cat", "dog", "bird", "horse", "queen", "sailor", "crow", "boy")
ADJECTIVES = ("bold", "small", "quick", "green", "brave")
VERBS = ("see", "chase", "follow", "greet", "know", "fear")


def grammar(characters: int, seed: int = 0) -> str:
    """Write sentences of a small grammar in which number agrees: "these bold cats chase a dog."

    A sentence is a subject, a verb that agrees with it and, nine times in ten, an object. Articles tell singular
    from plural, so much of each word can be foretold from those before it.

    Args:
        characters: how many to write; the last sentence may be cut.
        seed: of the draws.

    Returns:
        Text of lower-case letters, spaces, full stops and line ends.
    """
    rng, text, size = np.random.default_rng(seed), [], 0

    def phrase(plural: bool) -> str:
        article = ("some" if plural else "a") if rng.random() < 0.5 else ("these" if plural else "this")
        adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.4 else ""
        return f"{article} {adjective}{rng.choice(NOUNS)}{'s' if plural else ''}"

    while size < characters:
        plural = rng.random() < 0.5
        sentence = f"{phrase(plural)} {rng.choice(VERBS)}{'' if plural else 's'}"
        sentence += f" {phrase(rng.random() < 0.5)}" if rng.random() < 0.9 else ""
        text.append(sentence + ".\n")
        size += len(text[-1])
    return "".join(text)[:characters]


def _text(name: str, train: str, validation: str, limit: int = 128) -> Text:
    seen, counts = np.unique(_points(train), return_counts=True)
    if len(seen) > limit:
        seen = np.sort(seen[np.argsort(-counts, kind="stable")[: limit - 1]])
    parts = [_numbers(seen, _points(part)) for part in (train, validation)]
    others = any(len(seen) in part for part in parts)
    return Text(name, *parts, symbols="".join(map(chr, seen)) + (OTHER if others else ""))


def _numbers(seen: np.ndarray, points: np.ndarray) -> np.ndarray:
    places = np.minimum(np.searchsorted(seen, points), len(seen) - 1)
    return np.where(seen[places] == points, places, len(seen)).astype(np.int32)


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
