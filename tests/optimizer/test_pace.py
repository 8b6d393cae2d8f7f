import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.pace import FEATURES, at_pace, features, pace_init, paced, sizes_and_cosines, starts, watch
from mnemosyne.optimizer.packing import Tensors
from mnemosyne.optimizer.registry import Coordinatewise
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.sizes import root_mean_squares, scale_by_tensor_rms
from mnemosyne.optimizer.transform import from_rule

NOTHING = {"w": jnp.zeros(len(FEATURES)), "b": jnp.zeros(()), "target": jnp.zeros(())}
PARAMS = {"w": jnp.full((4, 3), 0.5), "b": jnp.zeros(3), "scalar": jnp.array(0.5), "empty": jnp.zeros((0, 2))}


def gradients(t, factor=1.0):
    return jax.tree.map(lambda p: factor * jnp.cos(t + jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape), PARAMS)


def run(tx, steps=5, factor=1.0):
    state, out = tx.init(PARAMS), None
    for t in range(steps):
        out, state = tx.update(gradients(t, factor), state, PARAMS)
    return out, state


def test_a_law_of_zeros_changes_nothing():
    adam = optax.adam(1e-2)
    for a, b in zip(*(jax.tree.leaves(run(tx)[0]) for tx in (adam, at_pace(NOTHING, adam))), strict=True):
        assert np.allclose(a, b, rtol=1e-6)


def test_each_weight_multiplies_by_its_feature():
    t, extent = jnp.float32(9.0), jnp.float32(20.0)
    agreement, size, start = jnp.array([0.2, 0.1]), jnp.array([0.3, 0.05, 0.9]), jnp.float32(0.1)
    f = np.asarray(features(t, agreement, size, jnp.float32(0.4), start, jnp.float32(0.0), extent))
    short, long = 0.3 / (1 - 0.9**9), 0.05 / (1 - 0.99**9)
    wanted = {
        "time": np.log(10) / 4 - 1,
        "scale": np.log(0.1) / 3 + 0.7,
        "vector": 0.0,
        "agreement, 10 steps": np.tanh(1.0),
        "agreement, 50 steps": np.tanh(0.5),
        "decline": np.log(long / 0.9) / 2,
        "trend": np.log(short / long),
        "extent": np.log(20) / 5 - 1.4,
        "course": 0.4,
    }
    assert tuple(wanted) == FEATURES
    assert np.allclose(f, list(wanted.values()), rtol=1e-4)
    law = {**NOTHING, "w": NOTHING["w"].at[2].set(1.0), "b": jnp.float32(-2.0)}  # e^{-2}, and e more for vectors
    plain, slow = run(optax.sgd(1.0))[0], run(at_pace(law, optax.sgd(1.0)))[0]
    assert np.allclose(slow["w"], np.exp(-2) * plain["w"], rtol=1e-5)
    assert np.allclose(slow["b"], np.exp(-1) * plain["b"], rtol=1e-5)


def test_agreement_is_the_running_cosine_with_the_last_step():
    g = jnp.array([3.0, 4.0])
    zero = jnp.zeros(2), jnp.zeros(3)
    for step, cosine in ((-g, 1.0), (2 * g, -1.0), (jnp.array([4.0, -3.0]), 0.0), (jnp.zeros(2), 0.0)):
        (rms,), (seen,) = sizes_and_cosines(Tensors([g.shape]), g, step)
        agreement, _ = watch(jnp.float32(1.0), rms, seen, *zero)
        assert np.allclose(agreement, [0.1 * cosine, 0.02 * cosine], atol=1e-6)


def test_running_sizes_and_their_maximum():
    agreement, size = jnp.zeros(2), jnp.zeros(3)
    seen = []
    for t, scale in enumerate((1.0, 5.0, 2.0), start=1):
        agreement, size = watch(jnp.float32(t), jnp.float32(scale), jnp.float32(0.0), agreement, size)
        seen.append(float(size[1]) / (1 - 0.99**t))
    assert np.isclose(size[0], 0.1 * (1.0 * 0.81 + 5.0 * 0.9 + 2.0), rtol=1e-5)
    assert np.isclose(size[2], max(seen), rtol=1e-4)


@pytest.mark.parametrize("factor", [1e-6, 1e6, 1e-30, 1e30])
def test_scaling_the_loss_changes_nothing(factor):
    law = {**NOTHING, "w": jnp.linspace(-1.0, 1.0, len(FEATURES))}
    rule = odd_rule(Config(hidden=4, projections=4, encoders=1, feedforward=6))
    tx = at_pace(law, from_rule(rule.init(jax.random.key(0)), rule, scale_by_tensor_rms()))
    for a, b in zip(*(jax.tree.leaves(run(tx, factor=f)[0]) for f in (1.0, factor)), strict=True):
        assert np.allclose(a, b, rtol=2e-3, atol=1e-7)


def test_the_state_holds_one_copy_of_the_parameters_and_stays_finite():
    rule = odd_rule(Config(hidden=4, projections=4, encoders=1, feedforward=6))
    learned = paced(Coordinatewise(rule, scale_by_tensor_rms()).learned)
    _, state = run(learned.make(learned.init(jax.random.key(1))))
    pace = state.parts[1]
    assert jax.tree.map(jnp.shape, pace.step) == jax.tree.map(jnp.shape, PARAMS)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert float(pace.start[sorted(PARAMS).index("w")]) == 0.5


def test_a_coarser_copy_of_the_last_step_changes_little():
    law = {**NOTHING, "w": jnp.linspace(-1.0, 1.0, len(FEATURES))}
    (fine, _), (coarse, state) = (run(at_pace(law, optax.adam(1e-2), dtype)) for dtype in (jnp.float32, jnp.bfloat16))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state.step))
    for a, b in zip(jax.tree.leaves(fine), jax.tree.leaves(coarse), strict=True):
        assert b.dtype == a.dtype
        assert np.allclose(a, b, rtol=1e-3, atol=1e-6)
        assert a.size < 2 or not np.array_equal(a, b)


def test_the_first_law_is_a_slow_decay():
    law = pace_init(jax.random.key(0))
    log_pace = lambda t: float(law["w"][0] * (np.log1p(t) / 4 - 1) + law["b"])
    assert np.isclose(log_pace(10_000) - log_pace(100), -0.2 * np.log(10_001 / 101), rtol=1e-5)


def test_root_mean_square_without_overflow():
    root_mean_square = lambda g: root_mean_squares(Tensors([g.shape]), g)[0]
    assert np.isclose(root_mean_square(jnp.array([3e38, -3e38])), 3e38)
    assert np.isclose(root_mean_square(jnp.array([3e-30, 4e-30])), 3.5355e-30, rtol=1e-4)
    assert root_mean_square(jnp.zeros((0, 2))) == root_mean_square(jnp.zeros(3)) == 0.0


def test_the_integral_finds_a_step_size_of_any_order():
    """On a bowl of curvature c gradient descent wants steps near 1/c; the course takes it there from 1e-2."""
    law = {**NOTHING, "w": NOTHING["w"].at[FEATURES.index("course")].set(1.0)}
    for curvature in (0.1, 3.0):
        tx, x = at_pace(law, optax.sgd(1e-2)), jnp.full(5, 1.0)

        def step(carry, _, tx=tx, curvature=curvature):
            x, state = carry
            u, state = tx.update(curvature * x, state)
            return (x + u, state), None

        (x, state), _ = jax.jit(lambda c, step=step: jax.lax.scan(step, c, None, length=400))((x, tx.init(x)))
        assert float(jnp.abs(x).max()) < 1e-2
        assert 0.3 < 1e-2 * float(jnp.exp(state.course[0])) * curvature < 3.0


def test_the_course_stands_still_at_the_target():
    theta = {**NOTHING, "target": jnp.float32(5.0 * 0.1)}  # the running cosine after one step of full agreement
    tx = at_pace(theta, optax.sgd(1.0))
    g = jnp.ones(4)
    _, state = tx.update(g, tx.init(g)._replace(step=-g))
    assert np.isclose(state.course, 0.0, atol=1e-7)


def test_gains_and_biases_have_the_scale_of_the_matrices():
    params = {
        "w": jnp.full((4, 3), 0.5),
        "u": jnp.full((2, 2), 2.0),
        "zero": jnp.zeros((3, 3)),
        "empty": jnp.zeros((0, 2)),
    }
    params |= {"gain": jnp.ones(4), "bias": jnp.zeros(7), "scalar": jnp.array(9.0)}
    scales = dict(zip(sorted(params), starts(params), strict=True))
    overall = np.sqrt((12 * 0.25 + 4 * 4.0) / 16)
    assert np.isclose(scales.pop("w"), 0.5)
    assert np.isclose(scales.pop("u"), 2.0)
    assert np.allclose(list(scales.values()), overall)


def test_without_matrices_every_tensor_has_its_own_scale():
    b, x, y = starts({"x": jnp.full(3, 0.2), "y": jnp.full(6, -1.0), "b": jnp.zeros(5)})
    assert np.isclose(x, 0.2)
    assert np.isclose(y, 1.0)
    assert np.isclose(b, np.sqrt((3 * 0.04 + 6.0) / 9))
    assert starts({}).shape == (0,)
    assert np.isclose(starts({"b": jnp.zeros(3)})[0], 0.1)
