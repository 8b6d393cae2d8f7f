import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne import store
from mnemosyne.coordinate import Config, coordinate_rule
from mnemosyne.metatrain import MetaConfig, Rollout, Trainer, meta_train, read_log, sample_coordinates
from mnemosyne.optimizer import scale_by_tensor_rms
from mnemosyne.types import Task

SMALL = Config(hidden=4, projections=4, encoders=1, feedforward=6)
META = MetaConfig(iterations=8, horizon=10, window=5, warmup=2, coordinates=16, replicas=2)


def quadratic(name, size):
    """A noisy quadratic bowl: a task whose gradients can be written down."""

    def batch(data, key):
        return data + 0.1 * jax.random.normal(key, data.shape)

    loss = lambda params, target: jnp.mean((params["x"] - target) ** 2) + 0.1
    init = lambda key: {"x": jax.random.normal(key, (size,))}
    return Task(name, jnp.arange(size, dtype=jnp.float32), init, batch, loss, lambda params, data: {})


TASKS = (quadratic("small", 3), quadratic("large", 7))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    theta, log = meta_train(coordinate_rule(SMALL), TASKS, META, folder=folder, chunk=2)
    return folder, theta, log


def test_log_and_files(whole):
    folder, theta, log = whole
    assert [row["iteration"] for row in log] == [2, 4, 6, 8]
    assert [row["iteration"] for row in read_log(folder)] == [2, 4, 6, 8]
    assert all(np.isfinite(row["loss"]) and row["skipped"] == 0 for row in log)
    saved = store.load_tree(folder / "theta-000008.safetensors", theta)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (theta, saved)), strict=True))


def test_a_killed_run_ends_in_the_same_bits(whole, tmp_path, monkeypatch):
    """Checkpoint every chunk, die after two, go on: θ is bit-identical and the log has no row twice."""
    monkeypatch.setattr("mnemosyne.metatrain.SAVE_EVERY", 2)

    class Killed(Exception):
        pass

    def die(row):
        if row["iteration"] == 6:
            raise Killed

    with pytest.raises(Killed):
        meta_train(coordinate_rule(SMALL), TASKS, META, folder=tmp_path, report=die, chunk=2)
    with (tmp_path / "log.jsonl").open("a") as f:
        f.write('{"iteration": 99, "lo')  # a line that the crash cut short
    theta, log = meta_train(coordinate_rule(SMALL), TASKS, META, folder=tmp_path, chunk=2)
    assert [row["iteration"] for row in log] == [2, 4, 6, 8]
    for a, b in zip(jax.tree.leaves(theta), jax.tree.leaves(whole[1]), strict=True):
        assert np.array_equal(a, b)
    drop = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert drop(log) == drop(whole[2])


def test_a_folder_of_another_run_is_refused(whole):
    with pytest.raises(ValueError, match="another configuration"):
        meta_train(coordinate_rule(SMALL), TASKS, replace(META, seed=1), folder=whole[0], chunk=2)


@pytest.mark.parametrize(("change", "message"), [({"window": 3}, "window 3"), ({"iterations": 7}, "chunk 2")])
def test_sizes_that_do_not_divide_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        meta_train(coordinate_rule(SMALL), TASKS, replace(META, **change), chunk=2)


@pytest.fixture
def all_coordinates(monkeypatch):
    """Each coordinate once, instead of a random draw: TASKS[0] has 2 replicas × 3 parameters."""
    everyone = lambda key, ahead, n: (jnp.arange(n), jnp.full(n, 1 / ahead.shape[1]))
    monkeypatch.setattr("mnemosyne.metatrain.sample_coordinates", everyone)
    return {"coordinates": 6}


def trainer(**change):
    config = replace(META, **{"coordinates": 1000, **change})
    return Trainer(coordinate_rule(SMALL), TASKS[:1], config, scale_by_tensor_rms())


def test_factorised_gradient_is_truncated_backpropagation(all_coordinates):
    """∇_θ of the window's mean loss, by differentiating through the unrolled run with the optimizee's gradients
    held constant as functions of θ, equals the factorised one on all coordinates, up to the task's weight."""
    t = trainer(imitation=0.0, imitation_warmup=0.0, scaling=0.0, **all_coordinates)
    task, theta = t.tasks[0], t.start().theta
    slots = t.fresh(task, jax.random.key(3))
    key = jax.random.key(4)
    _, rollout = jax.jit(lambda s: t.rollout(task, task.data, theta, s, key))(slots)
    factorised = jax.grad(lambda th: t.meta_loss(th, [slots.memory], [rollout], key, jnp.array(0.0))[0])(theta)

    def unrolled(theta):
        keys = jax.random.split(key, META.window + 1)
        x, memory, total = slots.x, slots.memory, 0.0
        for i in range(META.window + 1):
            batch_keys = jax.random.split(keys[i], META.replicas)
            loss = jax.vmap(lambda z, k: task.loss({"x": z}, task.batch(task.data, k)))(x, batch_keys)
            if i:
                total = total + loss.mean()
            if i < META.window:
                memory, u = t.rule.step(theta, memory, rollout.inputs[i])  # inputs as constants
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
    u = t.rule.window(theta, slots.memory, rollout.inputs)
    pleased = rollout._replace(expert=u)
    for r, wanted in ((pleased, 0.0), (rollout, float(jnp.mean((u - rollout.expert) ** 2) / META.expert_rate**2))):
        _, imitation = t.meta_loss(theta, [slots.memory], [r], jax.random.key(0), jnp.array(1.0))
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
    t = Trainer(coordinate_rule(SMALL), (explosive,), META, scale_by_tensor_rms())
    carry, measured = jax.jit(lambda c: t.iterate(c, (explosive.data,)))(t.start())
    assert float(measured["failed"]) == 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(carry.theta))


def test_golden_three_meta_steps():
    """Committed with tests/golden/make_golden.py, which says how to renew it."""
    from tests.golden.make_golden import PATH, three_steps

    wanted = json.loads(PATH.read_text())
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
    assert rollout.inputs.shape == rollout.expert.shape == (5, 2, 3)
    assert [int(a) for a in after.age] == [5, 5]
