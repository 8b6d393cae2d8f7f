"""Verdicts that no rounding can flip: a statement holds, fails, or is open, by a whole 95% interval.

    held = at_most(interval(log_ratios), 0.0)      # True, False, or None where the interval straddles the limit
    in_share([held, …])                            # "reproduced", "partly", "not reproduced" or "inconclusive"

Statements combine as in Kleene's three-valued logic: what is open stays open unless the others decide.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from mnemosyne.evaluate import interval

Held = bool | None  # True: it holds; False: it fails; None: the data leave it open

UNTESTED = "not testable at this scale"
VERDICTS = ("reproduced", "partly", "not reproduced", "inconclusive", UNTESTED)


def at_most(estimate: tuple[float, float], limit: float) -> Held:
    """Whether a quantity is at most a limit.

    Args:
        estimate: (mean, half-width of its 95% interval), as `evaluate.interval` gives.
        limit: inclusive.

    Returns:
        True if the whole interval is at most the limit, False if it lies above, else None. An infinite mean, of runs
        that were lost, is above every limit; an unknown one is open, and so is one without an interval.
    """
    mean, half = map(float, estimate)
    if math.isinf(mean):
        return mean < 0
    if mean + half <= limit:
        return True
    return False if mean - half > limit else None


def below(estimate: tuple[float, float], limit: float) -> Held:
    """Whether a quantity is below a limit: as `at_most`, the limit exclusive."""
    return negated(at_most((-estimate[0], estimate[1]), -limit))


def within(estimate: tuple[float, float], low: float, high: float) -> Held:
    """Whether a quantity lies between two limits, both inclusive: as `at_most`."""
    return every([at_most(estimate, high), negated(below(estimate, low))])


def log_ratio(ours: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of log(ours/base), paired: the i-th of both had the same seed.

    Infinite if ours was lost in some run in which the base was not; unknown if the base was lost in any.
    """
    ours, base = np.asarray(ours, float), np.asarray(base, float)
    if not np.isfinite(base).all():
        return math.nan, math.nan
    if not np.isfinite(ours).all():
        return math.inf, math.nan
    return interval(np.log(ours / base))


def negated(held: Held) -> Held:
    """The opposite; open stays open."""
    return None if held is None else not held


def every(statements: Iterable[Held]) -> Held:
    """Whether all hold: False if one surely fails, else None if one is open."""
    statements = list(statements)
    return False if False in statements else None if None in statements else True


def some(statements: Iterable[Held]) -> Held:
    """Whether one holds at least."""
    return negated(every(map(negated, statements)))


def share(statements: Iterable[Held], needed: float) -> Held:
    """Whether a share of the statements holds at least, such as 0.5."""
    statements = list(statements)
    surely, possibly = statements.count(True), len(statements) - statements.count(False)
    return True if surely >= needed * len(statements) else False if possibly < needed * len(statements) else None


def verdict(whole: Held, part: Held = False) -> str:
    """The verdict on a rule "*reproduced* if `whole`, *partly* if only `part`".

    Args:
        whole: whether all that the paper says was found.
        part: whether the weaker statement was, which follows from the whole one.

    Returns:
        "inconclusive" unless open statements make no difference.
    """
    if whole:
        return "reproduced"
    if whole is False and part is not None:
        return "partly" if part else "not reproduced"
    return "inconclusive"


def in_share(statements: Iterable[Held], part: float = 0.5) -> str:
    """The verdict on a statement about several cells: reproduced in all, partly in at least a share of them."""
    statements = list(statements)
    return verdict(every(statements), share(statements, part))
