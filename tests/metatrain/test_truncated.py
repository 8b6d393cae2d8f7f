import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.metatrain.students import by_coordinate, sample_coordinates, whole
from mnemosyne.metatrain.truncated import MetaConfig, Rollout, Truncated
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.sizes import scale_by_tensor_rms
from mnemosyne.optimizer.transform import from_rule
from mnemosyne.types import Learned
from tests.helpers import quadratic

SMALL = Config(hidden=4, projections=4, encoders=1, feedforward=6)
META = MetaConfig(iterations=8, horizon=10, window=5, warmup=2, coordinates=16, replicas=2)


TASKS = (quadratic("small", 3), quadratic("large", 7))


@pytest.fixture
def all_coordinates(monkeypatch):
    """Each coordinate once, instead of a random draw: TASKS[0] has 2 replicas × 3 parameters."""
    everyone = lambda key, ahead, n: (jnp.arange(n), jnp.full(n, 1 / ahead.shape[1]))
    monkeypatch.setattr("mnemosyne.metatrain.students.sample_coordinates", everyone)
    return {"coordinates": 6}


RULE = odd_rule(SMALL)


def trainer(**change):
    config = replace(META, **{"coordinates": 1000, **change})
    return Truncated(by_coordinate(RULE, scale_by_tensor_rms(), config.coordinates), TASKS[:1], config)


def test_factorised_gradient_is_truncated_backpropagation(all_coordinates):
    """∇_θ of the window's mean loss, by differentiating through the unrolled run with the optimizee's gradients
    held constant as functions of θ, equals the factorised one on all coordinates, up to the task's weight."""
    t = trainer(imitation=0.0, imitation_warmup=0.0, scaling=0.0, **all_coordinates)
    task, theta = t.tasks[0], t.start().theta
    slots = t.fresh(task, jax.random.key(3))
    key = jax.random.key(4)
    _, rollout = jax.jit(lambda s: t.rollout(task, task.data, theta, s, key))(slots)
    factorised = jax.grad(lambda th: t.meta_loss(th, [slots.state], [rollout], key, jnp.array(0.0))[0])(theta)

    def unrolled(theta):
        keys = jax.random.split(key, META.window + 1)
        x, memory, total = slots.x, slots.state[0], 0.0
        for i in range(META.window + 1):
            batch_keys = jax.random.split(keys[i], META.replicas)
            loss = jax.vmap(lambda z, k: task.loss({"x": z}, task.batch(task.data, k)))(x, batch_keys)
            if i:
                total = total + loss.mean()
            if i < META.window:
                memory, u = RULE.step(theta, memory, rollout.seen[i])  # inputs as constants
                x = x + u
        return total * META.replicas / worth

    ahead = jnp.cumsum(rollout.gradients[:0:-1], axis=0)[::-1]
    worth = jnp.sum(jnp.abs(ahead * rollout.expert))
    # Σ_t f(x_t) to first order in the updates: its gradient at the rollout has G_s = Σ_{t>s} g_t, but `unrolled`
    # evaluates each g_t at the same x_t, so the two agree exactly.
    exact = jax.grad(unrolled)(theta)
    for a, b in zip(jax.tree.leaves(factorised), jax.tree.leaves(exact), strict=True):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-7)


def test_sampling_coordinates_is_unbiased():
    ahead, anything = jax.random.normal(jax.random.key(0), (2, 4, 9))
    ahead = ahead * jnp.arange(9.0)[None]

    def estimate(key):
        pick, chance = sample_coordinates(key, ahead, 3)
        return jnp.sum((ahead * anything).sum(0)[pick] / (3 * chance)), jnp.sum(anything[0][pick] / (3 * chance))

    keys = jax.random.split(jax.random.key(1), 20_000)
    for values, truth in zip(jax.vmap(estimate)(keys), (jnp.sum(ahead * anything), jnp.sum(anything[0])), strict=True):
        assert abs(float(values.mean() - truth)) < 4 * float(values.std()) / len(values) ** 0.5


def test_what_matters_is_drawn_more_often():
    ahead = jnp.ones((4, 100)).at[:, 7].set(100.0)
    pick, chance = sample_coordinates(jax.random.key(0), ahead, 1000)
    assert 0.2 < float((pick == 7).mean()) < 0.3  # ½ · 1/100 + ½ · 100/199
    assert np.allclose(chance[pick == 7], 0.005 + 50 / 199)
    assert float((1 / (100 * chance)).max()) <= 2.0
    _, uniform = sample_coordinates(jax.random.key(0), jnp.zeros((4, 10)), 5)
    assert np.allclose(uniform, 0.1)


def test_imitation_pulls_towards_the_expert(all_coordinates):
    t = trainer(**all_coordinates)
    theta, slots = t.start().theta, t.fresh(TASKS[0], jax.random.key(3))
    _, rollout = jax.jit(lambda s: t.rollout(TASKS[0], TASKS[0].data, theta, s, jax.random.key(4)))(slots)
    u = RULE.window(theta, slots.state[0], rollout.seen)
    pleased = rollout._replace(expert=u)
    for r, wanted in ((pleased, 0.0), (rollout, float(jnp.mean((u - rollout.expert) ** 2) / META.expert_rate**2))):
        _, imitation = t.meta_loss(theta, [slots.state], [r], jax.random.key(0), jnp.array(1.0))
        assert np.isclose(imitation, wanted, rtol=1e-4, atol=1e-9)


def test_the_expert_is_adam_on_the_same_gradients():
    t = trainer(scaling=0.0)
    slots = t.fresh(TASKS[0], jax.random.key(3))
    _, rollout = t.rollout(TASKS[0], TASKS[0].data, t.start().theta, slots, jax.random.key(4))
    adam, wanted = optax.adam(META.expert_rate), []
    state = adam.init(slots.x[0])
    for g in rollout.gradients[:-1, 0]:
        u, state = adam.update(g, state)
        wanted.append(u)
    assert np.allclose(rollout.expert[:, 0], jnp.stack(wanted), rtol=1e-5)


def test_random_scaling_leaves_the_network_as_it_was():
    t = trainer(scaling=1.0)
    slots = t.fresh(TASKS[0], jax.random.key(3))
    ratio = np.asarray(slots.scale)
    assert ratio.min() > np.exp(-1) - 1e-6
    assert ratio.max() < np.exp(1) + 1e-6
    plain = trainer(scaling=0.0).fresh(TASKS[0], jax.random.key(3))
    assert np.allclose(slots.x * slots.scale, plain.x, rtol=1e-5)


def test_finished_and_failed_runs_start_afresh():
    t = trainer()
    carry = t.start()
    assert sorted(int(a) for a in carry.slots[0].age) == [0, 5]
    after, _ = jax.jit(lambda c: t.iterate(c, (TASKS[0].data,)))(carry)
    assert sorted(int(a) for a in after.slots[0].age) == [5, 10]
    broken = after._replace(slots=(after.slots[0]._replace(failed=jnp.array([True, False])),))
    again, _ = jax.jit(lambda c: t.iterate(c, (TASKS[0].data,)))(broken)
    assert [int(a) for a in again.slots[0].age] == [5, 5]  # one failed, the other had reached the horizon


def test_a_run_that_blows_up_is_counted_and_skipped():
    explosive = TASKS[0]._replace(loss=lambda params, target: jnp.sum(params["x"]) * jnp.nan)
    t = trainer()._replace(tasks=(explosive,))
    carry, measured = jax.jit(lambda c: t.iterate(c, (explosive.data,)))(t.start())
    assert float(measured["failed"]) == 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(carry.theta))


def test_golden_three_meta_steps():
    """Committed with tests/golden/make_golden.py, which says how to renew it."""
    from tests.golden.make_golden import PATH, three_steps

    wanted = json.loads(PATH.read_text(encoding="utf-8"))
    got = three_steps()
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.allclose(got[name], value, rtol=2e-3, atol=1e-6), name


def test_rollout_shapes():
    t = trainer()
    slots = t.fresh(TASKS[0], jax.random.key(0))
    after, rollout = t.rollout(TASKS[0], TASKS[0].data, t.start().theta, slots, jax.random.key(1))
    assert isinstance(rollout, Rollout)
    assert rollout.losses.shape == (6, 2)
    assert rollout.gradients.shape == (6, 2, 3)
    assert rollout.seen.shape == rollout.expert.shape == (5, 2, 3)
    assert [int(a) for a in after.age] == [5, 5]


def test_any_other_optimizer_is_replayed_whole(all_coordinates):
    """`whole` on a coordinate-wise optimizer gives the gradient that `by_coordinate` gives on all coordinates."""
    one = trainer(**all_coordinates)
    learned = Learned(RULE.init, lambda theta: from_rule(theta, RULE, scale_by_tensor_rms()))
    other = one._replace(student=whole(learned, META.horizon))
    theta, gradients, updates = one.start().theta, [], []
    for t in (one, other):
        slots = t.fresh(TASKS[0], jax.random.key(3))
        roll = jax.jit(lambda s, t=t: t.rollout(TASKS[0], TASKS[0].data, theta, s, jax.random.key(4)))
        after, rollout = roll(slots)
        loss = lambda th, t=t, s=slots, r=rollout: t.meta_loss(th, [s.state], [r], jax.random.key(0), jnp.array(1.0))[0]
        gradients.append(jax.jit(jax.grad(loss))(theta))
        updates.append(after.x - slots.x)
    assert np.allclose(*updates, atol=1e-7)
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-7)
