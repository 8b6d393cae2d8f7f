"""Layers stacked in one array are to an optimizer what so many arrays are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne.optimizer.stacks import stacked

STACK = {
    "layers": {"w": jax.random.normal(jax.random.key(0), (3, 4, 2)), "b": jnp.full((3, 4), 0.3), "s": jnp.ones(3)},
    "head": jax.random.normal(jax.random.key(1), (4, 5)),
}
AXES = {"layers": 1, "head": 0}
APART = {**{f"layer {i}": jax.tree.map(lambda x, i=i: x[i], STACK["layers"]) for i in range(3)}, "head": STACK["head"]}


def three_steps(tx, params):
    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.sin(3.0 * p) + 0.1 * p, params)
        updates, state = tx.update(grads, state, params, value=1.0, horizon=9)
        return (optax.apply_updates(params, updates), state), None

    start = lambda params: (params, optax.with_extra_args_support(tx).init(params))
    return jax.jit(lambda params: jax.lax.scan(step, start(params), length=3)[0][0])(params)


@pytest.mark.parametrize("name", ["slim", "light", "paced", "hybrid", "super", "tensor_paced", "velo_cam"])
def test_a_stack_is_trained_like_its_layers_apart(name):
    tx = mnemosyne.pretrained(name)
    together, apart = three_steps(stacked(tx, AXES), STACK), three_steps(tx, APART)
    assert np.allclose(together["head"], apart["head"], rtol=1e-5, atol=1e-7)
    for i in range(3):
        for field in ("w", "b", "s"):
            assert np.allclose(together["layers"][field][i], apart[f"layer {i}"][field], rtol=1e-5, atol=1e-7)


def test_without_it_hybrid_takes_a_stack_of_biases_for_a_matrix():
    tx = mnemosyne.pretrained("hybrid")
    plain, each = three_steps(tx, STACK)["layers"]["b"], three_steps(stacked(tx, AXES), STACK)["layers"]["b"]
    assert not np.allclose(plain, each, rtol=1e-3)


@pytest.mark.parametrize("axes", [1, {"layers": 1, "head": 1}, lambda params: jax.tree.map(lambda p: 1, params)])
def test_the_numbers_may_be_one_or_a_tree_or_a_function(axes):
    updates = three_steps(stacked(optax.sgd(0.1), axes), STACK)
    plain = three_steps(optax.with_extra_args_support(optax.sgd(0.1)), STACK)
    for a, b in zip(*map(jax.tree.leaves, (updates, plain)), strict=True):
        assert np.allclose(a, b, rtol=1e-6)


def test_two_stacked_axes_are_taken_apart_both():
    state = stacked(optax.scale_by_adam(), 2).init({"w": jnp.ones((2, 3, 4, 5))})
    assert [m.shape for m in jax.tree.leaves(state.mu)] == [(4, 5)] * 6


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"layers": 1}, "do not fit the parameters' tree"),
        (2, r"\['layers'\]\['s'\] has the shape \(3,\): its stacked axes must be 0 to 1, got 2"),
        (-1, "must be 0 to 2, got -1"),
        (True, "got True"),
        ("1", "got '1'"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        stacked(optax.sgd(0.1), axes).init(STACK)
