import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import optimizer
from mnemosyne.batches import batches, join, scale_by_batches, split
from mnemosyne.coordinate import coordinate_rule
from mnemosyne.optimizer import drop_in


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (), (0, 4), (5,)]])
def test_what_is_joined_can_be_split(shapes):
    arrays = [jax.random.normal(jax.random.key(i), (*shape, 2)) for i, shape in enumerate(shapes)]
    joined = join(arrays, shapes)
    assert joined.size == sum(a.size for a in arrays)
    for a, b in zip(arrays, split(joined, shapes), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("together", [0, 4, math.inf])
def test_each_tensor_keeps_the_memory_of_its_extent(together):
    """A rule that counts its steps in two memories a tensor, and adds what it counted to the gradient."""
    extent = lambda shape: (2,) if shape else (1,)

    def step(memory, gradients):
        memory = memory + 1.0
        ends = np.cumsum([extent(g.shape)[0] for g in gradients])
        return memory, [g + memory[end - 1] for g, end in zip(gradients, ends, strict=True)]

    tx = scale_by_batches(jnp.zeros, extent, step, together)
    params = {"w": jnp.ones((2, 3)), "s": jnp.array(2.0), "v": jnp.zeros(3)}
    state = tx.init(params)
    assert jax.tree.map(jnp.shape, state.memory) == {"w": (2,), "s": (1,), "v": (2,)}
    for t in (1, 2):
        updates, state = tx.update(params, state)
        for name, p in params.items():
            assert np.array_equal(updates[name], p + t)


def test_small_tensors_go_together_and_large_ones_alone(theta, config, monkeypatch):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(7), "c": jnp.array(1.0), "d": jnp.ones((0, 4))}
    grads = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape), params)
    seen = []
    for limit, wanted in ((4096, 1), (7, 2), (0, 4)):
        monkeypatch.setattr(optimizer, "SMALL", limit)
        assert len(batches(jax.tree.leaves(params), limit)) == wanted
        tx = drop_in(theta, coordinate_rule(config))
        state = tx.init(params)
        for _ in range(2):
            updates, state = jax.jit(tx.update)(grads, state)
        seen.append((updates, state))
    for other in seen[1:]:
        for a, b in zip(*map(jax.tree.leaves, (seen[0], other)), strict=True):
            assert np.allclose(a, b, rtol=1e-4, atol=1e-7)
