import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.tasks.data import tokens
from mnemosyne.tasks.data.images import DataError
from mnemosyne.tasks.data.text import grammar
from mnemosyne.tasks.denoising import (
    Corrupted,
    Pieces,
    Spans,
    corrupt,
    mask_tokens,
    masked_lm,
    random_spans,
    span_corruption,
    spans_for,
)
from mnemosyne.tasks.models.bert import Bert
from mnemosyne.tasks.models.t5 import EncoderDecoder
from tests.helpers import fitted

LINES = grammar(6_000).splitlines()
PIECES = Pieces(size=50, mask=4, spared=(0, 2, 3, 4))
SPANS = Spans(40)


def texts(length, number=400):
    return jax.random.randint(jax.random.key(0), (number, length), 5, 50)


@pytest.fixture(scope="module")
def masked():
    """400 texts of [CLS], 17 tokens, [SEP] and filling, masked."""
    cut = jnp.pad(texts(17), ((0, 0), (1, 4))).at[:, 0].set(2).at[:, 18].set(3)
    return jax.jit(jax.vmap(lambda k, t: mask_tokens(k, t, PIECES)))(jax.random.split(jax.random.key(1), 400), cut)


@pytest.fixture(scope="module")
def corrupted():
    """400 texts of 40 tokens and what became of them."""
    cut = texts(40)
    keys = jax.random.split(jax.random.key(1), 400)
    return cut, jax.jit(jax.vmap(lambda k, t: corrupt(k, t, SPANS, 99, 1)))(keys, cut), keys


def test_fifteen_percent_are_chosen_and_no_special_token(masked):
    assert (masked.chosen.sum(axis=1) == round(0.15 * 22)).all()
    assert not np.isin(masked.targets[masked.chosen], PIECES.spared).any()
    shares = masked.chosen[:, 1:18].mean(axis=0)
    error = (3 / 17 * 14 / 17 / 400) ** 0.5
    assert np.abs(shares - 3 / 17).max() < 4 * error


def test_chosen_tokens_are_masked_changed_and_kept_in_their_shares(masked):
    read, was = masked.tokens[masked.chosen], masked.targets[masked.chosen]
    assert np.array_equal(masked.tokens[~masked.chosen], masked.targets[~masked.chosen])
    n = len(read)
    # One in fifty of the random pieces is [MASK], and one the token itself.
    for share, found in ((0.8 + 0.1 / 50, read == 4), (0.1 + 0.1 / 50, read == was)):
        assert abs(float(found.mean()) - share) < 4 * (share * (1 - share) / n) ** 0.5
    others = np.asarray(read[(read != 4) & (read != was)])
    assert len(set(others)) > 25
    assert others.min() < 5


def test_masking_follows_the_key_and_takes_what_there_is():
    mask = jax.jit(lambda k, text: mask_tokens(jax.random.key(k), text, PIECES))
    assert mask(0, jnp.array([2, 9, 3] + 17 * [0])).chosen.tolist() == [False, True] + 18 * [False]
    a, b, c = (mask(k, texts(20)[0]) for k in (0, 0, 1))
    assert np.array_equal(a.chosen, b.chosen)
    assert not np.array_equal(a.chosen, c.chosen)


def test_lengths_are_those_of_the_public_formula():
    def published(tokens, density, mean):
        noise = round(tokens * density)
        number = round(noise / mean)
        return tokens - noise + number + 1, noise + number + 1

    assert spans_for(512).length == 568
    assert spans_for(512).targets == 114
    for inputs in (64, 114, 128, 256, 1024):
        for density, mean in ((0.15, 3.0), (0.5, 3.0), (0.15, 10.0)):
            spans = spans_for(inputs, density, mean)
            assert (spans.inputs, spans.targets) == published(spans.length, density, mean)
            assert spans.inputs <= inputs < published(spans.length + 1, density, mean)[0]
    with pytest.raises(ValueError, match="2 tokens have no room"):
        spans_for(2)


@pytest.mark.parametrize("spans", [Spans(40), Spans(3), Spans(17, 0.5, 2.0), Spans(10, 0.9, 1.0)], ids=str)
def test_spans_are_as_many_and_as_long_as_asked(spans):
    draw = jax.jit(jax.vmap(lambda k: random_spans(k, spans)))
    noise = np.asarray(draw(jax.random.split(jax.random.key(2), 50)))
    assert noise.shape == (50, spans.length)
    assert (noise.sum(axis=1) == spans.corrupted).all()
    assert not noise[:, 0].any()
    starts = noise[:, 1:] & ~noise[:, :-1]
    assert (starts.sum(axis=1) == spans.number).all()


def test_every_way_of_cutting_is_equally_probable():
    spans = Spans(9, 0.45, 2.0)  # 4 corrupted tokens in 2 spans, 5 others in 2: 3 · 4 ways
    noise = jax.jit(jax.vmap(lambda k: random_spans(k, spans)))(jax.random.split(jax.random.key(0), 2_400))
    _, counts = np.unique(np.asarray(noise), axis=0, return_counts=True)
    assert len(counts) == 12
    assert np.abs(counts - 200).max() < 4 * (2_400 / 12 * 11 / 12) ** 0.5


def slowly(cut, noise):
    """Go through the tokens one by one."""
    read, write, sentinel = [], [], 99
    for i, token in enumerate(cut):
        if noise[i] and not noise[i - 1]:
            read.append(sentinel)
            write.append(sentinel)
            sentinel -= 1
        (write if noise[i] else read).append(token)
    return [*read, 1], [*write, 1]


def test_corruption_is_that_of_a_slow_loop_up_to_the_last_sentinel(corrupted):
    cut, got, keys = corrupted
    noise = jax.jit(jax.vmap(lambda k: random_spans(k, SPANS)))(keys)
    assert got.tokens.shape[1] == SPANS.inputs
    assert got.targets.shape[1] == SPANS.targets
    for i in range(20):
        read, write = slowly(cut[i].tolist(), noise[i].tolist())
        assert got.tokens[i].tolist() == read
        assert got.targets[i].tolist() == write


def test_nothing_is_lost(corrupted):
    cut, got, _ = corrupted
    for i in range(20):
        spans, whole = {}, []
        for token in got.targets[i, :-1].tolist():
            if token > 49:
                spans[token] = inside = []
            else:
                inside.append(token)
        for token in got.tokens[i, :-1].tolist():
            whole += spans[token] if token > 49 else [token]
        assert whole == cut[i].tolist()


def learns(task):
    losses, before, after = fitted(task, steps=60, key=0)
    assert losses[-10:].mean() < 0.9 * losses[:3].mean()
    assert after["loss"] < before["loss"]
    assert after["accuracy"] > before["accuracy"]


def rows(tokenizer):
    row = tokens.stream(tokenizer, "\n".join(LINES))
    return row[:-300], row[-300:]


def test_a_tiny_bert_learns_to_foretell_masked_tokens():
    tokenizer = tokens.wordpiece(LINES, 60)
    bert = Bert(layers=1, heads=2, hidden=16, mlp_dim=16, vocabulary=60, length=24)
    task = masked_lm(bert, tokenizer, *rows(tokenizer), length=24, batch_size=16)
    batch = jax.jit(task.batch)(task.data, jax.random.key(0))
    assert batch.tokens.shape == (16, 24)
    assert (batch.targets[:, 0] == 2).all()
    assert (batch.targets[:, -1] == 3).all()
    cuts = np.lib.stride_tricks.sliding_window_view(rows(tokenizer)[0], 22)
    assert all((cuts == cut).all(axis=1).any() for cut in np.asarray(batch.targets[:, 1:-1]))
    learns(task)
    params, loss = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.loss)
    elsewhere = batch._replace(targets=jnp.where(batch.chosen, batch.targets, 7))
    assert np.isclose(loss(params, elsewhere), loss(params, batch))
    with pytest.raises(ValueError, match=r"knows 24 tokens, the tokeniser 60: clone\(vocabulary=60\)"):
        masked_lm(bert.clone(vocabulary=24), tokenizer, *rows(tokenizer))
    with pytest.raises(ValueError, match="a text of 300 tokens has no example of 510"):
        masked_lm(bert, tokenizer, *rows(tokenizer), length=512)


def test_a_tiny_t5_learns_to_write_spans():
    learnt = tokens.wordpiece(LINES, 60, tokens.T5_SPECIAL)
    t5 = EncoderDecoder(layers=1, heads=2, head_dim=8, hidden=16, mlp_dim=16, vocabulary=64)
    with pytest.raises(DataError, match="no <extra_id_0>"):
        span_corruption(t5, learnt, *rows(learnt))
    tokenizer = tokens.with_sentinels(learnt, number=4)
    task = span_corruption(t5, tokenizer, *rows(tokenizer), length=24, batch_size=16)
    batch = jax.jit(task.batch)(task.data, jax.random.key(0))
    assert isinstance(batch, Corrupted)
    assert (batch.targets[:, 0] == 63).all()
    assert (batch.targets[:, -1] == 1).all()
    learns(task)
