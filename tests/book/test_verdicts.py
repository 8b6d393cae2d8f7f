import math

import pytest

from mnemosyne.book.verdicts import (
    VERDICTS,
    at_most,
    below,
    every,
    in_share,
    log_ratio,
    negated,
    share,
    some,
    verdict,
    within,
)
from mnemosyne.evaluate import interval


@pytest.mark.parametrize(
    ("estimate", "held"),
    [
        *[((0.8, 0.1), True), ((0.9, 0.1), True), ((0.95, 0.1), None), ((1.2, 0.1), False), ((1.1, 0.1), None)],
        *[((math.nan, 0.1), None), ((0.5, math.nan), None), ((math.inf, math.nan), False), ((-math.inf, 0.1), True)],
    ],
)
def test_a_statement_holds_or_fails_by_its_whole_interval(estimate, held):
    assert at_most(estimate, 1.0) is held


def test_below_leaves_the_limit_out():
    assert at_most((1.0, 0.0), 1.0) is True
    assert below((1.0, 0.0), 1.0) is False
    assert below((0.8, 0.1), 1.0) is True
    assert below((0.95, 0.1), 1.0) is None
    assert below((math.inf, 0.1), 1.0) is False
    assert below((math.nan, 0.1), 1.0) is None


def test_open_statements_stay_open_unless_others_decide():
    assert every([True, True]) is True
    assert every([True, None]) is None
    assert every([None, False]) is False
    assert some([None, False]) is None
    assert some([None, True]) is True
    assert some([False, False]) is False
    assert negated(None) is None
    assert share([True, True, None, False], 0.5) is True
    assert share([True, None, False, False], 0.5) is None
    assert share([True, False, False, None], 0.75) is False


def test_verdicts_of_whole_and_part():
    assert [verdict(x) for x in (True, False, None)] == ["reproduced", "not reproduced", "inconclusive"]
    assert verdict(False, True) == "partly"
    assert verdict(False, None) == "inconclusive"
    assert verdict(None, True) == "inconclusive"
    assert verdict(None, False) == "inconclusive"
    assert in_share([True] * 4) == "reproduced"
    assert in_share([True, True, False, None]) == "partly"
    assert in_share([True, True, None, None]) == "inconclusive"
    assert in_share([True, None, False, False]) == "inconclusive"
    assert in_share([None, False, False, False]) == "not reproduced"
    assert {in_share([True]), verdict(False), verdict(None)} < set(VERDICTS)


def test_within_asks_for_both_limits():
    found = [within(e, -1.0, 1.0) for e in ((0.0, 1.0), (0.5, 0.6), (1.5, 0.4), (-2.0, 0.5), (math.nan, math.nan))]
    assert found == [True, None, False, False, None]
    assert within((math.inf, math.nan), -1.0, 1.0) is within((-math.inf, math.nan), -1.0, 1.0) is False


def test_ratios_are_paired_and_lost_runs_count():
    mean, half = log_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert mean == pytest.approx(math.log(2))
    assert half == pytest.approx(0.0, abs=1e-12)
    assert log_ratio([1.0, 2.0], [1.0, 1.0]) == interval([0.0, math.log(2)])
    assert at_most(log_ratio([1.0, math.nan], [1.0, 1.0]), 0.0) is False
    assert at_most(log_ratio([1.0, 1.0], [1.0, math.inf]), 0.0) is None


@pytest.mark.parametrize("limit", [0.5, 0.9, 1.1])
def test_a_change_of_rounding_moves_no_statement_that_is_clear(limit):
    values = [0.7, 0.71, 0.69, 0.705]
    assert at_most(interval(values), limit) is at_most(interval([v * (1 + 1e-6) for v in values]), limit)
