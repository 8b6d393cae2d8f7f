"""Parts of an optimizer, one after another, are the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.book.studies.blocks import attention, histories, through_tensorwise
from mnemosyne.memory.layers import layer_norm
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.spatial import summarise
from mnemosyne.optimizer.tensorwise import tensorwise
from mnemosyne.types import Task

CONFIG = Config(hidden=4, projections=4, encoders=2, feedforward=8)


def test_histories_are_those_of_gradient_descent():
    """On ½‖x‖² each gradient is the parameter, which shrinks by a tenth a step."""
    loss = lambda params, batch: 0.5 * jnp.sum(params["x"] ** 2) + 0.0 * batch
    task = Task("bowl", (), lambda key: {"x": jnp.array([1.0, -2.0])}, lambda data, key: 0.0, loss, None)
    start, gradients, updates = histories(task, optax.sgd(0.1), 3, jax.random.key(0))
    wanted = np.array([1.0, -2.0]) * 0.9 ** np.arange(3)[:, None]
    np.testing.assert_allclose(start["x"], wanted[0])
    np.testing.assert_allclose(gradients["x"], wanted, rtol=1e-6)
    np.testing.assert_allclose(updates["x"], -0.1 * wanted, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (5, 7), (6, 11)])
def test_the_parts_of_the_tensor_wise_optimizer_make_its_update(shape):
    learned = tensorwise(CONFIG, length=4, levels=2)
    theta = learned.init(jax.random.key(0))
    gradients = jax.random.normal(jax.random.key(1), (3, *shape))
    tx = learned.make(theta)
    state = tx.init(gradients[0])
    for g in gradients:
        updates, state = tx.update(g, state)
    stages = through_tensorwise(theta, gradients, CONFIG, length=4)
    np.testing.assert_allclose(stages.update.reshape(shape), updates, rtol=1e-4, atol=1e-7)
    n = gradients[0].size
    assert len(stages.chunks) == -(-n // 4)
    assert len(stages.metatokens) == len(stages.remembered) == -(-n // 16)


def test_weights_of_a_pooling_are_those_it_reads_with():
    theta = tensorwise(CONFIG).init(jax.random.key(0))["spatial"]
    tokens = jax.random.normal(jax.random.key(1), (5, 4))
    weights = attention(theta, tokens)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)
    among = layer_norm(jnp.concatenate([theta["token"][None], tokens]))
    # Without its feed-forward half, an encoder adds the weighted mean of all values to its token.
    silent = jax.tree.map(jnp.zeros_like, theta["encoder"]["down"])
    read = summarise(theta | {"encoder": theta["encoder"] | {"down": silent}}, tokens, jnp.array(5)) - theta["token"]
    np.testing.assert_allclose(read, weights @ among @ theta["encoder"]["memory"]["value"], rtol=1e-3, atol=1e-5)
