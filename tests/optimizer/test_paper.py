import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.memory.compact import cam
from mnemosyne.memory.recurrent import lstm, s4
from mnemosyne.optimizer.paper import paper_rule, stacked_rule, two_inputs
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.rule import Config, log_value
from tests.helpers import compiled, normal

SMALL = Config(hidden=4, projections=4, encoders=2, feedforward=6)
RULES = {
    "cam": paper_rule(SMALL),
    "s4": paper_rule(SMALL, s4(state=4)),
    "lstm": stacked_rule(lstm(hidden=5), layers=2, width=5),
    "stacked cam": stacked_rule(cam(projections=4), layers=3, width=6),
}
RULES = {name: compiled(rule) for name, rule in RULES.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_window_is_its_steps(name):
    rule = RULES[name]
    theta = rule.init(jax.random.key(0))
    g = normal(1, 10, 3)
    state, steps = rule.state((3,)), []
    for t, now in enumerate(g):
        if t == 5:
            begun = state
        state, u = rule.step(theta, state, now)
        steps.append(u)
    assert np.allclose(rule.window(theta, rule.state((3,)), g[:5]), np.stack(steps[:5]), atol=1e-6)
    assert np.allclose(rule.window(theta, begun, g[5:]), np.stack(steps[5:]), atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_coordinates_do_not_see_each_other(name):
    rule = RULES[name]
    theta = rule.init(jax.random.key(0))
    g = normal(1, 5, 2, 3)
    whole = np.asarray(rule.window(theta, rule.state((2, 3)), g))
    assert whole.shape == (5, 2, 3)
    alone = rule.window(theta, rule.state(()), g[:, 1, 2])
    assert np.allclose(whole[:, 1, 2], alone, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_first_updates_are_small_and_gradients_finite(name):
    rule = RULES[name]
    theta = rule.init(jax.random.key(0))
    g = np.array([[0.0, 1e-12, 1e-3, 1.0, 1e3, -1e3]] * 4, np.float32)

    def loss(theta):
        updates = rule.window(theta, rule.state((6,)), g)
        return jnp.sum(updates**2), updates

    gradient, updates = jax.jit(jax.grad(loss, has_aux=True))(theta)
    assert np.abs(updates).max() < 0.05
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_two_inputs_are_those_of_andrychowicz():
    g = jnp.array([0.0, 1.0, -np.e, np.exp(-10.0), 1e-6])
    wanted = [[-1, 0], [0, 1], [0.1, -1], [-1, 1], [-1, 1e-6 * np.exp(10)]]
    assert np.allclose(two_inputs(g, 10.0), wanted, atol=1e-6)


def test_log_value_keeps_the_gradient_itself():
    even, odd = log_value(jnp.array([0.5, -0.5, 7.0, 0.0]), 10.0)
    assert np.allclose(odd[:, 0], [0.5, -0.5, 3.0, 0.0])
    assert np.allclose(even[:2, 0], np.log(0.5) / 10)


@pytest.mark.parametrize("name", ["odd", "light", "normalised"])
def test_which_architectures_are_odd(name):
    learned = OPTIMIZERS[name].learned
    theta, g = jax.jit(learned.init)(jax.random.key(0)), normal(1, 3, 2)

    @jax.jit
    def update(g):
        tx = learned.make(theta)
        return tx.update(g, tx.init(g))[0]

    one, other = np.asarray(update(g)), np.asarray(update(-g))
    assert np.allclose(one, -other, atol=1e-9)
    assert np.abs(one).max() > 0
