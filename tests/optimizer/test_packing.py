import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.packing import Tensors, batches, cut, in_batches, join, lay, scale_by_rows, split
from mnemosyne.optimizer.sizes import scale_by_tensor_rms
from mnemosyne.optimizer.transform import from_rule


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (), (0, 4), (5,)]])
def test_what_is_joined_can_be_split(shapes):
    arrays = [jax.random.normal(jax.random.key(i), (*shape, 2)) for i, shape in enumerate(shapes)]
    joined = join(arrays, shapes)
    assert joined.size == sum(a.size for a in arrays)
    for a, b in zip(arrays, split(joined, shapes), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("extents", [[()], [()] * 3, [(2,), (), (0,)]])
def test_numbers_are_laid_end_to_end_and_cut_again(extents):
    arrays = [jax.random.normal(jax.random.key(i), (*shape, 2)) for i, shape in enumerate(extents)]
    joined = lay(arrays, extents)
    assert joined.shape == (sum(map(math.prod, extents)), 2)
    for a, b in zip(arrays, cut(joined, extents), strict=True):
        assert np.array_equal(a, b)


def test_what_is_not_finite_stays_in_its_tensor():
    joined = jnp.array([1.0, jnp.nan, jnp.inf, 2.0])
    for a, b in zip(cut(joined, [()] * 4), joined, strict=True):
        assert np.array_equal(a, b, equal_nan=True)


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (), (0, 4), (5,)], [(0,), (0, 2)]])
def test_sums_and_maxima_of_each_tensor_are_those_of_its_own_elements(shapes):
    arrays = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    tensors, x = Tensors(shapes), join(arrays, shapes)
    assert np.allclose(tensors.total(x), [a.sum() for a in arrays], rtol=1e-6, atol=1e-6)
    assert np.array_equal(tensors.largest(x), [max(a.max(initial=0.0), 0.0) for a in arrays])
    everywhere = jnp.broadcast_to(tensors.spread(jnp.arange(1.0, len(shapes) + 1)), x.shape)
    for i, part in enumerate(split(everywhere, shapes)):
        assert np.array_equal(part, np.full(shapes[i], i + 1.0))


@pytest.mark.parametrize("together", [0, 3, math.inf])
def test_each_tensor_gets_its_own_numbers_and_keeps_its_dtype(together):
    params = {"a": jnp.ones(2), "b": jnp.ones(3, jnp.bfloat16), "c": jnp.ones(4)}
    double = lambda tensors, elements, numbers: ([2 * elements[0]], [numbers[0] + tensors.total(elements[0])])
    (doubled, same), (totals,) = in_batches(double, [params, params], [jnp.array([10.0, 20.0, 30.0])], together)
    assert jax.tree.map(lambda p: p.dtype, doubled) == jax.tree.map(lambda p: p.dtype, params)
    assert np.array_equal(totals, [12.0, 23.0, 34.0])
    assert np.array_equal(same["c"], params["c"])
    assert np.array_equal(doubled["c"], 2 * params["c"])
    nothing, (none,) = in_batches(double, [{}], [jnp.zeros(0)])
    assert (nothing, none.shape) == ([{}], (0,))


def test_each_tensor_keeps_as_many_memories_as_it_is_due():
    """A rule that counts its steps in two memories a tensor, and adds what it counted to the gradient."""
    extent = lambda shape: 2 if shape else 1

    def step(tensors, memory, g):
        memory = memory + 1.0
        ends = np.cumsum([extent(shape) for shape in tensors.shapes])
        return memory, g + tensors.spread(memory[ends - 1])

    tx = scale_by_rows(jnp.zeros, extent, step)
    params = {"w": jnp.ones((2, 3)), "s": jnp.array(2.0), "v": jnp.zeros(3)}
    state = tx.init(params)
    assert state.memory.shape == (5,)
    for t in (1, 2):
        updates, state = tx.update(params, state)
        for name, p in params.items():
            assert np.array_equal(updates[name], p + t)


def test_small_tensors_go_together_and_large_ones_alone(theta, config, monkeypatch):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(7), "c": jnp.array(1.0), "d": jnp.ones((0, 4))}
    grads = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape), params)
    seen = []
    for limit, wanted in ((4096, 1), (7, 2), (0, 4)):
        monkeypatch.setattr("mnemosyne.optimizer.packing.SMALL", limit)
        assert len(batches(jax.tree.leaves(params), [False] * 4, limit)) == wanted
        tx = from_rule(theta, odd_rule(config), scale_by_tensor_rms())
        state = tx.init(params)
        for _ in range(2):
            updates, state = jax.jit(tx.update)(grads, state)
        seen.append((updates, state))
    for other in seen[1:]:
        for a, b in zip(*map(jax.tree.leaves, (seen[0], other)), strict=True):
            assert np.allclose(a, b, rtol=1e-4, atol=1e-7)
