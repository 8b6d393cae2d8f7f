from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.memory.layers import layer_norm
from mnemosyne.optimizer.rule import COORDINATE, LIGHT, log_sign
from tests import helpers
from tests.helpers import rule_of
from tests.helpers import run_rule as run


def gradients(seed, *shape):
    values, sizes = helpers.normal(seed, 2, *shape)
    return values * np.exp(2 * sizes)


def test_log_sign_is_the_papers_preprocessing():
    g = np.array([0.0, 1e-6, -1e-6, np.exp(-10.0) * 1.01, -0.3, 1.0, 50.0], np.float32)
    even, odd = log_sign(jnp.asarray(g), 10.0)
    wanted = np.array([helpers.log_sign(x, 10.0) for x in g])
    assert np.allclose(even[:, 0], wanted[:, 0], atol=1e-6)
    assert np.allclose(odd[:, 0], wanted[:, 1], atol=1e-6)


def test_log_sign_has_finite_gradients_at_zero():
    for part in (0, 1):
        slope = jax.jit(jax.grad(lambda g, part=part: log_sign(g, 10.0)[part].sum()))(np.zeros(3, np.float32))
        assert jnp.isfinite(slope).all()


def test_odd_to_the_last_bit(config, theta):
    rule, g = rule_of(config), gradients(1, 12, 5)
    _, u = run(rule, theta, rule.state((5,)), g)
    _, minus = run(rule, theta, rule.state((5,)), -g)
    assert np.array_equal(np.asarray(u), -np.asarray(minus))
    assert np.abs(u).max() > 0


def test_no_gradient_no_update(config, theta):
    rule = rule_of(config)
    _, u = run(rule, theta, rule.state((3,)), np.zeros((10, 3), np.float32))
    assert not np.any(u)


def test_window_equals_steps_from_any_state(config, theta):
    rule, g = rule_of(config), gradients(2, 40, 4)
    state, _ = run(rule, theta, rule.state((4,)), g[:20])
    _, u = run(rule, theta, state, g[20:])
    assert np.allclose(rule.window(theta, state, g[20:]), u, rtol=1e-3, atol=1e-8)


def test_every_coordinate_is_alone(config, theta):
    """Permuting coordinates permutes updates; one coordinate's gradient moves no other."""
    rule, g = rule_of(config), gradients(3, 6, 4)
    u = np.asarray(run(rule, theta, rule.state((4,)), g)[1])
    order = np.array([2, 0, 3, 1])
    _, permuted = run(rule, theta, rule.state((4,)), g[:, order])
    assert np.allclose(permuted, u[:, order], rtol=1e-5, atol=1e-9)
    changed = g.copy()
    changed[:, 0] = 7.0
    other = np.asarray(run(rule, theta, rule.state((4,)), changed)[1])
    assert np.allclose(other[:, 1:], u[:, 1:], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 3, 4)])
def test_any_shape_is_a_batch(config, theta, shape):
    rule = rule_of(config)
    g = helpers.normal(0, 1, *shape)[0]
    u = np.asarray(rule.step(theta, rule.state(shape), g)[1])
    assert u.shape == shape
    one = jax.jit(jax.vmap(lambda x: rule.step(theta, rule.state(()), x)[1]))
    assert np.allclose(u.reshape(-1), one(g.reshape(-1)), rtol=1e-4, atol=1e-9)


def test_state_does_not_grow(config, theta):
    rule = rule_of(config)
    before = rule.state((2,))
    after, _ = run(rule, theta, before, gradients(0, 50, 2))
    assert [a.shape for a in jax.tree.leaves(after)] == [b.shape for b in jax.tree.leaves(before)]
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(after))


def test_state_size_by_hand():
    """First encoder: content of 2 and Ψ, 32 features each; second: content of d = 16."""
    numbers = sum(a.size for a in jax.tree.leaves(rule_of(COORDINATE).state(())))
    assert numbers == 32 * (2 + 1) + 32 * (16 + 1)


@partial(jax.jit, static_argnums=0)
def slope_of(rule, theta, g):
    return jax.grad(lambda t: rule.window(t, rule.state((3,)), g).sum())(theta)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 1e4, 1e30])
def test_gradients_through_the_rule_are_finite(config, theta, size):
    rule = rule_of(config)
    g = np.float32(size) * gradients(5, 20, 3)
    slope = slope_of(rule, theta, g)
    assert all(np.isfinite(s).all() for s in jax.tree.leaves(slope))


def test_meta_gradient_three_ways():
    """Window, recurrence, finite differences in float64."""
    with jax.enable_x64(True):
        rule = rule_of(LIGHT)
        double = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64), tree)
        theta, state = double(rule.init(jax.random.key(0))), double(rule.state((5,)))
        g = double(gradients(6, 8, 5))
        loss = lambda t: 1e3 * jnp.sum(rule.window(t, state, g) ** 2)
        slow = lambda t: 1e3 * jnp.sum(jax.lax.scan(lambda s, x: rule.step(t, s, x), state, g)[1] ** 2)
        loss, slow = jax.jit(loss), jax.jit(slow)
        a, b = jax.jit(jax.grad(loss))(theta), jax.jit(jax.grad(slow))(theta)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert np.allclose(x, y, rtol=1e-5, atol=1e-9)
        for path in (("head", "out"), ("embed", "odd")):
            leaf = theta[path[0]][path[1]]
            nudge = np.zeros(leaf.size)
            nudge[1] = 1e-6
            nudge = nudge.reshape(leaf.shape)
            change = lambda s, path=path, leaf=leaf, nudge=nudge: {
                **theta, path[0]: {**theta[path[0]], path[1]: leaf + s * nudge}
            }  # fmt: skip
            finite = (loss(change(1)) - loss(change(-1))) / 2e-6
            assert np.isclose(a[path[0]][path[1]].reshape(-1)[1], finite, rtol=1e-4)


def test_layer_norm():
    x = jax.random.normal(jax.random.key(0), (3, 8)) * 5 + 2
    y = np.asarray(layer_norm(x))
    assert np.allclose(y.mean(-1), 0, atol=1e-5)
    assert np.allclose(y.var(-1), 1, atol=1e-3)
    assert jnp.isfinite(jax.grad(lambda z: layer_norm(z).sum())(jnp.zeros(4))).all()
