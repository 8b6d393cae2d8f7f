import jax
import numpy as np
import pandas as pd
import pytest

from mnemosyne.book.studies import comparison
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.paper import paper_rule
from mnemosyne.optimizer.rule import Config
from tests.helpers import sequence


@pytest.fixture
def rows():
    """Two tasks, Adam at three rates and an untuned rule, two seeds, one mark, losses written down."""
    losses = {
        ("a", "Adam", 0.1): (2.0, 4.0),
        ("a", "Adam", 0.01): (1.0, 1.0),
        ("a", "Adam", 0.001): (np.nan, 0.1),
        ("a", "Rule", 1.0): (0.5, 0.5),
        ("b", "Adam", 0.1): (1.0, 1.0),
        ("b", "Adam", 0.01): (2.0, 2.0),
        ("b", "Adam", 0.001): (3.0, 3.0),
        ("b", "Rule", 1.0): (2.0, 2.0),
    }
    return pd.DataFrame(
        [
            {"task": t, "optimizer": o, "rate": r, "seed": seed, "step": 100, "train_loss": v}
            for (t, o, r), pair in losses.items()
            for seed, v in enumerate(pair)
        ]
    )


def test_standings_take_the_best_rate_and_tell_an_edge(rows):
    table = comparison.standings(rows, [100]).set_index(["task", "optimizer"])
    assert table.loc[("a", "Adam")][["rate", "loss"]].tolist() == [0.01, 1.0]  # the rate that lost a run cannot win
    assert not table.edge[("a", "Adam")]
    assert table.edge[("b", "Adam")]
    assert not table.edge[("b", "Rule")]
    assert (table.seeds == 2).all()


def test_made_odd_is_odd_and_leaves_an_odd_rule_alone():
    g = sequence(1, 5, 3)
    plain = paper_rule(Config(hidden=4, projections=4, encoders=1, feedforward=6))
    theta, rule = plain.init(jax.random.key(0)), comparison.made_odd(plain)
    assert np.abs(plain.window(theta, plain.state((3,)), g) + plain.window(theta, plain.state((3,)), -g)).max() > 1e-5
    out = rule.window(theta, rule.state((3,)), g)
    assert np.allclose(rule.window(theta, rule.state((3,)), -g), -out, atol=1e-8)
    state, steps = rule.state((3,)), []
    for x in g:
        state, u = rule.step(theta, state, x)
        steps.append(u)
    assert np.allclose(np.stack(steps), out, rtol=1e-3, atol=1e-8)
    odd = odd_rule(Config(hidden=4, projections=4, encoders=1, feedforward=6))
    theta, twice = odd.init(jax.random.key(0)), comparison.made_odd(odd)
    assert np.allclose(twice.window(theta, twice.state((3,)), g), odd.window(theta, odd.state((3,)), g), atol=1e-7)


def test_shown_names_the_rate_of_what_has_one_and_its_edge(rows):
    rows["optimizer"] = rows.optimizer.replace("Rule", "Mnemosyne")
    table = comparison.standings(rows, [100])
    shown = dict(zip(zip(table.task, table.optimizer, strict=True), comparison.shown(table), strict=True))
    assert shown["a", "Adam"] == "1.000 ± 0.000  (0.01)"
    assert shown["b", "Adam"] == "1.000 ± 0.000  (0.1, edge)"
    assert shown["a", "Mnemosyne"] == "0.500 ± 0.000"


def test_ratios_and_their_geometric_mean(rows):
    ratio = comparison.ratios(comparison.standings(rows, [100]))
    assert dict(zip(ratio.task, ratio.ratio, strict=True)) == {"a": 0.5, "b": 2.0}
    mean = comparison.geometric_means(ratio).iloc[0]
    assert np.isclose(mean["mean"], 1.0)
    assert mean.worst == 2.0
    assert mean.low < 1.0 < mean.high


def test_a_run_that_is_lost_makes_an_infinite_ratio(rows):
    rows.loc[(rows.task == "b") & (rows.optimizer == "Rule"), "train_loss"] = np.nan
    ratio = comparison.ratios(comparison.standings(rows, [100]))
    assert np.isinf(ratio.ratio[ratio.task == "b"]).all()


def test_cells_count_lost_rates_as_beaten(rows):
    cell = comparison.cells(rows, 100)
    ahead = cell.set_index(["task", "rate"]).ahead
    assert ahead["a"].tolist() == [True, True, True]
    assert ahead["b"].to_dict() == {0.1: False, 0.01: False, 0.001: True}
    held = cell.set_index(["task", "rate"]).held
    assert held["a"].to_dict() == {0.1: None, 0.01: True, 0.001: True}  # 2 and 4 against 0.5: two seeds are few
    assert held["b"].to_dict() == {0.1: False, 0.01: False, 0.001: True}
    assert comparison.below_the_median(cell).Rule.to_dict() == {"a": None, "b": False}


def test_pairs_are_of_the_same_seed(rows):
    found = comparison.paired(rows, [100]).set_index("task")
    assert np.allclose(found.log_ratio, [np.log(0.5), np.log(2.0)])
    assert np.allclose(found.half, 0.0)
    assert list(found.shown) == ["0.50 [0.50, 0.50]", "2.00 [2.00, 2.00]"]
    compared = found.reset_index()
    assert comparison.within(compared, "Rule", 100) == [True, False]
    assert comparison.within(compared, "Rule", 100, limit=2.1) == [True, True]
    mean = comparison.across(rows, [100]).iloc[0]
    assert np.isclose(mean.log_ratio, 0.0)
    assert np.isclose(mean.half, 0.0)
    assert comparison.lowest(rows[rows.task == "a"], 100, "Rule") is True
    assert comparison.lowest(rows, 100, "Rule") is False
    rows.loc[(rows.task == "b") & (rows.optimizer == "Rule"), "train_loss"] = np.nan
    assert np.isinf(comparison.paired(rows, [100]).log_ratio).tolist() == [False, True]
    assert np.isinf(comparison.across(rows, [100]).log_ratio).all()


def test_best_rates_differ_where_no_rate_is_best_on_all_tasks(rows):
    assert comparison.no_rate_for_all(rows, 100) is None  # on a, 2 and 4 against 1 and 1
    rows.loc[(rows.task == "a") & (rows.rate == 0.1), "train_loss"] = 3.0
    assert comparison.no_rate_for_all(rows, 100) is True  # 0.01 is best on a, 0.1 on b
    assert comparison.no_rate_for_all(rows[rows.task == "b"], 100) is False
    close = rows[rows.task == "b"].copy()
    close.loc[(close.rate == 0.01) & (close.seed == 0), "train_loss"] = 0.9
    assert comparison.no_rate_for_all(close, 100) is None  # 0.9 and 2 against 1 and 1


def test_one_setting_for_all_tasks_is_best_in_the_mean_and_lost_none(rows):
    known = comparison.only_at([rows, rows.assign(step=50)], (100,))
    assert set(known.step) == {100}
    fixed = comparison.best_for_all(known, 100)
    assert fixed == {"Adam": 0.01, "Rule": 1.0}  # 0.001 lost a run, 0.1 has the larger product
    alone = comparison.at_settings(known, fixed)
    assert set(alone.optimizer) == {"Adam, one setting", "Rule, one setting"}
    assert set(alone[alone.optimizer == "Adam, one setting"].rate) == {0.01}
