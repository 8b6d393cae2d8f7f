import itertools
import json
from collections import Counter

import numpy as np
import pytest

from mnemosyne.tasks.data import images as data
from mnemosyne.tasks.data import tokens
from mnemosyne.tasks.data.text import grammar
from tests.tasks.models import GOLDEN

LINES = grammar(5_000).splitlines()
VOCABULARY = data.originals() / "text" / "bert_uncased_vocab.txt"


def pieces(tokenizer):
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)


def learnt_slowly(words, size):
    """Count every pair again for each join."""
    split = {word: [word[0], *("##" + c for c in word[1:])] for word in words}
    learnt = sorted({piece for parts in split.values() for piece in parts})
    while len(learnt) < size:
        counts = Counter()
        for word, parts in split.items():
            for pair in itertools.pairwise(parts):
                counts[pair] += words[word]
        if not counts:
            break
        most = max(counts.values())
        a, b = min(pair for pair, n in counts.items() if n == most)
        if a + b[2:] not in learnt:
            learnt.append(a + b[2:])
        for word, parts in split.items():
            out, i = [], 0
            while i < len(parts):
                both = parts[i : i + 2] == [a, b]
                out.append(a + b[2:] if both else parts[i])
                i += 2 if both else 1
            split[word] = out
    return learnt


@pytest.fixture(scope="module")
def bert():
    return tokens.wordpiece(LINES, 100)


def test_pieces_are_joined_in_the_order_of_a_slow_count(bert):
    words = Counter(word for line in LINES for word in line.replace(".", " .").split())
    assert pieces(bert) == [*tokens.BERT_SPECIAL, *learnt_slowly(words, 95)]


def test_repeated_letters_and_equal_counts_are_joined_alike():
    words = Counter({"aaaa": 3, "baaab": 3, "abab": 2, "ba": 7})
    text = " ".join(word for word, n in words.items() for _ in range(n))
    for size in (4, 6, 8, 50):
        found = tokens.wordpiece([text], len(tokens.BERT_SPECIAL) + size)
        assert pieces(found)[len(tokens.BERT_SPECIAL) :] == learnt_slowly(words, size)


def test_the_order_of_the_texts_makes_no_difference(bert):
    assert pieces(tokens.wordpiece(LINES[::-1], 100)) == pieces(bert)


def test_a_text_is_framed_lowered_and_comes_back(bert):
    encoded = bert.encode("These Bóld cats see a dog.")
    assert encoded.tokens[0] == "[CLS]"
    assert encoded.tokens[-1] == "[SEP]"
    assert bert.decode(encoded.ids) == "these bold cats see a dog."
    assert bert.encode("☃").tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_t5_has_its_ends_and_descending_sentinels():
    t5 = tokens.with_sentinels(tokens.wordpiece(LINES, 60, tokens.T5_SPECIAL), number=5)
    assert t5.get_vocab_size() == 65
    assert pieces(t5)[:3] == ["<pad>", "</s>", "<unk>"]
    assert [t5.token_to_id(f"<extra_id_{i}>") for i in range(5)] == [64, 63, 62, 61, 60]
    assert t5.encode("☃").tokens == ["<unk>", "</s>"]


def test_a_saved_tokeniser_is_loaded_again(bert, tmp_path):
    bert.save(str(tmp_path / "tokenizer.json"))
    loaded = tokens.load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode_batch(LINES)[3].ids == bert.encode(LINES[3]).ids
    (tmp_path / "vocab.txt").write_text("\n".join(pieces(bert)) + "\n", encoding="utf-8")
    assert tokens.load_tokenizer(tmp_path / "vocab.txt").encode(LINES[5]).ids == bert.encode(LINES[5]).ids


def test_sentencepiece_is_read_as_its_own_library_reads_it():
    t5 = tokens.load_tokenizer(GOLDEN / "spiece.model")
    rows = json.loads((GOLDEN / "spiece.json").read_text(encoding="utf-8"))
    assert len(rows) == 5
    for text, numbers in rows.items():
        assert t5.encode(text).ids == [*numbers, 1]
    assert t5.token_to_id("<extra_id_0>") == t5.get_vocab_size() - 1 == 159
    assert t5.decode(t5.encode("this bold cat").ids) == "this bold cat"


@pytest.mark.skipif(not VOCABULARY.exists(), reason="no public vocabulary here")
def test_the_public_vocabulary_gives_the_public_numbers():
    public = tokens.load_tokenizer(VOCABULARY)
    assert public.get_vocab_size() == 30_522
    encoded = public.encode("He was unaffable, naïve [MASK]!")
    assert encoded.ids == [101, 2002, 2001, 14477, 20961, 3468, 1010, 15743, 103, 999, 102]


def test_a_stream_has_no_special_tokens(bert):
    row = tokens.stream(bert, "\n".join(LINES))
    assert row.dtype == np.int32
    assert row.min() >= len(tokens.BERT_SPECIAL)
    assert bert.decode(row).replace(" .", ".") == " ".join(LINES)


def test_special_tokens_that_are_not_there_are_named(bert):
    assert tokens.special_tokens(bert, "[MASK]", "[CLS]") == (4, 2)
    with pytest.raises(data.DataError, match="no </s>, <extra_id_0>: it is for another"):
        tokens.special_tokens(bert, "</s>", "[MASK]", "<extra_id_0>")


def test_too_few_pieces_for_the_letters_are_refused():
    with pytest.raises(ValueError, match="3 letters do not fit into 2 places"):
        tokens.wordpiece(["abcb"], 7)


def test_absent_foreign_and_damaged_files_are_errors(tmp_path):
    with pytest.raises(data.DataError, match=r"spiece\.model is missing.*Nothing is downloaded"):
        tokens.load_tokenizer(tmp_path / "spiece.model")
    with pytest.raises(data.DataError, match=r"words\.bin is no tokeniser: tokenizer\.json, vocab\.txt or spiece"):
        tokens.load_tokenizer(tmp_path / "words.bin")
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\n", encoding="utf-8")
    (tmp_path / "cut.model").write_bytes((GOLDEN / "spiece.model").read_bytes()[:-40])
    (tmp_path / "other.model").write_bytes(b"")
    for name, problem in (
        ("tokenizer.json", "damaged or no tokeniser"),
        ("vocab.txt", r"lacks \[CLS\], \[MASK\], \[SEP\]"),
        ("cut.model", r"cut\.model is damaged or no tokeniser: Error parsing message"),
        ("other.model", r"other\.model is empty"),
    ):
        with pytest.raises(data.DataError, match=problem):
            tokens.load_tokenizer(tmp_path / name)


# Files and texts as people have them ----------------------------------------------------------------------------------

HEAD = "".join(f"{name}\n" for name in tokens.BERT_SPECIAL)


def vocabulary(folder, content):
    path = folder / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tokens.load_tokenizer(str(path))


ODD = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"]
VOCABULARIES = {
    "a byte-order mark": "\ufeff" + HEAD + "a\nb\nc\n",
    "line ends of Windows": (HEAD + "a\nb\nc\n").replace("\n", "\r\n"),
    "line ends of old Macs": (HEAD + "a\nb\nc\n").replace("\n", "\r"),
    "no last line end": HEAD + "a\nb\nc",
    "empty lines at the end": HEAD + "a\nb\nc\n\n\n",
    **{f"the piece U+{ord(odd):04X}": HEAD + f"a{odd}\nb\nc\n" for odd in ODD},
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_piece_has_the_number_of_its_line(name, tmp_path):
    loaded = vocabulary(tmp_path, VOCABULARIES[name])
    assert loaded.get_vocab_size() == 8
    assert loaded.encode("b c").ids == [2, 6, 7, 3]


WRONG_VOCABULARIES = {
    "a piece twice": (HEAD + "a\nb\na\n", "has the piece 'a' in lines 6, 8: which number it has is not known"),
    "an empty line within": (HEAD + "a\n\nb\n\nc\n", "has the piece '' in lines 7, 9"),
    "latin-1": ((HEAD + "é\n").encode("latin-1"), "is not UTF-8"),
    "utf-16": ((HEAD + "a\n").encode("utf-16"), "is UTF-16: save it as UTF-8"),
    "of another model": ("<s>\n</s>\n<unk>\n", r"lacks \[CLS\], \[MASK\], \[PAD\], \[SEP\], \[UNK\]"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", WRONG_VOCABULARIES)
def test_wrong_vocabularies_are_refused(name, tmp_path):
    content, says = WRONG_VOCABULARIES[name]
    with pytest.raises(data.DataError, match=says):
        vocabulary(tmp_path, content)


@pytest.mark.bad_input
def test_a_vocabulary_with_capitals_is_a_cased_one(tmp_path):
    cased = vocabulary(tmp_path, HEAD + "[unused0]\nHello\nhello\nWorld\né\ne\n")
    assert cased.encode("Hello World é").tokens[1:-1] == ["Hello", "World", "é"]
    uncased = vocabulary(tmp_path, HEAD + "[unused0]\n[MODE_A]\nhello\nworld\ne\n")
    assert uncased.encode("Hello World é").tokens[1:-1] == ["hello", "world", "e"]


@pytest.mark.bad_input
def test_a_json_file_may_have_a_byte_order_mark(bert, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("\ufeff" + bert.to_str(), encoding="utf-8")
    assert tokens.load_tokenizer(path).encode(LINES[3]).ids == bert.encode(LINES[3]).ids


@pytest.mark.bad_input
@pytest.mark.parametrize("content", ["{}", "[]", "null", "{", '{"model": 3}', '{"model_max_length": 512}'])
def test_json_that_is_no_tokeniser_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(data.DataError, match=r"tokenizer\.json is damaged or no tokeniser"):
        tokens.load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.bad_input
def test_a_folder_says_which_tokeniser_it_holds(tmp_path):
    with pytest.raises(data.DataError, match="is a folder; none of these is in it: tokenizer"):
        tokens.load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text(HEAD, encoding="utf-8")
    with pytest.raises(data.DataError, match=r"is a folder; it holds vocab\.txt"):
        tokens.load_tokenizer(tmp_path)


@pytest.mark.bad_input
def test_a_sentencepiece_of_another_model_is_refused(tmp_path):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto.FromString((GOLDEN / "spiece.model").read_bytes())
    for piece in model.pieces:
        piece.piece = {"<pad>": "[PAD]", "</s>": "[SEP]"}.get(piece.piece, piece.piece)
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    with pytest.raises(data.DataError, match=r"lacks </s>, <pad>: a T5's vocabulary is wanted"):
        tokens.load_tokenizer(tmp_path / "spiece.model")


STREAMS = {
    "no text": ("", 0),
    "line ends alone": ("\n\r\n\r", 0),
    "spaces alone": (" \t \u3000", 0),
    "a byte-order mark alone": ("\ufeff", 0),
    "line ends of Windows": ("the\r\ncats\r\n", "the\ncats\n"),
    "line ends of old Macs": ("the\rcats", "the\ncats"),
    "separators within a line": ("the\u2028cats\x85see\x0cdogs", "the cats see dogs"),
    "a zero": ("the\x00 cats", "the cats"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_of_odd_text(name, bert):
    odd, plain = STREAMS[name]
    row = tokens.stream(bert, odd)
    assert row.dtype == np.int32
    assert row.tolist() == ([] if plain == 0 else tokens.stream(bert, plain).tolist())


@pytest.mark.bad_input
@pytest.mark.parametrize("half", [0xD800, 0xDC80])
def test_half_a_surrogate_pair_is_named(half, bert):
    for call in (lambda x: tokens.stream(bert, x), lambda x: tokens.wordpiece([x], 50)):
        with pytest.raises(data.DataError, match=rf"U\+{half:04X}, half a surrogate pair, at 4: decode it"):
            call(f"the {chr(half)}cat")


@pytest.mark.bad_input
def test_texts_are_not_one_text():
    with pytest.raises(ValueError, match=r"texts are wanted, and this is one.*splitlines"):
        tokens.wordpiece("the cat sat", 50)
    assert pieces(tokens.wordpiece(["", "\n"], 50)) == list(tokens.BERT_SPECIAL)
