"""Training finds what can be computed, and seeds do not disturb each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.memformers import Memformer, Recipe, layers, skewed, train, training

D = 5
MODEL = Memformer(layers.steps(), layers.none(), 1)


def isotropic(seeds):
    one = skewed(jnp.ones(D), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), one)


def keys(*seeds):
    return jnp.stack([jax.random.key(s) for s in seeds])


def test_one_layer_learns_the_best_step_length():
    """n / (n + d + 1) on isotropic prompts; the curve falls from d to d (d + 1) / (n + d + 1)."""
    recipe = Recipe(steps=300, batch=2_000, renewal=20)
    weights, curve = train(MODEL, recipe, isotropic(2), keys(0, 1), jnp.array([0.03]))
    assert weights["attention"]["a"].shape == (1, 2, 1)
    np.testing.assert_allclose(weights["attention"]["a"].ravel(), 20 / 26, rtol=0.06)
    assert curve.shape == (1, 2, 15)
    np.testing.assert_allclose(curve[0, :, 0], 5, rtol=0.2)
    np.testing.assert_allclose(curve[0, :, -5:].mean(1), 30 / 26, rtol=0.1)


def test_seeds_and_rates_side_by_side_are_those_alone():
    model = Memformer(layers.gdpp(), layers.lfom(), 2)
    recipe = Recipe(steps=6, batch=20, renewal=3)
    together, curves = train(model, recipe, isotropic(3), keys(5, 6, 7), jnp.array([0.03, 0.01]))
    alone, curve = train(model, recipe, isotropic(1), keys(6), jnp.array([0.01]))
    np.testing.assert_allclose(curves[1, 1], curve[0, 0], rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours[1, 1], theirs[0, 0], rtol=1e-3, atol=1e-4)


def test_a_seed_has_the_same_prompts_whatever_is_trained():
    recipe = Recipe(steps=2, batch=50, renewal=1)
    models = [Memformer(layers.steps(), memory, 2) for memory in (layers.none(), layers.lfom())]
    first = [train(m, recipe, isotropic(1), keys(3), jnp.array([0.0]))[1] for m in models]
    np.testing.assert_allclose(*first, rtol=0.05)  # nearly zero weights answer nearly zero
    assert first[0][0, 0, 0] != first[0][0, 0, 1]  # drawn anew


def test_gradients_are_clipped_layer_by_layer():
    gradient = {"A": jnp.stack([jnp.full((2, 2), 3.0), jnp.full((2, 2), 1e-4)]), "alpha": jnp.array([-5.0, 0.001])}
    found = training.clipped(gradient, 0.01)
    np.testing.assert_allclose(jnp.sqrt((found["A"] ** 2).sum((1, 2))), [0.01, 2e-4], rtol=1e-5)
    np.testing.assert_allclose(found["alpha"], [-0.01, 0.001], rtol=1e-5)
    zero = training.clipped({"A": jnp.zeros((1, 2, 2))}, 0.01)
    assert jnp.isfinite(zero["A"]).all()


@pytest.mark.bad_input
def test_training_that_cannot_be_is_told():
    rates = jnp.array([0.1])
    with pytest.raises(ValueError, match="nothing to train"):
        train(MODEL._replace(layers=0), Recipe(steps=2, batch=2, renewal=1), isotropic(1), keys(0), rates)
    for wrong in (Recipe(steps=3, renewal=2), Recipe(steps=0), Recipe(steps=2, renewal=1, batch=0)):
        with pytest.raises(ValueError, match="multiple of renewal"):
            train(MODEL, wrong, isotropic(1), keys(0), rates)
