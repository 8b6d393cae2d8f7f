from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.memory.contract import queries_and_keys
from mnemosyne.memory.features import hyperbolic
from mnemosyne.memory.layers import layer_norm
from mnemosyne.optimizer import spatial
from mnemosyne.optimizer.paper import feedforward
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.spatial import (
    chunks_of,
    each_chunk,
    encode,
    lay_chunks,
    metatokens,
    pool,
    pool_hierarchically,
    summarise,
    summary_init,
)
from tests.helpers import linear_attention, sequence, slow_hierarchy

SMALL = Config(hidden=4, projections=3, feedforward=6)
THETA = summary_init(jax.random.key(0), SMALL)
LEVELS = [summary_init(jax.random.key(i), SMALL) for i in range(1, 4)]
everyone = lambda x: jnp.ones(len(x), bool)


def test_an_encoder_is_linear_attention_row_by_row():
    theta, x, tokens = THETA["encoder"], sequence(1, 3, 4), sequence(2, 7, 4)
    q, _ = queries_and_keys(theta["memory"], layer_norm(x))
    _, k = queries_and_keys(theta["memory"], layer_norm(tokens))
    phi_q, phi_k = (hyperbolic.features(z, theta["memory"]["omega"]) for z in (q, k))
    recalled = linear_attention(phi_q, phi_k, layer_norm(tokens)) @ np.asarray(theta["memory"]["value"])
    wanted = feedforward(theta, x + jnp.asarray(recalled, jnp.float32))
    assert np.allclose(encode(theta, x, tokens, everyone(tokens)), wanted, rtol=1e-4, atol=1e-5)


def test_many_projections_make_it_softmax_attention():
    theta, x = summary_init(jax.random.key(0), replace(SMALL, projections=20_000))["encoder"], sequence(1, 5, 4)
    for name in ("query", "key"):  # shorter ones, whose kernel is estimated with less variance
        theta["memory"][name]["w"] = 0.5 * theta["memory"][name]["w"]
    q, k = (np.asarray(z) for z in queries_and_keys(theta["memory"], layer_norm(x)))
    weights = np.exp(q @ k.T)
    recalled = weights / weights.sum(1, keepdims=True) @ np.asarray(layer_norm(x) @ theta["memory"]["value"])
    assert np.allclose(encode(theta, x, x, everyone(x)), feedforward(theta, x + recalled), atol=0.02)


def test_a_permutation_permutes_encodings_and_changes_no_summary():
    x, order = sequence(1, 6, 4), np.array([3, 0, 5, 1, 4, 2])
    encoded = encode(THETA["encoder"], x, x, everyone(x))
    assert np.allclose(encode(THETA["encoder"], x[order], x[order], everyone(x)), encoded[order], atol=1e-6)
    assert np.allclose(summarise(THETA, x[order], jnp.array(6)), summarise(THETA, x, jnp.array(6)), atol=1e-6)


@pytest.mark.parametrize("padding", [0.0, 1.0, -1e6])
def test_padding_never_changes_a_result(padding):
    x = sequence(1, 5, 4)
    padded = jnp.concatenate([x, padding * jnp.ones((3, 4)) * jnp.arange(4)[None]])
    assert np.allclose(summarise(THETA, padded, jnp.array(5)), summarise(THETA, x, jnp.array(5)), rtol=1e-5)
    loss = lambda theta, x: jnp.sum(summarise(theta, x, jnp.array(5)) ** 2)
    with_padding, without = (jax.grad(loss, argnums=(0, 1))(THETA, t) for t in (padded, x))
    assert not np.any(with_padding[1][5:])
    for a, b in zip(jax.tree.leaves(with_padding[0]), jax.tree.leaves(without[0]), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_chunks_are_each_sequence_in_order():
    chunks = chunks_of([7, 0, 2, 3], 3)
    assert np.array_equal(chunks, [[0, 3, 6, 7, 9], [3, 3, 1, 2, 3], [0, 0, 0, 2, 3]])
    assert all(len(x) == 0 for x in chunks_of([0, 0], 3))
    x = jnp.arange(1.0, 13.0)
    seen = each_chunk(lambda x: x, x, chunks, 3)
    assert np.array_equal(seen[:2], [[1, 2, 3], [4, 5, 6]])
    assert np.array_equal(seen[-1], [10, 11, 12])
    assert np.array_equal(lay_chunks(seen, chunks, 12), x)


SIZES = (0, 1, 3, 4, 9, 10, 28)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_hierarchy_is_the_slow_one(levels):
    """All lengths around powers of L = 3, in one call, against each alone, chunk after chunk."""
    tensors = [sequence(n, n, 4) for n in SIZES]
    together, counts = pool_hierarchically(LEVELS[:levels], jnp.concatenate(tensors), SIZES, 3)
    of_each = np.split(together, np.cumsum(counts)[:-1])
    for n, tokens, x in zip(SIZES, of_each, tensors, strict=True):
        assert tokens.shape == (metatokens(n, 3, levels), 4) == (int(np.ceil(n / 3**levels)), 4)
        assert np.allclose(tokens, slow_hierarchy(LEVELS[:levels], x, 3), rtol=1e-4, atol=1e-5)


def test_a_chunk_as_long_as_the_tensor_is_the_plain_encoding():
    x = sequence(1, 9, 4)
    plain = summarise(THETA, x, jnp.array(9))
    for length in (9, 10, 100):
        assert np.allclose(pool(THETA, x, [9], length), plain[None], rtol=1e-5, atol=1e-6)


def test_a_short_tensor_skips_the_hierarchy():
    broken = jax.tree.map(lambda w: w * jnp.nan, LEVELS[1])
    (short, long), counts = pool_hierarchically([LEVELS[0], broken], sequence(1, 7, 4), [3, 4], 3)
    assert counts == [1, 1]
    assert np.isfinite(short).all()
    assert np.isnan(long).any()


def test_blocks_change_neither_results_nor_gradients(monkeypatch):

    def loss(theta):
        return jnp.sum(pool(theta, sequence(1, 25, 4), [20, 5], 2) ** 2)

    seen = []
    for block in (2**16, 6, 1):  # 13 chunks at once, by three or four, one by one
        monkeypatch.setattr(spatial, "BLOCK", block)
        seen.append(jax.jit(jax.value_and_grad(lambda theta: loss(theta)))(THETA))
    for other in seen[1:]:
        for a, b in zip(jax.tree.leaves(seen[0]), jax.tree.leaves(other), strict=True):
            assert np.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_embedding_within_a_block_is_embedding_before():
    g, w = sequence(1, 11), sequence(2, 4)
    embed = lambda g: g[..., None] * w.reshape(*(1,) * g.ndim, 4)
    inside, before = pool(THETA, g, [11], 4, embed), pool(THETA, embed(g), [11], 4)
    assert np.allclose(inside, before, rtol=1e-5)
