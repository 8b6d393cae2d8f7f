"""The recommended optimizer in what trainers do: batches that change their size, restarts, a known end."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.optimizer import pretrained
from mnemosyne.tasks import data, suite


@cache
def task(batch_size):
    return suite.mlp(suite.small(data.load("digits"), 8), (20,), "relu", batch_size=batch_size)


@cache
def trainer(batch_size, end=None):
    """Many steps as one program: (parameters, state, key) → the same and the losses."""
    tx, of = pretrained(steps=end), task(batch_size)

    def step(carry, key):
        params, state = carry
        loss, grads = jax.value_and_grad(of.loss)(params, of.batch(of.data, key))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return tx, jax.jit(lambda params, state, key: jax.lax.scan(step, (params, state), jax.random.split(key, 400)))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("other", [1, 4, 1_024])
def test_batches_may_change_their_size_in_the_middle(other, seed):
    """The loss may rise at a change, but soon stays below a tenth of where it began."""
    tx, usual = trainer(64)
    params = task(64).init(jax.random.key(seed))
    (params, state), first = usual(params, tx.init(params), jax.random.key(10 + seed))
    (params, state), between = trainer(other)[1](params, state, jax.random.key(20 + seed))
    _, last = usual(params, state, jax.random.key(30 + seed))
    begin = np.mean(first[:5])
    assert np.mean(first[-50:]) < begin / 100
    assert np.mean(between[-200:]) < begin / 10
    assert np.mean(last[-50:]) < begin / 10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_restart_without_the_state_does_little_harm(seed):
    tx, usual = trainer(64)
    params = task(64).init(jax.random.key(seed))
    (params, _), first = usual(params, tx.init(params), jax.random.key(10 + seed))
    _, again = usual(params, tx.init(params), jax.random.key(20 + seed))
    begin = np.mean(first[:5])
    assert np.max(again) < begin / 3
    assert np.mean(again[-50:]) < begin / 100


def test_told_the_end_it_comes_to_rest_there_and_lower():
    lowest = {None: [], 400: []}
    for seed in range(3):
        start = task(4).init(jax.random.key(seed))
        for end, found in lowest.items():
            tx, usual = trainer(4, end)
            (params, state), losses = usual(start, tx.init(start), jax.random.key(10 + seed))
            found.append(np.mean(losses[-50:]))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert all(np.abs(u).max() == 0 for u in jax.tree.leaves(updates))
    assert np.mean(lowest[400]) < np.mean(lowest[None])
