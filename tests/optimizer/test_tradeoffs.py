"""What every learned optimizer of the paper on tradeoffs must do, with weights drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from mnemosyne.memory.compact import cam
from mnemosyne.memory.recurrent import lstm
from mnemosyne.optimizer.accumulators import Features, apart, seen_of
from mnemosyne.optimizer.controlled_adam import nn_adam
from mnemosyne.optimizer.hierarchical import rnn_fc
from mnemosyne.optimizer.perparameter import by_elements, by_products, fc, per_parameter, side_by_side, small_fc
from mnemosyne.optimizer.unit_direction import RATE, celo2, newton_schulz
from tests.optimizer.test_training_code import check_sharded, same

LEARNED = {
    "small_fc": small_fc(),
    "fc": fc(),
    "nn_adam": nn_adam(lstm(hidden=8), width=8),
    "nn_adam, CAM": nn_adam(cam(projections=8), width=8),
    "rnn_fc": rnn_fc(lstm(hidden=8), width=8),
    "rnn_fc, CAM": rnn_fc(cam(projections=8), width=8),
    "celo2": celo2(),
}
ODD = {
    "scalar": jnp.ones(()),
    "one": jnp.ones(1),
    "nothing": jnp.zeros((0, 3)),
    "vector": jnp.linspace(-1.0, 1.0, 7),
    "column": jnp.ones((4, 1)),
    "half": jnp.ones((3, 2), jnp.float16),
    "brain": jnp.ones((2, 3, 2), jnp.bfloat16),
    "five": jnp.ones((2, 1, 3, 2, 2)),
    "large": jnp.ones((96, 100)),
}


def made(name, seed=0):
    """An optimizer with weights drawn at random, all of them."""
    theta = LEARNED[name].init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    small = [0.02 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return LEARNED[name].make(tree.unflatten([x + noise for x, noise in zip(leaves, small, strict=True)]))


def gradients(params, seed=0):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [jax.random.normal(k, x.shape).astype(x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return tree.unflatten(drawn)


@pytest.mark.parametrize("name", LEARNED)
def test_tensors_of_every_kind_get_finite_updates_of_their_shapes_and_dtypes(name):
    tx = made(name)
    state, update = tx.init(ODD), jax.jit(tx.update)
    for seed in range(3):
        g = gradients(ODD, seed)
        steps, state = update(g, state, ODD, value=1.0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), steps) == jax.tree.map(lambda x: (x.shape, x.dtype), ODD)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((steps, state)))
    assert all(bool((x != 0).any()) for x in jax.tree.leaves(steps) if x.size)
    eager, _ = tx.update(gradients(ODD, 0), tx.init(ODD), ODD, value=1.0)
    compiled, _ = update(gradients(ODD, 0), tx.init(ODD), ODD, value=1.0)
    same((eager, compiled), rtol=2e-2, atol=1e-6)  # bfloat16 among them


@pytest.mark.bad_input
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf, 1e38, 0.0], ids=str)
def test_gradients_that_are_none_leave_the_state_finite(name, bad):
    tx, params = made(name), {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    state = tx.init(params)
    for g in (jax.tree.map(lambda p: jnp.full_like(p, bad), params), gradients(params)):
        steps, state = jax.jit(tx.update)(g, state, params, value=bad)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((steps, state)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", LEARNED)
def test_sharded_parameters_get_the_numbers_of_whole_ones_and_stay_sharded(name, kind):
    check_sharded(made(name), kind)


@pytest.mark.parametrize("name", LEARNED)
def test_meta_gradients_are_finite_where_a_gradient_is_zero(name):
    learned, params = LEARNED[name], {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}

    def moved(theta):
        tx = learned.make(theta)
        state, p = tx.init(params), params
        for seed in range(2):
            g = gradients(params, seed) | {"w": jnp.zeros((3, 4))}
            steps, state = tx.update(g, state, p, value=1.0)
            p = optax.apply_updates(p, steps)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(p))

    gradient = jax.grad(moved)(learned.init(jax.random.key(0)))
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(gradient))


@pytest.mark.bad_input
def test_what_an_optimizer_looks_at_must_be_given():
    params = {"w": jnp.ones((3, 4))}
    for name in LEARNED:
        tx = made(name)
        with pytest.raises(ValueError, match="looks at the parameters"):
            tx.update(params, tx.init(params), value=1.0)
    tx = made("rnn_fc")
    with pytest.raises(ValueError, match="looks at the training loss"):
        tx.update(params, tx.init(params), params)


@pytest.mark.bad_input
def test_sizes_and_decays_that_make_no_network_are_refused():
    for wrong in ({"width": 0}, {"layers": 0}):
        with pytest.raises(ValueError, match="at least one"):
            per_parameter(**wrong)
        with pytest.raises(ValueError, match="at least one"):
            celo2(**wrong)
    for features in (Features((1.0,), (), ()), Features((0.9,), (-0.1,), ())):
        with pytest.raises(ValueError, match="decays must lie"):
            per_parameter(features)
    with pytest.raises(ValueError, match="one for each momentum"):
        per_parameter(Features((0.9, 0.99), (0.9, 0.99, 0.999), ()))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 5, 3)])
def test_products_and_sums_of_arrays_are_the_same_network(shape):
    learned = small_fc()
    theta, params = learned.init(jax.random.key(0)), {"p": jax.random.normal(jax.random.key(1), shape)}
    tx = learned.make(theta)
    _, state = tx.update(gradients(params), tx.init(params), params)
    held = state.parts[-1].kept

    (kept,) = apart(held, jax.tree.structure(params), [shape])
    seen = seen_of(params["p"], gradients(params)["p"], kept)
    first = theta["layers"][0]
    layers = [{"w": first["w"][: len(seen)], "b": first["b"]}, *theta["layers"][1:]]
    sums, products = by_elements(layers, seen), by_products(layers, side_by_side(seen, shape))
    for a, b in zip(sums, products, strict=True):
        assert np.allclose(jnp.broadcast_to(a, shape), b, rtol=1e-4, atol=1e-5)


def test_an_untrained_controller_is_adam_without_bias_correction():
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    learned = nn_adam(lstm(hidden=4), width=4)
    tx = learned.make(learned.init(jax.random.key(0)))
    adam = optax.chain(optax.scale_by_adam(0.9, 0.999, 1e-8), optax.scale(-1e-4))
    states = tx.init(params), adam.init(params)
    for t in range(1, 4):
        g = gradients(params, t)
        ours, state = tx.update(g, states[0], params)
        theirs, other = adam.update(g, states[1])
        states = state, other
        factor = (1 - 0.9**t) / (1 - 0.999**t) ** 0.5
        same((ours, jax.tree.map(lambda u, f=factor: f * u, theirs)), rtol=1e-3)


def test_a_direction_has_unit_size_whatever_the_gradients_and_singular_values_near_one():
    tx = made("celo2")
    params = {"w": jax.random.normal(jax.random.key(0), (6, 8)), "b": jnp.zeros(8)}
    for scale in (1e-3, 1.0, 1e3):
        g = jax.tree.map(lambda x, s=scale: s * x, gradients(params))
        steps, _ = tx.update(g, tx.init(params), params)
        assert np.isclose(jnp.sqrt(jnp.mean(steps["w"] ** 2)), RATE, rtol=1e-4)
        values = jnp.linalg.svd(steps["w"], compute_uv=False)
        assert values.max() / values.min() < 3.0
    none, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert not any(bool((x != 0).any()) for x in jax.tree.leaves(none))
    x = jax.random.normal(jax.random.key(1), (3, 9, 4))
    assert np.allclose(jnp.linalg.svd(newton_schulz(x), compute_uv=False), 1.0, atol=0.4)
