import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.coordinate import COORDINATE, LIGHT, coordinate_rule, layer_norm, log_sign
from tests import helpers


def run(rule, theta, state, gradients):
    """Step by step, in one compiled loop."""
    return jax.jit(lambda s, g: jax.lax.scan(lambda s, x: rule.step(theta, s, x), s, g))(state, gradients)


def gradients(seed, *shape):
    values, sizes = jax.random.normal(jax.random.key(seed), (2, *shape))
    return values * jnp.exp(2 * sizes)


def test_log_sign_is_the_papers_preprocessing():
    g = np.array([0.0, 1e-6, -1e-6, np.exp(-10.0) * 1.01, -0.3, 1.0, 50.0], np.float32)
    even, odd = log_sign(jnp.asarray(g), 10.0)
    wanted = np.array([helpers.log_sign(x, 10.0) for x in g])
    assert np.allclose(even[:, 0], wanted[:, 0], atol=1e-6)
    assert np.allclose(odd[:, 0], wanted[:, 1], atol=1e-6)


def test_log_sign_has_finite_gradients_at_zero():
    for part in (0, 1):
        slope = jax.grad(lambda g, part=part: log_sign(g, 10.0)[part].sum())(jnp.zeros(3))
        assert jnp.isfinite(slope).all()


def test_odd_to_the_last_bit(config, theta):
    rule, g = coordinate_rule(config), gradients(1, 12, 5)
    _, u = run(rule, theta, rule.state((5,)), g)
    _, minus = run(rule, theta, rule.state((5,)), -g)
    assert np.array_equal(np.asarray(u), -np.asarray(minus))
    assert np.abs(u).max() > 0


def test_no_gradient_no_update(config, theta):
    rule = coordinate_rule(config)
    _, u = run(rule, theta, rule.state((3,)), jnp.zeros((10, 3)))
    assert not u.any()


def test_window_equals_steps_from_any_state(config, theta):
    rule, g = coordinate_rule(config), gradients(2, 30, 4)
    state, _ = run(rule, theta, rule.state((4,)), g[:10])
    _, u = run(rule, theta, state, g[10:])
    assert np.allclose(rule.window(theta, state, g[10:]), u, rtol=1e-3, atol=1e-8)


def test_every_coordinate_is_alone(config, theta):
    """Permuting coordinates permutes updates; one coordinate's gradient moves no other."""
    rule, g = coordinate_rule(config), gradients(3, 6, 4)
    _, u = run(rule, theta, rule.state((4,)), g)
    order = jnp.array([2, 0, 3, 1])
    _, permuted = run(rule, theta, rule.state((4,)), g[:, order])
    assert np.allclose(permuted, u[:, order], rtol=1e-5, atol=1e-9)
    _, other = run(rule, theta, rule.state((4,)), g.at[:, 0].set(7.0))
    assert np.allclose(other[:, 1:], u[:, 1:], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 3, 4)])
def test_any_shape_is_a_batch(config, theta, shape):
    rule = coordinate_rule(config)
    g = jax.random.normal(jax.random.key(0), shape)
    _, u = rule.step(theta, rule.state(shape), g)
    assert u.shape == shape
    one = jax.jit(jax.vmap(lambda x: rule.step(theta, rule.state(()), x)[1]))
    assert np.allclose(u.reshape(-1), one(g.reshape(-1)), rtol=1e-4, atol=1e-9)


def test_state_does_not_grow(config, theta):
    rule = coordinate_rule(config)
    before = rule.state((2,))
    after, _ = run(rule, theta, before, gradients(0, 50, 2))
    assert [a.shape for a in jax.tree.leaves(after)] == [b.shape for b in jax.tree.leaves(before)]
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(after))


def test_state_size_by_hand():
    """First encoder: content of 2 and Ψ, 32 features each; second: content of d = 16."""
    numbers = sum(a.size for a in jax.tree.leaves(coordinate_rule(COORDINATE).state(())))
    assert numbers == 32 * (2 + 1) + 32 * (16 + 1)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 1e4, 1e30])
def test_gradients_through_the_rule_are_finite(config, theta, size):
    rule = coordinate_rule(config)
    g = size * gradients(5, 20, 3)
    slope = jax.jit(jax.grad(lambda t: rule.window(t, rule.state((3,)), g).sum()))(theta)
    assert all(jnp.isfinite(s).all() for s in jax.tree.leaves(slope))


def test_meta_gradient_three_ways():
    """Window, recurrence, finite differences in float64."""
    with jax.enable_x64(True):
        rule = coordinate_rule(LIGHT)
        theta = jax.tree.map(lambda a: a.astype(jnp.float64), rule.init(jax.random.key(0)))
        g = gradients(6, 8, 5).astype(jnp.float64)
        state = jax.tree.map(lambda a: a.astype(jnp.float64), rule.state((5,)))
        loss = lambda t: 1e3 * jnp.sum(rule.window(t, state, g) ** 2)
        slow = lambda t: 1e3 * jnp.sum(jax.lax.scan(lambda s, x: rule.step(t, s, x), state, g)[1] ** 2)
        loss, slow = jax.jit(loss), jax.jit(slow)
        a, b = jax.jit(jax.grad(loss))(theta), jax.jit(jax.grad(slow))(theta)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert np.allclose(x, y, rtol=1e-5, atol=1e-9)
        for path in (("head", "out"), ("embed", "odd")):
            leaf = theta[path[0]][path[1]]
            nudge = jnp.zeros_like(leaf).reshape(-1).at[1].set(1e-6).reshape(leaf.shape)
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
