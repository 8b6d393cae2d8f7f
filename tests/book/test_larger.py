"""Networks larger than those of the search: how large they are, who trains them, what the picture shows."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mnemosyne.book.studies import larger


def test_they_are_as_large_as_the_chapter_says():
    assert larger.parameters(larger.language("synthetic", (6, 384))) == pytest.approx(10.7e6, rel=0.02)
    assert larger.parameters(larger.pictures("digits", 16)) == pytest.approx(0.7e6, rel=0.02)


def test_the_rule_was_chosen_on_networks_up_to_a_million():
    sizes = [larger.parameters(task) for task in larger.sized("digits", "synthetic")]
    assert len(sizes) == 11
    assert max(sizes) == sizes[-1] > 1e6


def test_each_rate_is_a_contender_of_its_own():
    names = [(c.name, c.rates) for c in larger.contenders(100, (1e-2, 1e-3))]
    assert names[:2] == [("Adam", (1e-2,)), ("Adam", (1e-3,))]
    assert len(names) == len(set(names)) == 4 + 4
    assert [rates for name, rates in names[4:]] == [(1.0,)] * 4


def test_the_cross_stands_where_steps_would_be_without_the_rule():
    """Four times as large as the limit: twice the steps. Below the limit there is no rule."""
    ours, base = larger.multiplied(), larger.TUNED
    rows = [(ours.name, f, 1.0 + abs(np.log(f))) for f in ours.rates] + [(base.name, r, 2.0) for r in base.rates]
    rows = pd.DataFrame(rows, columns=["optimizer", "rate", "train_loss"])
    sizes = {"large": 4 * larger.SMALL, "small": larger.SMALL // 2}
    found = larger.over_adam(pd.concat(rows.assign(task=task, parameters=n) for task, n in sizes.items()))
    assert list(found.index) == [(sizes["small"], "small"), (sizes["large"], "large")]
    assert np.allclose(found.factor, [1.0, 2.0])
    assert np.allclose(found.without, [0.5, (1 + np.log(2)) / 2])
    assert np.allclose(found[1.0], 0.5)
    fig, ax = plt.subplots()
    larger.by_factor(ax, found)
    crosses = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "x"]
    assert np.allclose(crosses, found[["factor", "without"]])
    plt.close(fig)


def test_seconds_are_over_adams():
    table = larger.seconds(larger.language, "synthetic", (1, 16), 10, rounds=1).set_index("optimizer")
    assert table.times["Adam"] == 1.0
    assert (table.ms > 0).all()
    assert (table.parameters == larger.parameters(larger.language("synthetic", (1, 16)))).all()
    assert set(table.index) == {c.name for c in larger.contenders(10)}


def test_the_entropy_of_single_characters(monkeypatch):
    """Half of them one, a quarter another, a quarter a third: 3/2 bits."""
    text = larger.load_text("synthetic")._replace(train=np.array([0, 0, 2, 5], np.int32))
    monkeypatch.setattr(larger, "load_text", lambda name: text)
    assert larger.entropy("synthetic") == pytest.approx(1.5 * np.log(2))
