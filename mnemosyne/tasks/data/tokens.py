"""Text as pieces of words: a WordPiece vocabulary learnt from a text, or a file that others have learnt.

bert = wordpiece(lines, size=2_000)  # [CLS] text [SEP]
t5 = with_sentinels(wordpiece(lines, size=2_000, special=T5_SPECIAL))  # text </s>
public = load_tokenizer("spiece.model")
numbers = bert.encode("to be, or not to be").ids

Nothing is fetched. Whatever a tokeniser came from, the `tokenizers` library runs it, and its `save` keeps it in a file
that `load_tokenizer` reads.
"""

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mnemosyne.store import StoreError
from mnemosyne.tasks.data.images import DataError
from mnemosyne.tasks.files import File, local, read_bytes, read_text, whole

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
T5_SPECIAL = ("<pad>", "</s>", "<unk>")
SENTINEL = "<extra_id_{}>"
SENTINELS = 100
"""How many T5 has."""

FILES = ("tokenizer.json", "vocab.txt", "spiece.model")
WANTED = f"{', '.join(FILES[:-1])} or {FILES[-1]} is wanted"
LETTERS = normalizers.BertNormalizer(lowercase=True)
CASED = normalizers.BertNormalizer(lowercase=False)
CAPITAL = re.compile(r"^[^\[].*[A-Z]|^[A-Z]")  # not in [unused0] and the like
HALVES = re.compile("[\ud800-\udfff]")
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
        ValueError: if `size` has no room for the special tokens and every letter; if `texts` is one text.
        DataError: if a text is no text in Unicode.
    """
    if isinstance(texts, str):
        raise ValueError("texts are wanted, and this is one, of which each would be a letter: give text.splitlines()")
    words = Counter(word for text in map(checked, texts) for word, _ in WORDS.pre_tokenize_str(LETTERS.normalize_str(text)))
    return _wordpiece([*special, *_learn(words, size - len(special))], special)


def load_tokenizer(path: File) -> Tokenizer:
    """Load a tokeniser from a local file.

    Args:
        path: `tokenizer.json` as the `tokenizers` library saves it; `vocab.txt`, the pieces of a BERT, one a line,
            which is a cased one if there are capitals in it; or `spiece.model`, the SentencePiece file of a T5, which
            then gets its sentinels.

    Raises:
        DataError: if the file is absent, damaged or of another kind.
    """
    path = local(path)
    readers = {".json": _read_json, ".txt": _read_pieces, ".model": _read_sentencepiece}
    if path.is_dir():
        there = [name for name in FILES if (path / name).exists()]
        raise DataError(f"{path} is a folder; {f'it holds {there[0]}' if there else 'none of these is in it'}: {WANTED}")
    if path.suffix not in readers:
        raise DataError(f"{path.name} is no tokeniser: {WANTED}")
    try:
        return readers[path.suffix](whole(path))
    except StoreError as error:
        raise DataError(f"no tokeniser: {error}") from error
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
    """Turn a text into one long row of tokens, line by line, without special ones; of no text, none.

    Raises:
        DataError: if it is no text in Unicode.
    """
    encoded = tokenizer.encode_batch_fast(checked(text).splitlines(), add_special_tokens=False)
    return np.concatenate([np.array([], np.int32), *(np.array(e.ids, np.int32) for e in encoded)])


def checked(text: str) -> str:
    """The text itself, whose characters are all of Unicode.

    Raises:
        DataError: if there is half a surrogate pair, of which no tokeniser can make anything.
    """
    if half := HALVES.search(text):
        found = f"U+{ord(half[0]):04X}, half a surrogate pair, at {half.start()}"
        raise DataError(f"the text has {found}: decode it as UTF-8, with errors='replace' if it must be")
    return text


def _wordpiece(pieces: list[str], special: tuple[str, ...], letters: normalizers.Normalizer = LETTERS) -> Tokenizer:
    unknown = next(name for name in special if "unk" in name.lower())
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=unknown))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = letters, WORDS, decoders.WordPiece()
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


def _read_json(path: File) -> Tokenizer:
    return Tokenizer.from_str(read_text(path))


def _read_pieces(path: File) -> Tokenizer:
    # Other separators than a line's end, such as U+2028, may be pieces themselves.
    pieces = re.split(r"\r\n|\r|\n", read_text(path).rstrip("\r\n"))
    if missing := set(BERT_SPECIAL) - set(pieces):
        raise DataError(f"lacks {', '.join(sorted(missing))}: a BERT's vocabulary is wanted, a piece a line")
    if twice := [piece for piece, times in Counter(pieces).items() if times > 1]:
        lines = ", ".join(str(i) for i, piece in enumerate(pieces, start=1) if piece == twice[0])
        raise DataError(f"has the piece {twice[0]!r} in lines {lines}: which number it has is not known")
    cased = any(CAPITAL.search(piece) for piece in pieces if piece not in BERT_SPECIAL)
    return _wordpiece(pieces, BERT_SPECIAL, CASED if cased else LETTERS)


def _read_sentencepiece(path: File) -> Tokenizer:
    """Read SentencePiece's own file: pieces with their log-probabilities, and a map of characters."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

    model = ModelProto.FromString(read_bytes(path))
    if not model.pieces or model.trainer_spec.model_type != TrainerSpec.UNIGRAM:
        raise DataError("holds no unigram model, which T5's is")
    if missing := set(T5_SPECIAL) - {piece.piece for piece in model.pieces}:
        raise DataError(f"lacks {', '.join(sorted(missing))}: a T5's vocabulary is wanted")
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.piece == "<unk>")
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
