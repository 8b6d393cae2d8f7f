from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from mnemosyne.book.chapter import open_run
from mnemosyne.book.studies import overhead, prices, tradeoffs
from mnemosyne.metatrain.pes import PESConfig
from mnemosyne.optimizer.accumulators import Features, feature_names
from mnemosyne.optimizer.perparameter import per_parameter, small_fc
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.tasks import suite
from mnemosyne.types import Learned
from tests.metatrain.test_truncated import quadratic

ADAM_ALONE = optax.adam(1e-3)
RATE = Learned(lambda key: {"rate": 0.01 + 0.01 * jax.random.uniform(key)}, lambda theta: optax.sgd(theta["rate"]))


@pytest.fixture
def run(checkout):
    return open_run("01_good", evolution_horizon=20)


def test_snapshots_are_those_of_the_iterations_and_seeds_they_say(run):
    config = PESConfig(iterations=20, horizons=(20,), window=10, pairs=2, objective="loss", learning_rate=0.1)
    of = tradeoffs.evolution(run, "SGD", RATE, quadratic("a", 3), config)
    assert list(of.iterations) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert of.seeds == (0, 1)
    theta = of.thetas.value["rate"]
    assert theta.shape == (20,)
    # Each is the mean over its two iterations, of a run that was seeded alone.
    for i, seed in enumerate(of.seeds):
        alone = tradeoffs.PES(RATE, (of.task,), replace(config, seed=seed))
        carry, step = alone.start(), jax.jit(lambda c, alone=alone: alone.iterate(c, (of.task.data,))[0])
        first = step(carry)
        second = step(first)
        assert np.isclose(theta[i], (first.theta["rate"] + second.theta["rate"]) / 2, rtol=1e-5)
    rows = tradeoffs.measured(run, of, quadratic("b", 3))
    assert set(rows.meta_seed) == {0, 1}
    assert set(rows.iteration) == set(of.iterations)
    at = rows[(rows.iteration == 20) & (rows.meta_seed == 1) & (rows.seed == run.seeds[0])]
    alone = tradeoffs.Contender("SGD", RATE.make, (0.0,), {"rate": theta[-1:]})
    plain = run.train(quadratic("b", 3), alone, 20)
    assert np.allclose(at.train_loss, plain[plain.seed == run.seeds[0]].train_loss)


def runs(losses, **about):
    """Rows of one run with these losses."""
    return pd.DataFrame({"step": 10 * np.arange(len(losses)), "train_loss": losses, **about})


def test_a_meta_loss_is_a_mean_of_losses_clipped_at_the_first():
    rows = pd.concat(
        [
            runs([2.0, 1.0, 3.0, 1.0], optimizer="a", rate=0.1, seed=0),
            runs([2.0, np.nan, np.inf, 0.5], optimizer="a", rate=0.1, seed=1),
            runs([2.0, 0.5, 0.5, 0.5], optimizer="a", rate=0.2, seed=0),
            runs([2.0, 5.0, 5.0, 5.0], optimizer="a", rate=0.2, seed=1),
        ]
    )
    found = tradeoffs.meta_losses(rows, ("rate", "seed"))
    assert np.allclose(found, [4 / 3, 1.5, 0.5, 2.0])
    best = tradeoffs.tuned(rows)  # at 0.2: a mean of 1.25, where 0.1 has 1.42
    assert list(best.index) == [("a", 0), ("a", 1)]
    assert np.allclose(best, [0.5, 2.0])
    assert np.allclose(tradeoffs.by_setting(rows), [(4 / 3 + 1.5) / 2, 1.25])


def test_comparisons_are_paired_by_seed_and_counted_over_meta_seeds():
    index = pd.MultiIndex.from_product([["t"], ["o"], [0, 1], [0, 1]], names=["task", "optimizer", "meta_seed", "seed"])
    losses = pd.Series([1.0, 4.0, 2.0, 8.0], index)
    base = pd.Series(
        [1.0, 4.0], pd.MultiIndex.from_product([["t"], ["Adam"], [0, 1]], names=["task", "optimizer", "seed"])
    )
    row = tradeoffs.against(losses, base).iloc[0]
    assert np.isclose(row.log_ratio, np.log(2) / 2)
    assert np.isclose(row.half, np.log(2) / 2 * 12.7062047)  # t of one degree of freedom, over √2 · √2


def test_the_last_loss_is_compared_at_the_best_setting():
    theirs = pd.concat(
        runs([3.0, x], rate=r, seed=s) for r, x, s in ((0, 2.0, 0), (0, 2.0, 1), (1, 1.0, 0), (1, np.nan, 1))
    )
    ours = pd.concat(runs([3.0, 1.0], seed=s, meta_seed=m) for s in (0, 1) for m in (0, 1))
    assert np.allclose(tradeoffs.last_over(theirs, ours), (np.log(2), 0.0))


def test_the_front_is_who_is_not_beaten_at_no_higher_price():
    points = {"cheap": (1, [3.0, 3.1, 3.0]), "good": (2, [1.0, 1.1, 1.0]), "beaten": (3, [2.0, 2.1, 2.0])}
    points |= {"level": (2, [1.0, 1.05, 1.05])}
    rows = [(name, s, loss, price) for name, (price, of) in points.items() for s, loss in enumerate(of)]
    quality = pd.DataFrame(rows, columns=["optimizer", "seed", "meta_loss", "times"])
    assert dict(tradeoffs.front(quality, "times")) == {"cheap": True, "good": None, "beaten": False, "level": None}


def test_the_best_of_more_settings_is_no_worse_on_its_own_task():
    losses = pd.DataFrame({"a": [3.0, 1.0, 2.0, 4.0], "b": [1.0, 9.0, 2.0, 3.0]})
    chosen = tradeoffs.chosen_of(losses, (1, 2, 4), subsets=50, seed=0)
    means = chosen.groupby(["chosen_on", "count"]).own.mean()
    assert (means["a"].diff().dropna() < 0).all()
    every = chosen[(chosen["count"] == 4) & (chosen.chosen_on == "a")]
    assert set(every.own) == {1.0}
    assert set(every.other) == {9.0}
    mean, half = tradeoffs.risen(chosen[chosen.chosen_on == "a"])
    assert mean - half > 0  # the best for a is by far the worst for b


def test_what_small_fc_keeps():
    assert tradeoffs.kept_of(Features(), (30, 20)) == {"parameter": 4, "row": 3, "column": 3}
    assert np.isclose(tradeoffs.bytes_of(Features()), 16.024)


def test_a_glimpse_is_what_the_optimizer_does(digits):
    """The step shown is that of the optimizer itself, given the same gradients."""
    task, learned = suite.mlp(digits, (6,), "relu"), small_fc()
    look = tradeoffs.glimpse(task, learned, Features(), steps=3, parameters=5)
    assert look.seen.shape == (28, 5)
    assert len(feature_names(Features())) == 28
    tx, adam = learned.make(learned.init(jax.random.key(0))), optax.adam(1e-2)
    params = task.init(jax.random.key(0))
    state, others = tx.init(params), adam.init(params)
    for t in range(3):
        grads = jax.grad(task.loss)(params, task.batch(task.data, jax.random.key(t)))
        steps, state = tx.update(grads, state, params)
        updates, others = adam.update(grads, others)
        params = optax.apply_updates(params, updates)
    g = np.asarray(grads["Dense_0"]["kernel"]).ravel()
    at = np.argmax(np.abs(g))
    assert np.isclose(look.gradient, g[at])
    assert np.isclose(look.update, np.asarray(steps["Dense_0"]["kernel"]).ravel()[at], rtol=1e-4)


def test_every_feature_set_is_an_optimizer():
    for name, features in tradeoffs.FEATURE_SETS.items():
        learned = per_parameter(features, width=2)
        tx = learned.make(learned.init(jax.random.key(0)))
        params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
        updates, _ = tx.update(params, tx.init(params), params)
        assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates)), name


def test_overheads_are_ratios_to_adam_by_rounds():
    seconds = pd.DataFrame({"Adam": [1.0, 2.0], "small_fc": [2.0, 8.0]})
    row = overhead.over(seconds).iloc[0]
    assert (row.optimizer, row.ms) == ("small_fc", 5000.0)
    assert np.isclose(row.times, np.sqrt(2 * 4))
    assert row.low < row.times < row.high


def test_overheads_are_swept_one_axis_at_a_time():
    rows = overhead.swept(overhead.image_mlp, "digits", (4, 8, 16), (128, 32), rounds=2)
    cells = rows.groupby(["width", "batch"]).optimizer.apply(set)
    assert set(cells.index) == {(4, 128), (8, 128), (16, 128), (8, 32)}
    assert all(names == {"small_fc", "nn_adam"} for names in cells)


def test_large_networks_have_the_sizes_of_their_names_in_the_table(digits, monkeypatch):
    monkeypatch.setattr(overhead.data, "load", lambda name: digits)
    count = lambda model: overhead.count(
        jax.eval_shape(overhead.full_model(model, "digits", 2).init, jax.random.key(0))
    )
    assert np.isclose(count("ResNet-18"), 11.17e6, rtol=0.01)
    assert np.isclose(count("ResNet-50"), 23.5e6, rtol=0.01)
    assert np.isclose(count("Transformer, 256"), 43.1e6, rtol=0.02)


def test_prices_count_weights_and_bytes():
    table = prices.prices(1_000, ("small_fc",), ("velo_cam",), rounds=1).set_index("optimizer")
    assert table.weights["small_fc"] == 197
    assert table.weights["Adam"] == 0
    assert np.isclose(table.bytes["Adam"], 8.004)
    assert np.isclose(table.bytes["small_fc"], 16 + 12 * (10 + 100) / 1_000 + 0.008)
    assert table.times["Adam"] == 1.0
    assert np.allclose(table.times, table.ns / table.ns["Adam"])
    assert set(table.index) == {"small_fc", OPTIMIZERS["velo_cam"].label, *overhead.hand_made()}


def test_what_holds_a_gigabyte_is_not_timed(monkeypatch):
    monkeypatch.setattr(prices, "state_bytes", lambda tx, params: 8_004 if tx is ADAM_ALONE else 10**9)
    monkeypatch.setattr(prices, "everyone", lambda labels, names: {"Adam": ADAM_ALONE, "Lion": optax.lion(1e-3)})
    table = prices.prices(1_000, (), (), rounds=1).set_index("optimizer")
    assert np.isnan(table.ns["Lion"])
    assert table.ns["Adam"] > 0


def test_speed_of_evolution_is_counted_over_all_runs():
    table = prices.evolving("digits", "Adam", (1, 2), rounds=1)
    assert list(table.optimizer) == ["Adam", "Adam"]
    assert list(table.pairs) == [1, 2]
    assert (table.steps > 0).all()


def test_both_forms_are_timed_at_every_width():
    table = prices.forms((2, 4), parameters=1_000, inputs=3, rounds=2)
    assert table.groupby(["width", "form"]).size().tolist() == [2, 2, 2, 2]
    assert (table.ns > 0).all()
