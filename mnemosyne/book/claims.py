"""What the papers claim and how each claim is judged, read from `data/claims.toml`.

    [fig10]
    paper = "mnemosyne"
    says = "faster than Adam, stable for thousands of steps"
    rule = "loss at step {late} below Adam's, by its whole 95% interval; partly: no run diverges"
    judge = "whole_or_part"

The rule is written before the run. A notebook adds which statements of the rule hold, and what it measured:

    run.claim("fig10", held=lower, part=stable, ours="0.93 times Adam's", sizes={"late": 1_000})
"""

import ast
import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mnemosyne.book import folders, keys, verdicts
from mnemosyne.book.verdicts import UNTESTED, Held
from mnemosyne.book.whole import Damaged, text

PAPERS = ("mnemosyne", "practical-tradeoffs", "memformers")


@dataclass(frozen=True)
class Stated:
    """A claim of a paper, and how it is judged."""

    id: str
    paper: str  # one of PAPERS
    says: str  # what the paper says
    rule: str  # how the verdict follows from numbers; sizes that depend on the scale stand in braces
    judge: str  # a key of JUDGES
    anywhere: bool = False  # theory, structure or a count, which any scale can judge; others wait for real data

    def __post_init__(self):
        for name, known in {"paper": PAPERS, "judge": JUDGES}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"claim {self.id!r}: {name} {getattr(self, name)!r} is none of {', '.join(known)}")


@dataclass(frozen=True)
class Claim:
    """A claim of a paper and what we found: a row of `<notebook>.claims.json`."""

    id: str
    paper: str  # what the paper says
    rule: str
    ours: str  # what we measured
    verdict: str  # one of `verdicts.VERDICTS`
    interval: str = ""  # 95%, over seeds
    seeds: int = 1
    note: str = ""
    anywhere: bool = False


@dataclass(frozen=True)
class Measured:
    """What a notebook adds to a claim."""

    ours: str
    interval: str = ""
    seeds: int = 1
    note: str = ""
    testable: bool = True  # False where a scale lacks what the rule asks about, or the baseline learns nothing
    sizes: dict[str, Any] = field(default_factory=dict)  # what stands in braces in the rule


# Judges: statements of a rule → verdict -------------------------------------------------------------------------------


def whole(held: Held) -> str:
    """Reproduced if the statement holds, open if it is open."""
    return verdicts.verdict(_plain(held))


def whole_or_part(held: Held, part: Held) -> str:
    """Reproduced if the whole statement holds, partly if only the weaker one does."""
    return verdicts.verdict(_plain(held), _plain(part))


def all_or_half(held: Iterable[Held]) -> str:
    """Reproduced if the statement holds in every cell, partly if in half of them."""
    return verdicts.in_share(map(_plain, held))


def theorem(held: Held) -> str:
    """Reproduced; of a statement that is proved, a failure is an error in the code, and stops the run."""
    assert held, "a statement that is proved does not hold here"
    return whole(held)


def nothing() -> str:
    """Not testable: the rule says why."""
    return UNTESTED


JUDGES = {judge.__name__: judge for judge in (whole, whole_or_part, all_or_half, theorem, nothing)}


def _plain(held: Any) -> Held:
    return None if held is None else bool(held)


# The file -------------------------------------------------------------------------------------------------------------


def stated() -> dict[str, Stated]:
    """All claims, by id.

    Raises:
        ValueError: a file that is damaged or no TOML; a claim with an unknown judge or paper, or with a field too few
            or too many. It names the file.
    """
    path = folders.claims()
    try:
        return {id: Stated(id, **entry) for id, entry in tomllib.loads(text(path)).items()}
    except Damaged:
        raise
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def find(id: str) -> Stated:
    """A claim by its id; a ValueError suggests the nearest."""
    known = stated()
    if id not in known:
        near = difflib.get_close_matches(id, known, n=1, cutoff=0.0)
        raise ValueError(f"no claim {id!r} in {folders.claims().name}; the nearest is {', '.join(near) or 'none'}")
    return known[id]


def judged(claim: Stated, measured: Measured, judges: bool, **statements: Any) -> Claim:
    """A claim with its verdict.

    Args:
        claim: what is judged.
        measured: what we found.
        judges: whether the scale can judge an empirical claim; else that is not testable, whatever came out.
        statements: what the claim's judge takes, as `held` and `part`.
    """
    verdict = JUDGES[claim.judge](**statements) if measured.testable else UNTESTED
    return Claim(
        id=claim.id,
        paper=claim.says,
        rule=claim.rule.format(**measured.sizes),
        ours=measured.ours,
        verdict=verdict if judges or claim.anywhere else UNTESTED,
        interval=measured.interval,
        seeds=measured.seeds,
        note=measured.note,
        anywhere=claim.anywhere,
    )


def made(code: Iterable[str]) -> list[str]:
    """The ids in a notebook's calls of `run.claim("…")`; an id that is no text in the call is a ValueError."""
    calls = [n for cell in code for n in ast.walk(keys.syntax(cell)) if isinstance(n, ast.Call)]
    named = [c.args[0] for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "claim"]
    for id in named:
        if not isinstance(id, ast.Constant):
            raise ValueError(f"run.claim({ast.unparse(id)}, …): write the claim's id out, so that it can be found")
    return [id.value for id in named]
