import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.evaluate import nadamw_search, train
from mnemosyne.optimizer.nesterov import Setting, draw, nadamw, rate_at
from tests.helpers import quadratic

PLAIN = Setting(0.1, 0.9, 0.99, 1e-8, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
PARAMS = {"w": jnp.arange(6.0).reshape(2, 3) - 2.0, "b": jnp.ones(3)}
GRADIENTS = [jax.tree.map(lambda p, k=k: jnp.cos(3.0 * p + k), PARAMS) for k in range(5)]


def trained(tx):
    params, state = PARAMS, tx.init(PARAMS)
    for g in GRADIENTS:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def close(a, b):
    return all(np.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_without_schedule_and_decays_it_is_adam():
    assert close(trained(nadamw(PLAIN, 5)), trained(optax.adam(0.1, 0.9, 0.99)))


def test_its_decay_is_adamws_and_its_l2_term_is_added_to_the_gradient():
    assert close(
        trained(nadamw(PLAIN._replace(decay=0.03), 5)), trained(optax.adamw(0.1, 0.9, 0.99, weight_decay=0.03))
    )
    with_l2 = optax.chain(optax.add_decayed_weights(0.03), optax.adam(0.1, 0.9, 0.99))
    assert close(trained(nadamw(PLAIN._replace(l2=0.03), 5)), trained(with_l2))
    released = optax.chain(optax.add_decayed_weights(-0.03), optax.adam(0.1, 0.9, 0.99))  # whose sign is wrong
    assert close(trained(nadamw(PLAIN._replace(l2=-0.03), 5)), trained(released))
    assert not close(trained(with_l2), trained(released))


def test_nesterovs_momentum_is_that_of_the_equation():
    b1, b2, t = 0.9, 0.99, 0
    p = np.array([1.0, -2.0])
    tx = nadamw(PLAIN._replace(nesterov=1.0), 5)
    params, m, v = jnp.asarray(p), np.zeros(2), np.zeros(2)
    state = tx.init(params)
    for t in range(1, 6):
        g = np.cos(3.0 * p)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        ahead = b1 * m / (1 - b1**t) + (1 - b1) * g
        p = p - 0.1 * ahead / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        updates, state = tx.update(jnp.cos(3.0 * params), state, params)
        params = optax.apply_updates(params, updates)
    assert np.allclose(params, p, rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        (PLAIN, [1.0, 1.0, 1.0, 1.0]),
        (PLAIN._replace(warmup=0.5), [0.0, 0.5, 1.0, 1.0]),
        (PLAIN._replace(constant=0.0, floor=0.0), [1.0, 0.5 + 0.125**0.5, 0.5, 0.0]),
        (PLAIN._replace(constant=0.5, floor=0.2), [1.0, 1.0, 1.0, 0.2]),
        (PLAIN._replace(constant=0.25, warmup=0.9, floor=1.0), [0.0, 1.0, 1.0, 1.0]),  # cut off at the constant's end
    ],
)
def test_the_schedule_warms_up_holds_and_falls(setting, wanted):
    rates = [rate_at(setting, jnp.int32(t), 8) / 0.1 for t in (0, 2, 4, 8)]
    assert np.allclose(rates, wanted, atol=1e-6)


def test_drawn_settings_fill_the_space_and_are_the_same_each_time():
    drawn = draw(4_000, 0)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, draw(4_000, 0), strict=True))
    limits = {"rate": (1e-5, 1.0), "beta1": (0.0, 0.999), "beta2": (0.0, 1 - 1e-5), "epsilon": (1e-8, 1e4)}
    for name, (low, high) in limits.items():
        x = getattr(drawn, name)
        assert x.min() >= low * 0.999
        assert x.max() <= high * 1.001
    assert abs(np.median(np.log10(drawn.rate)) + 2.5) < 0.1
    shares = {"nesterov": 1 / 2, "l2": 2 / 3, "decay": 2 / 3, "warmup": 1 / 2, "floor": 1 / 2}
    for name, share in shares.items():
        assert abs(np.mean(getattr(drawn, name) > 0) - share) < 0.03, name
    assert ((drawn.l2 > 0) | (drawn.decay > 0)).all()


def test_a_search_is_a_contender_with_a_run_for_each_setting():
    rows = train(quadratic("bowl", 3), nadamw_search(3, 4, seed=1), seeds=[0], steps=4, every=2)
    assert sorted(rows["rate"].unique()) == [0.0, 1.0, 2.0]
    assert rows.groupby("rate")["train_loss"].last().nunique() == 3


@pytest.mark.bad_input
def test_a_search_of_nothing_and_a_training_of_nothing_are_refused():
    for samples in (0, -1, True):
        with pytest.raises(ValueError, match="whole number of samples"):
            nadamw_search(samples, 10)
    with pytest.raises(ValueError, match="at least one step"):
        nadamw(PLAIN, 0)
    tx = nadamw(PLAIN, 5)
    with pytest.raises(ValueError, match="need the parameters"):
        tx.update(PARAMS, tx.init(PARAMS))
