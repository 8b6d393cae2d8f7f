import gzip
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.tasks import superglue
from mnemosyne.tasks.data import images as data
from mnemosyne.tasks.data import sources, tokens
from mnemosyne.tasks.data.text import ADJECTIVES
from mnemosyne.tasks.models.t5 import EncoderDecoder, shift_right
from mnemosyne.tasks.regimes import SOFT_PROMPT, fine_tune, trained_part
from mnemosyne.tasks.superglue import Labelled, Rows, load_rows, prompted

TINY = EncoderDecoder(layers=1, heads=2, head_dim=8, hidden=16, mlp_dim=16, vocabulary=64)
TEXTS = tuple(
    f"rte hypothesis: a {a} premise: the {b} sees a {a}" for a in ("cat", "dog") for b in ("cat", "dog", "ox")
)
ROWS = Rows(
    "made up",
    Labelled(TEXTS, np.array([0, 1, 1, 0, 1, 0], np.int32)),
    Labelled(TEXTS[:4], np.array([0, 1, 1, 0], np.int32)),
    words=("yes", "not a bit"),
)

WRITTEN = {
    "cb": (
        [{"premise": "A b.", "hypothesis": "C", "label": "neutral", "idx": 0}],
        ["cb hypothesis: C premise: A b."],
        "neutral",
    ),
    "copa": (
        [{"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "effect", "label": 1, "idx": 0}],
        ["copa choice1: A. choice2: B. premise: P. question: effect"],
        "choice2",
    ),
    "rte": (
        [{"premise": "A b.", "hypothesis": "C", "label": "not_entailment", "idx": 0}],
        ["rte hypothesis: C premise: A b."],
        "not_entailment",
    ),
    "wic": (
        [{"word": "w", "sentence1": "A w.", "sentence2": "B w.", "label": False, "start1": 2, "idx": 0}],
        ["wic sentence1: A w. sentence2: B w. word: w"],
        "False",
    ),
}


def place(name, contents, folder, monkeypatch):
    """Make rows a task's published files."""
    packed = [gzip.compress("\n".join(map(json.dumps, rows)).encode()) for rows in contents]
    known = data.SOURCES[name]
    files = tuple(
        original._replace(sha256=hashlib.sha256(x).hexdigest()) for original, x in zip(known.files, packed, strict=True)
    )
    monkeypatch.setitem(data.SOURCES, name, known._replace(files=files))
    monkeypatch.setenv("MNEMOSYNE_DATA", str(folder))
    (folder / "superglue").mkdir()
    for path, content in zip(data.paths(name), packed, strict=True):
        path.write_bytes(content)


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_are_written_as_t5_reads_them(name, tmp_path, monkeypatch):
    rows, texts, word = WRITTEN[name]
    place(name, [rows, rows], tmp_path, monkeypatch)
    loaded = load_rows(name)
    for part in (loaded.train, loaded.validation):
        assert list(part.texts) == texts
        assert loaded.words[part.labels[-1]] == word


def test_every_task_has_files_and_a_form():
    rows = {name for name, source in sources.SOURCES.items() if source.format == "rows"}
    assert rows == set(superglue.KINDS) == set(WRITTEN)


def test_made_up_sentences_tell_which_article_they_lost():
    loaded = load_rows("synthetic")
    assert loaded.words == ("this", "these")
    for part in (loaded.train, loaded.validation):
        for text, label in zip(*part, strict=True):
            subject = next(
                w for w in text.removeprefix("synthetic sentence: ").rstrip(".").split() if w not in ADJECTIVES
            )
            assert subject.endswith("s") == label
        assert 0.4 < part.labels.mean() < 0.6
    assert len(loaded.train.texts) > 1_000


def test_absent_unknown_and_malformed_rows_are_errors(tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match="unknown SuperGLUE task 'record'; there are synthetic, cb"):
        load_rows("record")
    place("cb", [[{"premise": "A", "label": "neutral"}]] * 2, tmp_path, monkeypatch)
    with pytest.raises(data.DataError, match=r"a row of cb has no hypothesis, premise and label.*'hypothesis'"):
        load_rows("cb")
    with pytest.raises(
        data.DataError, match=r"(?s)rte is not usable:.*no public address: put them into .*superglue\.\n"
    ):
        load_rows("rte")
    with pytest.raises(data.DataError, match=r"text, not images: mnemosyne.tasks.superglue.load_rows\('cb'\)"):
        data.load("cb")


@pytest.mark.skipif(not data.paths("cb")[0].exists(), reason="no SuperGLUE rows here")
def test_real_rows_have_their_published_numbers():
    sizes = {"cb": (250, 56), "copa": (400, 100), "rte": (2_490, 277), "wic": (5_428, 638)}
    for name, wanted in sizes.items():
        loaded = load_rows(name)
        assert (len(loaded.train.texts), len(loaded.validation.texts)) == wanted
    assert np.bincount(load_rows("wic").train.labels).tolist() == [2_714, 2_714]


@pytest.fixture(scope="module")
def tokenizer():
    learnt = tokens.wordpiece([*TEXTS, *ROWS.words], 60, tokens.T5_SPECIAL)
    return tokens.with_sentinels(learnt, number=3)


@pytest.fixture(scope="module")
def task(tokenizer):
    return prompted(ROWS, tokenizer, TINY, prompt=4, length=24, batch_size=8)


@pytest.fixture(scope="module")
def params(task):
    return jax.jit(task.init)(jax.random.key(0))


def test_texts_are_cut_and_filled(tokenizer):
    short = superglue.encode(tokenizer, ROWS.train, 40)
    cut = superglue.encode(tokenizer, ROWS.train, 6)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    for i, row in enumerate(ids):
        assert short.tokens[i].tolist() == row + [0] * (40 - len(row))
        assert short.mask[i].tolist() == [True] * len(row) + [False] * (40 - len(row))
        assert cut.tokens[i].tolist() == [*row[:5], 1]


def slow_loglikelihood(params, text, word, tokenizer):
    """log p of a word and </s>, a token after the other, without any filling."""
    read, write = (jnp.array([tokenizer.encode(x).ids]) for x in (text, word))
    logits = jax.jit(TINY.apply)({"params": params["model"]}, read, shift_right(write), prompt=params["prompt"])
    return [float(jax.nn.log_softmax(logits[0, t])[token]) for t, token in enumerate(write[0].tolist())]


def test_loss_and_accuracy_are_those_of_a_slow_comparison(task, params, tokenizer):
    found = jax.jit(task.metrics)(params, task.data)
    right, total, number = [], 0.0, 0
    for text, label in zip(ROWS.validation.texts, ROWS.validation.labels, strict=True):
        scores = [slow_loglikelihood(params, text, word, tokenizer) for word in ROWS.words]
        right.append(np.argmax([sum(score) for score in scores]) == label)
        total, number = total - sum(scores[label]), number + len(scores[label])
    assert np.isclose(found["loss"], total / number, rtol=1e-4)
    assert np.isclose(found["accuracy"], np.mean(right))
    everything = task.data["held"]
    assert np.isclose(jax.jit(task.loss)(params, everything), total / number, rtol=1e-4)


def test_only_the_prompt_is_trained(task, params):
    part = trained_part(task, {"model": params["model"]}, SOFT_PROMPT)
    start = part.init(jax.random.key(3))
    assert set(start) == {"prompt"}
    assert start["prompt"].shape == (4, 16)
    assert float(jnp.abs(start["prompt"]).max()) <= 0.5
    tx = fine_tune(SOFT_PROMPT, {"mnemosyne": optax.adam(1e-1)})
    assert sum(x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, start))) == 2 * 4 * 16 + 1

    def step(carry, key):
        params, state = carry
        loss, g = jax.value_and_grad(part.loss)(params, part.batch(part.data, key))
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), loss

    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), jax.random.split(jax.random.key(0), 60)))
    (end, _), losses = run(start)
    assert set(end) == {"prompt"}
    assert losses[-10:].mean() < 0.95 * losses[:10].mean()


def test_a_tokeniser_that_does_not_fit_is_refused(tokenizer):
    with pytest.raises(data.DataError, match="no <pad>, </s>, <unk>"):
        prompted(ROWS, tokens.wordpiece(TEXTS, 60), TINY)
    small = TINY.clone(vocabulary=40)
    with pytest.raises(ValueError, match=f"knows 40 tokens, the tokeniser {tokenizer.get_vocab_size()}"):
        prompted(ROWS, tokenizer, small)


@pytest.mark.bad_input
@pytest.mark.parametrize("between", ["\n", "\r\n", "\n\n"])
def test_rows_may_have_marks_empty_lines_and_odd_separators(between, tmp_path, monkeypatch):
    row = {"hypothesis": "one\u2028two", "premise": "A\x85B", "label": "neutral"}
    line = json.dumps(row, ensure_ascii=False)
    place("cb", [[row]] * 2, tmp_path, monkeypatch)
    monkeypatch.setattr("mnemosyne.tasks.superglue.verify", lambda name: None)
    for path in data.paths("cb"):
        path.write_bytes(gzip.compress(f"\ufeff{line}{between}{line}{between}".encode()))
    loaded = load_rows("cb")
    assert list(loaded.train.texts) == ["cb hypothesis: one\u2028two premise: A\x85B"] * 2
    for path in data.paths("cb"):
        path.write_bytes(gzip.compress(f"{line}\n{line[:-9]}\n".encode()))
    with pytest.raises(data.DataError, match=r"line 2 of .*CB\.train\.jsonl\.gz is no row in JSON"):
        load_rows("cb")


@pytest.mark.bad_input
def test_lengths_and_texts_at_their_ends(tokenizer):
    part = superglue.Labelled(("", "cat " * 3_000), np.array([0, 1]))
    found = superglue.encode(tokenizer, part, 8)
    end = tokenizer.token_to_id("</s>")
    assert found.tokens[0].tolist() == [end] + 7 * [tokenizer.token_to_id("<pad>")]
    assert found.mask.sum(axis=1).tolist() == [1, 8]
    assert superglue.encode(tokenizer, part, 1).tokens.tolist() == [[end], [end]]
    assert superglue.encode(tokenizer, superglue.Labelled((), np.array([], np.int32)), 8).tokens.shape == (0, 8)
    with pytest.raises(ValueError, match="a length of 0 tokens has no room for </s>"):
        superglue.encode(tokenizer, part, 0)
    with pytest.raises(data.DataError, match=r"half a surrogate pair, at 0"):
        superglue.encode(tokenizer, superglue.Labelled(("\ud800",), np.array([0])), 8)
