"""The experiments of notebooks 25 to 28 at sizes that take seconds."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from mnemosyne.book import keys
from mnemosyne.book.studies import memformer_reading as reading
from mnemosyne.book.studies import memformers as study
from mnemosyne.book.studies import two_memories
from mnemosyne.memformers import Memformer, Recipe, layers, methods, predict

SEEDS = (0, 1)
CELL = study.Cell("LFOM", Memformer(layers.preconditioned(), layers.lfom(), 2))
RECIPE = Recipe(steps=40, batch=100, renewal=20)


@pytest.fixture(scope="module")
def trained():
    return study.trained(CELL.model, RECIPE, study.SKEWED, SEEDS, (0.03, 1e-6), 500)


def test_training_is_told_in_plain_values(trained):
    assert trained["rate"] == 0.03  # the other learns nothing
    assert trained["validation"].log_loss.is_monotonic_increasing
    assert set(trained["test"].seed) == set(SEEDS)
    assert (trained["test"].log_mean < np.log(4.5)).all()
    assert (trained["test"].mean_log < trained["test"].log_mean).all()
    assert len(trained["curve"]) == 4
    kept = {name: x for name, x in trained.items() if not isinstance(x, pd.DataFrame)}
    assert json.loads(json.dumps(kept)) == kept


def test_weights_come_back_as_they_were_kept(trained):
    weights = study.weights_of(json.loads(json.dumps({"weights": trained["weights"]})), CELL)
    again = study.measured(CELL.model, weights, study.SKEWED, 0, SEEDS, 500)
    pd.testing.assert_frame_equal(again, trained["test"], rtol=1e-3)
    elsewhere = study.measured(CELL.model, weights, study.SKEWED, 1, SEEDS, 500)
    assert not np.allclose(elsewhere.log_mean, again.log_mean)


def test_every_kind_of_layer_has_a_key_of_its_own():
    """What is kept of one is never taken for another's."""
    kinds = [layers.steps(), layers.preconditioned(), layers.gdpp(), layers.heads(layers.gdpp(), 2)]
    kinds += [layers.heads(layers.gdpp(), 3), layers.heads(layers.preconditioned(), 2)]
    memories = [layers.none(), layers.cgd_like(), layers.lfom(), layers.present(), layers.lfom_by_layer()]
    memories += [layers.tied(layers.cgd_like()), layers.tied(layers.lfom_by_layer())]
    models = [Memformer(k, m, n, d) for k, m, n, d in itertools.product(kinds, memories, (2, 3), (None, 1))]
    assert len({keys.value(model) for model in models}) == len(models)
    assert keys.value(Memformer(layers.gdpp(), layers.lfom(), 2)) == keys.value(
        Memformer(layers.gdpp(), layers.lfom(), 2)
    )


def test_what_is_kept_does_not_depend_on_the_book():
    """Else any change of a scale would train all models anew."""
    for function in (study.trained, study.references, study.tuned, study.measured):
        reached: dict = {}
        keys._reach(function.__module__, function.__qualname__, reached)
        assert not [where for where in reached if where[0].startswith("mnemosyne.book.") and where[1] == "Run"]


def test_tuned_methods_are_in_the_order_they_must_be():
    found = study.tuned(study.SKEWED, 3, 2_000, 0)
    losses = {name: np.array(by["loss"]) for name, by in found.items()}
    for name in ("gradient descent", "momentum", "Chebyshev"):
        assert (losses["best"] <= losses[name] + 1e-9).all()
    assert (losses["momentum"] <= losses["gradient descent"] + 1e-6).all()
    np.testing.assert_allclose([v[0] for v in losses.values()], losses["best"][0], atol=1e-3)  # one step is one step
    assert losses["GD++"][2] < losses["best"][2]  # its degree grows as 3^k
    assert found["best"]["largest imaginary part"] < 1e-6
    assert found["best"]["smallest root"] > 0


def test_references_are_measured_on_the_test_prompts():
    found, isotropic = (study.tuned(stretch, 2, 2_000, 0) for stretch in (study.SKEWED, study.ISOTROPIC))
    rows = study.references(study.SKEWED, SEEDS, 300, found, isotropic)
    adaptive = {"conjugate gradients", "Newton–Schulz"}
    assert set(rows.method) == ({*found, "GD++, fixed"} - {"GD++"}) | adaptive | {
        "best, with Σ⁻¹",
        "conjugate gradients, with Σ⁻¹",
    }
    assert set(rows.steps) == {0, 1, 2}
    test = study.fresh(study.distributions(study.SKEWED, SEEDS), SEEDS, 2, 300)
    gains = jnp.asarray(found["momentum"]["gains"][1])
    answers = jax.vmap(jax.vmap(lambda t: methods.first_order(t, gains)[-1]))(test.tokens)
    expected = np.log(((answers - test.answer) ** 2).mean(1))
    ours = rows[(rows.method == "momentum") & (rows.steps == 2)]
    np.testing.assert_allclose(ours.log_mean, expected, rtol=1e-3)
    rate, shrink = found["GD++"]["numbers"][1]
    answers = jax.vmap(jax.vmap(lambda t: methods.gd_plus_plus(t, [rate] * 2, [shrink] * 2)[-1]))(test.tokens)
    ours = rows[(rows.method == "GD++, fixed") & (rows.steps == 2)]
    np.testing.assert_allclose(ours.log_mean, np.log(((answers - test.answer) ** 2).mean(1)), rtol=1e-3)
    same = study.conjugate(study.SKEWED, 0, SEEDS, 300, 2)
    theirs = rows[(rows.method == "conjugate gradients") & (rows.steps == 2)]
    np.testing.assert_allclose(same.log_mean, theirs.log_mean, rtol=1e-4)


def test_a_batch_of_one_is_the_prompt_that_was_trained_on_last():
    recipe = RECIPE._replace(batch=1)
    rows = study.against_on_batch(recipe, study.SKEWED, SEEDS, 2)
    assert (rows.log_mean == rows.mean_log).all()
    found = study.trained(CELL.model, recipe, study.SKEWED, SEEDS, (1e-9,), 50)
    assert len(found["training"]) == len(SEEDS)


def test_constructed_weights_agree_and_prompts_differ():
    assert study.constructed(50, 3, 0)["largest difference"].max() < 1e-5
    assert study.one_prompt(study.SKEWED, 0).answer != study.one_prompt(study.SKEWED, 0, 1).answer


# Reading --------------------------------------------------------------------------------------------------------------


def rows_of(values, layers, **named):
    return pd.DataFrame({"seed": [0, 1, 2], "layers": layers, "log_mean": values, "mean_log": values, **named})


def test_gaps_are_paired_by_seed():
    ours, theirs = rows_of([0.0, 1.0, 2.0], 2), rows_of([1.0, 2.0, 3.0], 2)
    assert reading.gap(ours, theirs.iloc[::-1], "log_mean") == (-1.0, 0.0)
    assert reading.all_below(ours, theirs, study.MEASURES) is True
    assert reading.all_below(ours, theirs, study.MEASURES, factor=np.exp(-1.5)) is False
    assert reading.all_at_most(theirs, ours, ["log_mean"], np.exp(1.0)) is True
    assert reading.told({2: (np.log(0.5), 0.0)}) == "2: 0.5 [0.5, 0.5]"
    assert np.isnan(reading.gap(ours, theirs.iloc[:0], "log_mean")).all()


def test_the_polynomial_in_trained_weights_is_what_they_do():
    """`gains_of` of steps with a memory against the model itself."""
    model = Memformer(layers.steps(), layers.cgd_like(), 3)
    memory = {"alpha": jnp.array([[0.5, 0.6, 0.7]]), "gamma": jnp.array([[0.1, 0.2, 0.3]])}
    weights = {"attention": {"a": jnp.array([[1.1, 0.9, 1.3]])}, "memory": memory}
    (gains,) = reading.gains_of(weights)
    tokens = study.one_prompt(study.SKEWED, 0).tokens
    expected = methods.first_order(tokens, jnp.asarray(gains, jnp.float32))
    one = jax.tree.map(lambda w: w[0], weights)
    np.testing.assert_allclose(predict(model, one, tokens), expected, atol=1e-5)


def test_a_preconditioner_that_is_the_inverse_is_seen():
    root = study.distributions(study.SKEWED, SEEDS).root
    inverse = jnp.linalg.inv(root @ jnp.swapaxes(root, 1, 2))
    weights = {"attention": {"A": jnp.stack([0.5 * inverse, 2.0 * inverse], 1)}}
    found = reading.preconditioners(weights, study.SKEWED, SEEDS)
    np.testing.assert_allclose(found.c, [0.5, 2.0] * 2, rtol=1e-3)
    np.testing.assert_allclose(found.apart, 0.0, atol=1e-3)


# Two memories ---------------------------------------------------------------------------------------------------------


def test_two_memories_are_one_recurrence():
    found = two_memories.side_by_side(study.one_prompt(study.SKEWED, 0).tokens, 0.3, 5)
    assert found.apart < 1e-6
    assert found.bytes.CAM.nunique() == found.bytes["CGD-like"].nunique() == 1
    assert (found.bytes.LFOM / found.bytes.layer == found.bytes.LFOM[0]).all()


def test_what_is_recalled_by_content_sums_to_one_and_prefers_what_is_alike():
    gradients = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    share = two_memories.attended(gradients, 0.0, 4_096, jax.random.key(0))
    assert np.isclose(share.sum(), 1.0, atol=1e-5)
    assert share[0] > share[2] > share[1]


def test_an_optimizer_that_trains_one_prompt_is_gradient_descent():
    tokens = study.one_prompt(study.SKEWED, 0).tokens
    answers = two_memories.trained_by(optax.sgd(0.7), tokens, 4)
    np.testing.assert_allclose(answers, methods.first_order(tokens, methods.descent([0.7] * 4)), atol=1e-5)
    found = two_memories.gradients_of(tokens, 0.7, 2)
    S, b = methods.normal_equations(tokens)
    np.testing.assert_allclose(found, jnp.stack([-b, S @ (0.7 * b) - b]), atol=1e-5)


def test_a_race_has_every_runner(trained):
    weights = study.weights_of(trained, CELL)
    rows = two_memories.race(CELL.model, weights, study.SKEWED, SEEDS, 10, 12, {"adam": optax.adam(0.1)})
    assert set(rows.method) == {"Memformer", "conjugate gradients", "Mnemosyne adam", "gradient descent"}
    start = rows[rows.gradients == 0].groupby("method").log_mean.mean()
    np.testing.assert_allclose(start, start.iloc[0], rtol=1e-5)
