import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.optimizer.composite import state_bytes
from mnemosyne.optimizer.pace import at_pace
from mnemosyne.optimizer.slim import FEATURES, RATE, law, of_all, scale_by_slim, slim
from tests.optimizer.test_pace import NOTHING, PARAMS, gradients, run

NONE = -1e9  # of the look ahead
PLAIN = {**NOTHING, "w": jnp.zeros(len(FEATURES)), "speeds": jnp.zeros(2), "ahead": jnp.float32(NONE)}


def after(theta, steps=5, factor=1.0):
    return run(scale_by_slim(theta), steps, factor)


def test_without_a_law_it_is_adam():
    """Not where a gradient is below ε: Adam's is 1e-8 whatever the gradients are."""
    (ours, _), (adam, _) = after(PLAIN), run(optax.adam(RATE, b1=0.9, b2=0.99))
    warm = 1 - 0.9**5  # of the fifth step
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(adam), strict=True):
        assert np.allclose(a, warm * b, rtol=1e-4, atol=1e-7)


def test_the_first_steps_are_shorter():
    """Of the t-th step 0.9ᵗ is missing, so that a restart without the state does little harm."""
    g, tx = jnp.array([0.5, -0.5]), scale_by_slim(PLAIN)
    state = tx.init(g)
    for t in range(1, 60):
        moved, state = tx.update(g, state)
        assert np.allclose(moved, -RATE * (1 - 0.9**t) * jnp.sign(g), rtol=1e-4)


def test_the_speeds_of_the_averages_are_learned():
    theta = {**PLAIN, "speeds": jnp.log(jnp.array([0.3 / 0.1, 0.002 / 0.01]))}
    for a, b in zip(
        *(jax.tree.leaves(run(tx)[0]) for tx in (scale_by_slim(theta), optax.adam(RATE, 0.7, 0.998))), strict=True
    ):
        assert np.allclose(a, (1 - 0.9**5) * b, rtol=1e-4, atol=1e-7)


def test_half_a_look_ahead_is_half_the_gradient():
    theta = {**PLAIN, "ahead": jnp.float32(2.0)}
    g = [0.3, -0.2]
    tx, params = scale_by_slim(theta), jnp.array([1.0])
    state = tx.init(params)
    for x in g:
        moved, state = tx.update(jnp.array([x]), state)
    mean = (0.9 * 0.1 * g[0] + 0.1 * g[1]) / (1 - 0.9**2)
    square = (0.99 * 0.01 * g[0] ** 2 + 0.01 * g[1] ** 2) / (1 - 0.99**2)
    assert np.allclose(moved, -RATE * (1 - 0.9**2) * (0.5 * mean + 0.5 * g[1]) / np.sqrt(square), rtol=1e-4)


def test_it_agrees_with_steps_that_it_does_not_keep():
    """The running cosines are those of the law that keeps a copy of Adam's last step."""
    (_, ours), (_, kept) = after(PLAIN), run(at_pace(NOTHING, optax.adam(RATE, 0.9, 0.99)))
    assert np.allclose(ours.agreement, kept.agreement, atol=1e-5)
    assert np.abs(ours.agreement).max() > 0.01
    assert np.allclose(ours.size, kept.size, rtol=1e-5)


def test_it_holds_adams_bytes_and_eight_numbers_a_tensor():
    learned = slim()
    tx = learned.make(learned.init(jax.random.key(0)))
    tensors = {"a": jnp.zeros((50, 20)), "b": jnp.zeros(20)}
    assert state_bytes(tx, tensors) == 8 * 1_020 + 2 * 4 * 8 + 8  # and two counters


def test_each_weight_multiplies_by_its_feature():
    at = {name: i for i, name in enumerate(FEATURES)}
    number = jnp.float32
    seen = {"t": 9.0, "course of all": 0.7, "how many": 0.4, "rms": 1.0, "cosine": 1.0, "signal": np.exp(-0.6)}
    numbers = jnp.array([0.5, 0.99]), jnp.zeros(3), number(0.0), number(1.0), number(0.0), number(1.0)
    pace = lambda name: law({**PLAIN, "w": PLAIN["w"].at[at[name]].set(1.0)}, *map(number, seen.values()), *numbers)[0]
    assert np.isclose(pace("signal"), np.exp(-0.6 / 2 + 0.5), rtol=1e-5)
    assert np.isclose(pace("signal × time"), np.exp((-0.6 / 2 + 0.5) * (np.log(10.0) / 4 - 1)), rtol=1e-5)
    assert np.isclose(pace("time"), np.exp(np.log(10.0) / 4 - 1), rtol=1e-5)
    assert np.isclose(pace("certainty, 10 steps"), (1 - (0.9 * 0.5 + 0.1)) ** -0.5, rtol=1e-5)
    assert np.isclose(pace("certainty, 50 steps"), 0.05**-0.5, rtol=1e-4)  # no agreement counts as more than 0.95
    assert np.isclose(pace("course of all"), np.exp(0.7), rtol=1e-5)
    assert np.isclose(pace("tensors"), np.exp(0.4), rtol=1e-5)


def test_every_tensor_knows_of_all():
    course_of_all, how_many = of_all(jnp.array([0.3, -0.1, 1.0]), jnp.ones(3), jnp.float32(2.0))
    assert np.isclose(course_of_all, 0.4)
    assert np.isclose(how_many, np.log(3) / 2 - 1)
    assert np.isfinite(of_all(jnp.zeros(0), jnp.zeros(0), jnp.float32(1.0))).all()
    first = of_all(jnp.zeros(3), jnp.zeros(3), jnp.float32(1.0))  # before the first step nothing is known of any
    assert first[1] == how_many


def test_tensors_without_gradients_do_not_count():
    live = of_all(jnp.array([0.3, -0.1]), jnp.ones(2), jnp.float32(9.0))
    assert np.allclose(live, of_all(jnp.array([0.3, -5.0, -0.1]), jnp.array([1.0, 0.0, 2.0]), jnp.float32(9.0)))


def test_more_than_64_tensors_count_as_64():
    number = lambda n: of_all(jnp.zeros(n), jnp.ones(n), jnp.float32(2.0))[1]
    assert number(200) == number(64) > number(63)


def test_a_tensor_is_moved_by_the_courses_of_the_others():
    theta = {**PLAIN, "w": PLAIN["w"].at[FEATURES.index("course of all")].set(1.0)}
    tx, g = scale_by_slim(theta), {"a": jnp.ones(3), "b": jnp.ones(3)}
    state = tx.update(g, tx.init(g))[1]
    plain, other = (tx.update(g, state._replace(course=jnp.array([0.0, c])))[0]["a"] for c in (0.0, 1.0))
    assert np.allclose(other, np.exp(0.5) * plain, rtol=1e-5)


def test_frozen_tensors_leave_the_others_as_they_are():
    """Where a tree holds tensors without gradients, the steps of the others are those that they have alone."""
    theta = {**slim().init(jax.random.key(0))}
    theta["w"] = theta["w"].at[FEATURES.index("tensors")].set(0.0)  # the first step cannot know which these are
    tx, alone = scale_by_slim(theta), {"a": jnp.ones(3)}
    both = alone | {"frozen": jnp.ones(4)}
    state, state_of_both = tx.init(alone), tx.init(both)
    for t in range(300):
        g = {"a": jnp.cos(t + jnp.arange(3.0))}
        moved, state = tx.update(g, state)
        moved_of_both, state_of_both = tx.update(g | {"frozen": jnp.zeros(4)}, state_of_both)
    assert np.allclose(moved["a"], moved_of_both["a"], rtol=1e-5)


def test_the_course_of_noise_falls_as_a_logarithm():
    """Without agreement it is −0.02 · tanh(target) · Σ 1 / (1 + t/300)."""
    theta, course = {**PLAIN, "target": jnp.float32(0.5)}, jnp.float32(0.0)
    for t in range(1, 1_001):
        course = 0.02 / (1 + t / 300) * -np.tanh(0.5) + course
    tx, g = scale_by_slim(theta), jnp.zeros(3)
    last, _ = jax.lax.scan(lambda s, _: (tx.update(g, s)[1], None), tx.init(g), None, length=1_000)
    assert np.isclose(last.course[0], course, rtol=1e-3)


@pytest.mark.parametrize("factor", [1e-6, 1e6, 1e-30, 1e30])
def test_scaling_the_loss_changes_nothing(factor):
    theta = slim().init(jax.random.key(0))
    for a, b in zip(*(jax.tree.leaves(after(theta, factor=f)[0]) for f in (1.0, factor)), strict=True):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-7)


def test_gradients_that_start_at_zero_or_leap_leave_all_finite():
    learned = slim()
    tx = learned.make(learned.init(jax.random.key(0)))
    state = tx.init(PARAMS)
    for t, factor in enumerate((0.0, 0.0, 1e-30, 1.0, 1e30, 0.0, 1e-30)):
        moved, state = tx.update(gradients(t, factor), state, PARAMS)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((moved, state)))
        if t < 2:
            assert not any(np.any(x) for x in jax.tree.leaves(moved))


def strides(trained, frozen, late=0, steps=2):
    """The length of each step of a network with tensors that never have a gradient, or not in the first step."""
    params = {"trained": jnp.zeros(trained), "frozen": jnp.zeros(frozen), "late": jnp.zeros(late)}
    tx, found = scale_by_slim(PLAIN), []
    state = tx.init(params)
    for t in range(1, steps + 1):
        g = {
            name: jnp.full(x.shape, {"trained": 1.0, "frozen": 0.0, "late": t > 1}[name]) for name, x in params.items()
        }
        moved, state = tx.update(g, state)
        found.append(float(-moved["trained"][0] / (RATE * (1 - 0.9**t))))
    return found


def test_steps_of_a_large_network_shrink_with_the_root_of_its_size():
    assert np.allclose(strides(20_000, 0), 1.0, rtol=1e-4)
    assert np.allclose(strides(80_000, 0), 0.5, rtol=1e-4)
    assert np.allclose(strides(80_000, 300_000), 0.5, rtol=1e-4)  # frozen tensors do not count
    assert np.allclose(strides(8_000, 300_000), 1.0, rtol=1e-4)


def test_tensors_count_from_their_first_gradient_on():
    """Behind a head that starts at zero the others have none in the first step; all go carefully in the next."""
    assert np.allclose(strides(20_000, 0, late=60_000), [1.0, 0.5], rtol=1e-4)


def test_the_rule_for_size_works_in_training_code(monkeypatch):
    """Compiled, in a scan, accumulated, masked: as where networks are small, times the factor."""
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones(4)}
    theta = slim().init(jax.random.key(0))

    def trained() -> dict:
        wrapped = optax.MultiSteps(optax.masked(slim().make(theta), {"a": True, "b": True}), 2)

        def one(carry, t):
            updates, state = wrapped.update(jax.tree.map(lambda p: jnp.cos(t + p), carry[0]), carry[1], carry[0])
            return (carry[0], state), updates

        return jax.jit(lambda: jax.lax.scan(one, (params, wrapped.init(params)), jnp.arange(6.0))[1])()

    plain = trained()
    monkeypatch.setattr("mnemosyne.optimizer.slim.SMALL", 4)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(trained()), strict=True):
        assert np.allclose(0.5 * a, b, rtol=1e-5)
        assert np.abs(a).max() > 0
