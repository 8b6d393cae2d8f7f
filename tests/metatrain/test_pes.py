from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.metatrain.loop import meta_train
from mnemosyne.metatrain.pes import PES, WORST, PESConfig, clipped_mean, renew_pairs, stored
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.sizes import scale_by_tensor_rms
from mnemosyne.optimizer.transform import from_rule
from mnemosyne.types import Learned, Task
from tests.helpers import check_resumed


def bowl(name, steepness):
    """A noisy quadratic bowl, x ∈ R^3."""

    def batch(data, key):
        return 0.1 * jax.random.normal(key, data.shape)

    loss = lambda params, noise: 0.5 * steepness * jnp.sum((params["x"] - noise) ** 2) + 1e-3
    init = lambda key: {"x": 1.0 + 0.1 * jax.random.normal(key, (3,))}
    return Task(name, jnp.zeros(3), init, batch, loss, lambda params, data: {})


# A learned optimizer of one weight: the logarithm of SGD's rate, far too small at first.
LOG_RATE = Learned(lambda key: {"log_rate": jnp.float32(-6.0)}, lambda theta: optax.sgd(jnp.exp(theta["log_rate"])))
CONFIG = PESConfig(iterations=8, horizons=(10, 20), window=5, pairs=4, sigma=0.1, learning_rate=0.3, clip=1.0)


def evolution(**change):
    return PES(LOG_RATE, (bowl("flat", 1.0), bowl("steep", 2.0)), replace(CONFIG, **change))


def test_it_finds_a_learning_rate():
    theta, log = meta_train(evolution(iterations=60))
    assert -2.5 < float(theta["log_rate"]) < 0.5  # the best is near −log 2, and at log 1 the steep bowl diverges
    assert log[-1]["loss"] < log[0]["loss"]


def test_one_window_is_the_antithetic_estimate():
    """With fresh runs, the estimate is (ε/2σ²)(L⁺ − L⁻), each L a run of its own from the same start."""
    e = evolution(pairs=1)
    task, theta = e.tasks[0], {"log_rate": jnp.float32(-2.0)}
    old = e.fresh(task, theta, jax.random.key(1))
    key = jax.random.key(2)
    new, gradient, *_ = e.estimate(task, task.data, theta, old, key)
    noise = float(new.perturbation["log_rate"][0])
    run_key = jax.random.split(jax.random.split(key)[1], 1)[0]
    losses = []
    for sign in (1, -1):
        start = jax.tree.map(lambda a: a[0, 0], (old.params, old.state))
        moved = {"log_rate": theta["log_rate"] + sign * noise}
        losses.append(float(e.advance(task, task.data, moved, *start, jnp.int32(10), run_key)[2].mean()))
    wanted = noise * np.log(losses[0] / losses[1]) / (2 * 0.1**2)
    assert np.isclose(float(gradient["log_rate"]), wanted, rtol=1e-3)


def test_perturbations_add_up_until_a_run_is_over():
    e = evolution(horizons=(10,))
    step = jax.jit(lambda c: e.iterate(c, tuple(t.data for t in e.tasks))[0])
    carry, ages = e.start(), []
    for _ in range(3):
        carry = step(carry)
        ages.append([int(a) for a in carry.slots[0].age])
    assert ages == [[5, 5, 10, 10], [10, 10, 5, 5], [5, 5, 10, 10]]
    # A pair in its second window has two perturbations added up, one in its first has the latest alone.
    task, theta = e.tasks[0], {"log_rate": jnp.float32(-2.0)}
    first, *_ = e.estimate(task, task.data, theta, e.fresh(task, theta, jax.random.key(0)), jax.random.key(1))
    later = lambda old: np.asarray(
        e.estimate(task, task.data, theta, old, jax.random.key(2))[0].perturbation["log_rate"]
    )
    alone = later(e.fresh(task, theta, jax.random.key(0)))
    assert np.allclose(later(first), np.asarray(first.perturbation["log_rate"]) + alone, atol=1e-6)


def test_what_is_over_starts_anew():
    e = evolution()
    theta, task = {"log_rate": jnp.float32(-2.0)}, e.tasks[0]
    old, fresh = (e.fresh(task, theta, jax.random.key(i)) for i in (0, 1))
    over = jnp.array([True, False, True, False])
    mixed = renew_pairs(old, fresh, over)
    for field in mixed._fields:
        pair_axis = 1 if field in ("params", "state") else 0
        now, new, was = (jax.tree.leaves(getattr(pairs, field)) for pairs in (mixed, fresh, old))
        for a, b, c in zip(now, new, was, strict=True):
            assert np.array_equal(np.take(a, [0, 2], pair_axis), np.take(b, [0, 2], pair_axis))
            assert np.array_equal(np.take(a, [1, 3], pair_axis), np.take(c, [1, 3], pair_axis))
    assert not np.array_equal(fresh.params["x"][:, 0], old.params["x"][:, 0])


def test_the_mean_estimate_is_the_gradient_over_the_whole_horizon():
    """Mean over many pairs against a central difference of the mean objective, two windows long."""
    e = evolution(pairs=4000, sigma=0.05)
    task, theta = e.tasks[0], {"log_rate": jnp.float32(-2.0)}

    @jax.jit
    def two(key):
        a, b, c = jax.random.split(key, 3)
        first, g1, *_ = e.estimate(task, task.data, theta, e.fresh(task, theta, a), b)
        _, g2, *_ = e.estimate(task, task.data, theta, first, c)
        return g1["log_rate"] + g2["log_rate"]

    @jax.jit
    def objective(log_rate, key):
        a, b, c = jax.random.split(key, 3)
        start = e.fresh(task, theta, a)
        params, state = jax.tree.map(lambda x: x[0], (start.params, start.state))
        total = 0.0
        for k in (b, c):
            run = lambda p, s, k: e.advance(task, task.data, {"log_rate": log_rate}, p, s, jnp.int32(10), k)
            params, state, losses = jax.vmap(run)(params, state, jax.random.split(k, 4000))
            total += jnp.mean(jnp.log(losses.mean(axis=1) / start.first))
        return total

    key = jax.random.key(5)
    exact = (objective(-2.0 + 0.05, key) - objective(-2.0 - 0.05, key)) / 0.1
    estimates = jnp.stack([two(k) for k in jax.random.split(key, 8)])
    half = 4 * float(estimates.std(ddof=1)) / 8**0.5
    assert abs(float(estimates.mean() - exact)) < half + 0.03 * abs(float(exact))
    assert half < 0.3 * abs(float(exact))  # or the check says nothing


def test_a_lost_run_counts_as_the_worst():
    e, theta = evolution(), {"log_rate": jnp.float32(9.0)}
    task = e.tasks[0]
    old = e.fresh(task, theta, jax.random.key(0))
    for _ in range(3):
        old, gradient, score, lost = e.estimate(task, task.data, theta, old, jax.random.key(1))
    assert (score == WORST).all()
    assert lost.all()
    assert float(gradient["log_rate"]) == 0.0


def test_a_window_that_does_not_divide_a_horizon_is_refused():
    with pytest.raises(ValueError, match="window 5 does not divide horizon 12"):
        PESConfig(horizons=(10, 12), window=5)


def test_a_killed_evolution_ends_in_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(PES, "chunk", 2)
    monkeypatch.setattr(PES, "save_every", 2)
    check_resumed(evolution(), tmp_path, die_at=4)


def test_projections_are_neither_perturbed_nor_trained():
    rule = odd_rule(Config(hidden=4, projections=4, encoders=1, feedforward=6))
    learned = Learned(rule.init, lambda theta: from_rule(theta, rule, scale_by_tensor_rms()))
    e = evolution()._replace(learned=learned)
    carry = e.start()
    after, _ = jax.jit(lambda c: e.iterate(c, tuple(t.data for t in e.tasks)))(carry)
    memory, trained = (c.theta["encoders"][0]["memory"] for c in (carry, after))
    assert np.array_equal(memory["omega"], trained["omega"])
    assert not np.array_equal(memory["value"], trained["value"])


# A learned optimizer whose state starts from a weight: each step it adds `pull`, which it keeps from its start.
KEPT = Learned(
    lambda key: {"pull": jnp.float32(-0.01)},
    lambda theta: optax.GradientTransformation(
        lambda params: jnp.asarray(theta["pull"]),
        lambda g, kept, params=None: (jax.tree.map(lambda a: jnp.broadcast_to(kept, a.shape), g), kept),
    ),
)


def test_what_a_state_starts_from_is_perturbed_and_learned():
    e = evolution(learning_rate=0.05)._replace(learned=KEPT)
    theta, _ = meta_train(e._replace(config=replace(e.config, iterations=40)))
    assert float(theta["pull"]) < -0.05  # the bowls' floor is at 0, where twenty steps from 1 lead at this pull


def test_losses_above_the_first_count_as_it():
    losses = jnp.array([0.5, 3.0, jnp.nan, 1.5, jnp.inf])
    score, lost = clipped_mean(losses, jnp.float32(2.0))
    assert np.isclose(float(score), (0.5 + 2.0 + 2.0 + 1.5 + 2.0) / 5)
    assert float(lost) == 2.0
    assert float(clipped_mean(jnp.full(3, jnp.nan), jnp.float32(2.0))[0]) == 2.0


def test_stored_parameters_are_those_of_the_same_function():
    """Each run has a factor of its own, and the loss of what is stored is that of the parameters themselves."""
    e = evolution(scaling=2.0)
    task = e.tasks[0]
    pairs = e.fresh(task, {"log_rate": jnp.float32(-2.0)}, jax.random.key(3))
    assert np.ptp(np.log(pairs.scale)) > 0.1
    assert (np.abs(np.log(pairs.scale)) <= 2.0).all()
    plain = np.asarray(pairs.params["x"][0] / pairs.scale[:, None])
    assert np.allclose(plain, 1.0, atol=0.5)
    batch = task.batch(task.data, jax.random.key(0))
    for i, by in enumerate(pairs.scale):
        of_stored = stored(task, by).loss({"x": pairs.params["x"][0, i]}, batch)
        assert np.isclose(float(of_stored), float(task.loss({"x": plain[i]}, batch)), rtol=1e-5)


def test_ages_are_spread_over_long_horizons():
    e = evolution(horizons=(1000,), window=5, pairs=4)
    ages = np.concatenate([np.asarray(pairs.age) for pairs in e.start().slots])
    assert sorted(ages) == [0, 125, 250, 375, 500, 625, 750, 875]


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="unknown objective 'mean'; choose one of log, loss"):
        PESConfig(objective="mean")
