"""Text as pieces of words: a WordPiece vocabulary learnt from a text, or a file that others have learnt.

bert = wordpiece(lines, size=2_000)  # [CLS] text [SEP]
t5 = with_sentinels(wordpiece(lines, size=2_000, special=T5_SPECIAL))  # text </s>
public = load_tokenizer(Path("spiece.model"))
numbers = bert.encode("to be, or not to be").ids

Nothing is fetched. Whatever a tokeniser came from, the `tokenizers` library runs it, and its `save` keeps it in a file
that `load_tokenizer` reads.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mnemosyne.tasks.data.images import DataError

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
T5_SPECIAL = ("<pad>", "</s>", "<unk>")
SENTINEL = "<extra_id_{}>"
SENTINELS = 100
"""How many T5 has."""

LETTERS = normalizers.BertNormalizer(lowercase=True)
WORDS = pre_tokenizers.BertPreTokenizer()

Pair = tuple[str, str]  # of neighbouring pieces


def wordpiece(texts: Iterable[str], size: int, special: tuple[str, ...] = BERT_SPECIAL) -> Tokenizer:
    """Learn a WordPiece vocabulary: from single letters on, join the two neighbours that are most often together.

    Args:
        texts: such as the lines of a book.
        size: pieces in all, the special tokens and letters among them; fewer if no more can be learnt.
        special: `BERT_SPECIAL`, and a text becomes [CLS] text [SEP], or `T5_SPECIAL`, and it becomes text </s>. They
            are the first pieces.

    Returns:
        A tokeniser with BERT's normaliser (lower case, no accents) and pre-tokeniser (words and punctuation). It is
        the same for the same texts, whatever the machine: pieces that are equally frequent are taken in the order of
        their letters. The trainer of the `tokenizers` library gives another vocabulary each time.

    Raises:
        ValueError: if `size` has no room for the special tokens and every letter.
    """
    words = Counter(word for text in texts for word, _ in WORDS.pre_tokenize_str(LETTERS.normalize_str(text)))
    return _wordpiece([*special, *_learn(words, size - len(special))], special)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokeniser from a local file.

    Args:
        path: `tokenizer.json` as the `tokenizers` library saves it; `vocab.txt`, the pieces of an uncased BERT, one a
            line; or `spiece.model`, the SentencePiece file of a T5, which then gets its sentinels.

    Raises:
        DataError: if the file is absent, damaged or of another kind.
    """
    readers = {".json": lambda p: Tokenizer.from_file(str(p)), ".txt": _read_pieces, ".model": _read_sentencepiece}
    if path.suffix not in readers:
        raise DataError(f"{path.name} is no tokeniser: tokenizer.json, vocab.txt or spiece.model is wanted")
    if not path.is_file():
        raise DataError(f"{path} is missing: put the tokeniser's file there. Nothing is downloaded")
    try:
        return readers[path.suffix](path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"{path} is damaged or no tokeniser: {error}") from error


def with_sentinels(tokenizer: Tokenizer, number: int = SENTINELS) -> Tokenizer:
    """Add T5's sentinels at the end of the vocabulary, the first one, <extra_id_0>, last."""
    tokenizer.add_special_tokens([AddedToken(SENTINEL.format(i)) for i in reversed(range(number))])
    return tokenizer


def special_tokens(tokenizer: Tokenizer, *names: str) -> tuple[int, ...]:
    """The numbers of tokens that must be there.

    Raises:
        DataError: listing those that are not.
    """
    numbers = {name: tokenizer.token_to_id(name) for name in names}
    if missing := [name for name, number in numbers.items() if number is None]:
        raise DataError(f"the tokeniser has no {', '.join(missing)}: it is for another kind of model")
    return tuple(numbers.values())


def stream(tokenizer: Tokenizer, text: str) -> Int[np.ndarray, "n"]:
    """Turn a text into one long row of tokens, line by line, without special ones."""
    encoded = tokenizer.encode_batch_fast(text.splitlines(), add_special_tokens=False)
    return np.concatenate([np.array(e.ids, np.int32) for e in encoded])


def _wordpiece(pieces: list[str], special: tuple[str, ...]) -> Tokenizer:
    unknown = next(name for name in special if "unk" in name.lower())
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=unknown))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = LETTERS, WORDS, decoders.WordPiece()
    return _framed(tokenizer, special)


def _framed(tokenizer: Tokenizer, special: tuple[str, ...]) -> Tokenizer:
    """Make the special tokens special, and put them around every text."""
    tokenizer.add_special_tokens([AddedToken(name) for name in special])
    frame = "[CLS] $A [SEP]" if special == BERT_SPECIAL else "$A </s>"
    ends = [name for name in frame.split() if name != "$A"]
    numbers = special_tokens(tokenizer, *special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(name, numbers[special.index(name)]) for name in ends]
    )
    return tokenizer


def _learn(words: Counter[str], size: int) -> list[str]:
    """Pieces in the order in which they are learnt, letters first; those inside a word begin with ##."""
    split = {word: (word[0], *(f"##{letter}" for letter in word[1:])) for word in words}
    pieces = dict.fromkeys(sorted({piece for parts in split.values() for piece in parts}))  # a set that keeps its order
    if len(pieces) > size:
        raise ValueError(f"{len(pieces)} letters do not fit into {max(size, 0)} places: ask for more pieces")
    counts: Counter[Pair] = Counter()
    where: dict[Pair, set[str]] = {}

    def count(word: str, times: int) -> set[Pair]:
        pairs = list(itertools.pairwise(split[word]))
        for pair in pairs:
            counts[pair] += times
            where.setdefault(pair, set()).add(word)
        return set(pairs)

    queue = sorted({(-counts[pair], pair) for pair in {p for word in words for p in count(word, words[word])}})
    while queue and len(pieces) < size:
        minus, pair = heapq.heappop(queue)
        if counts[pair] != -minus or not minus:
            continue  # queued before other joins changed the count
        joined, changed = pair[0] + pair[1].removeprefix("##"), set()
        pieces[joined] = None
        for word in where.pop(pair):
            changed |= count(word, -words[word])
            split[word] = _join(split[word], pair, joined)
            changed |= count(word, words[word])
        for other in changed:
            heapq.heappush(queue, (-counts[other], other))
    return list(pieces)


def _join(parts: tuple[str, ...], pair: Pair, joined: str) -> tuple[str, ...]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] = joined
        else:
            out.append(part)
    return tuple(out)


def _read_pieces(path: Path) -> Tokenizer:
    pieces = path.read_text(encoding="utf-8").splitlines()
    if missing := set(BERT_SPECIAL) - set(pieces):
        raise DataError(f"lacks {', '.join(sorted(missing))}: a BERT's vocabulary is wanted, a piece a line")
    return _wordpiece(pieces, BERT_SPECIAL)


def _read_sentencepiece(path: Path) -> Tokenizer:
    """Read SentencePiece's own file: pieces with their log-probabilities, and a map of characters."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

    model = ModelProto.FromString(path.read_bytes())
    if not model.pieces or model.trainer_spec.model_type != TrainerSpec.UNIGRAM:
        raise DataError("holds no unigram model, which T5's is")
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == piece.UNKNOWN)
    tokenizer = Tokenizer(models.Unigram([(piece.piece, piece.score) for piece in model.pieces], unknown))
    characters = model.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(characters)] if characters else []),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return with_sentinels(_framed(tokenizer, T5_SPECIAL))
