from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.book.studies import variations
from mnemosyne.memory.compact import cam
from mnemosyne.memory.features import hyperbolic, orthogonal_projections, positive, relu
from mnemosyne.metatrain.truncated import MetaConfig
from tests.helpers import sequence
from tests.metatrain.test_truncated import TASKS

CONFIG = MetaConfig(iterations=4, horizon=10, window=5, warmup=2, coordinates=16)


def test_a_traced_choice_of_map_is_that_map():
    z, omega = sequence(0, 3, 4), sequence(1, 5, 4)
    maps = (positive, relu)
    for name in ("features", "query", "log_features"):
        taken = jax.vmap(lambda i, name=name: getattr(variations.one_map_of(maps, i), name)(z, omega))(jnp.arange(2))
        for got, phi in zip(taken, maps, strict=True):
            assert np.allclose(got, getattr(phi, name)(z, omega), rtol=1e-6)


def test_paired_projections_make_the_hyperbolic_map_of_the_positive():
    """Eq. 10 is Eq. 9 with ω and −ω, so one program has both."""
    omega, z = variations.paired_projections(jax.random.key(0), 8, 4), sequence(0, 3, 4)
    assert np.array_equal(omega[:4], orthogonal_projections(jax.random.key(0), 4, 4))
    assert np.allclose(positive.features(z, omega), hyperbolic.features(z, omega[:4]), rtol=1e-5)
    both = cam(projections=8, feature_map=positive, draw=variations.paired_projections), cam(projections=4)
    patterns, outs = sequence(1, 6, 4), []
    for memory in both:
        theta = memory.init(jax.random.key(3), 4, 4, 2)
        outs.append(memory.window(theta, memory.state((), 4, 4), patterns, patterns))
    assert np.allclose(*outs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", [variations.kernels(), variations.numbers((0.0, 0.1))], ids=["kernels", "numbers"])
def test_cases_differ_in_numbers_alone(choice):
    shapes, updates = [], []
    g = {"x": jnp.array([0.3, -0.2])}
    for numbers in choice.cases.values():
        run = choice.run(TASKS[:1], CONFIG, **numbers)
        theta = run.start().theta
        shapes.append(jax.tree.map(lambda a: (a.shape, a.dtype), theta))
        tx = choice.make(theta, **numbers)
        _, state = tx.update(g, tx.init(g))
        updates.append(tuple(np.asarray(tx.update(jax.tree.map(jnp.negative, g), state)[0]["x"]).tolist()))
    assert all(s == shapes[0] for s in shapes)
    distinct = len(updates) - ("redrawn projections" in choice.cases)  # which starts as λ = 0.1 does
    assert len(set(updates)) == distinct


def test_redrawing_draws_once_a_horizon_and_starts_afresh():
    of = variations.numbers((0.1,))
    config = replace(CONFIG, learning_rate=0.0)
    runs = [of.run(TASKS[:1], config, discount=0.1, draw=0, redrawn=flag) for flag in (0, 1)]
    omegas, ages = ([], []), ([], [])
    for run, seen, aged in zip(runs, omegas, ages, strict=True):
        carry, step = run.start(), jax.jit(lambda c, run=run: run.iterate(c, (TASKS[0].data,))[0])
        for _ in range(3):
            carry = step(carry)
            seen.append(np.asarray(carry.theta["encoders"][0]["memory"]["omega"]))
            aged.append(int(carry.slots[0].age[0]))
    fixed, redrawn = omegas
    assert np.array_equal(fixed[0], fixed[2])
    assert not np.array_equal(redrawn[0], fixed[0])
    assert np.array_equal(redrawn[0], redrawn[1])  # windows 1 and 2 are one horizon
    assert not np.array_equal(redrawn[1], redrawn[2])
    assert ages[1] == [5, 10, 5]


def test_inputs_that_are_not_shown_change_nothing():
    g, params = {"x": jnp.array([0.3, -0.2])}, {"x": jnp.array([1.0, 2.0])}
    other = jax.tree.map(lambda p: p + 1.0, params)
    for shown, blind in (((1.0, 1.0, 1.0), False), ((1.0, 1.0, 0.0), True)):
        learned = variations.seeing(jnp.array(shown))
        tx = learned.make(learned.init(jax.random.key(0)))
        u, _ = tx.update(g, tx.init(params), params)
        v, _ = tx.update(g, tx.init(params), other)
        assert np.array_equal(u["x"], v["x"]) == blind


def test_the_running_mean_is_adams():
    learned = variations.seeing(jnp.ones(3))
    tx, params = learned.make(learned.init(jax.random.key(0))), {"x": jnp.zeros(2)}
    mean, state, wanted = optax.ema(0.9, debias=False), tx.init(params), None
    reference = mean.init(params)
    for g in sequence(0, 3, 2):
        _, state = tx.update({"x": g}, state, params)
        wanted, reference = mean.update({"x": g}, reference)
    assert np.allclose(state[1], wanted["x"], rtol=1e-5)


def test_fewer_kernels_leave_the_others_as_they_are():
    assert list(variations.kernels(2).cases.items()) == [
        case for case in variations.kernels().cases.items() if case[0] not in ("ReLU", "square")
    ]
