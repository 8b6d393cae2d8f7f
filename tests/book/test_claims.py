import json
from collections import Counter

import numpy as np
import pytest

from mnemosyne.book import chapter, claims, folders, reproduce, results
from mnemosyne.book.claims import JUDGES, Measured
from mnemosyne.book.verdicts import VERDICTS


def test_every_claim_of_the_file_is_made_by_one_notebook():
    made = Counter(id for name in results.notebooks() for id in claims.made(reproduce.code_of(name)))
    assert made.keys() == claims.stated().keys()
    assert not [id for id, times in made.items() if times > 1]


@pytest.mark.parametrize("notebook", results.notebooks())
def test_what_is_published_follows_the_file(notebook):
    """The claims of the notebook, with what the paper says, and the rule with its sizes filled in."""
    published, known = results.published_claims("laptop", notebook), claims.stated()
    assert {c["id"] for c in published} == set(claims.made(reproduce.code_of(notebook)))
    for claim in published:
        stated = known[claim["id"]]
        assert (claim["paper"], claim["anywhere"]) == (stated.says, stated.anywhere)
        around = [text.split("}")[-1] for text in stated.rule.split("{")]
        assert all(text in claim["rule"] for text in around)
        assert claim["verdict"] in VERDICTS


@pytest.mark.parametrize(
    ("judge", "statements", "verdict"),
    [
        ("whole", {"held": np.bool_(False)}, "not reproduced"),
        ("whole", {"held": True}, "reproduced"),
        ("whole", {"held": None}, "inconclusive"),
        ("whole_or_part", {"held": False, "part": np.bool_(True)}, "partly"),
        ("whole_or_part", {"held": None, "part": False}, "inconclusive"),
        ("all_or_half", {"held": [True, True, np.bool_(False)]}, "partly"),
        ("all_or_half", {"held": np.array([True, True])}, "reproduced"),
        ("all_or_half", {"held": [False, None]}, "inconclusive"),
        ("theorem", {"held": np.bool_(True)}, "reproduced"),
        ("nothing", {}, "not testable at this scale"),
    ],
)
def test_judges(judge, statements, verdict):
    assert JUDGES[judge](**statements) == verdict


def test_a_theorem_that_fails_stops_the_run():
    with pytest.raises(AssertionError, match="proved"):
        claims.theorem(False)


def test_an_unknown_claim_is_an_error_with_the_nearest(checkout):
    run = chapter.open_run("01_good")
    with pytest.raises(ValueError, match=r"no claim 'empiricle' in claims\.toml; the nearest is empirical"):
        run.claim("empiricle", held=[True], ours="o")
    assert not run.claimed


def test_a_claim_needs_the_statements_of_its_judge_and_the_sizes_of_its_rule(checkout):
    run = chapter.open_run("01_good", "laptop")
    with pytest.raises(TypeError, match="part"):
        run.claim("x", held=True, part=True, ours="o")
    with pytest.raises(KeyError, match="limit"):
        run.claim("empirical", held=[True], ours="o")


def test_what_a_scale_cannot_test_is_not_judged(checkout):
    found = claims.judged(claims.find("x"), Measured("none here", testable=False), judges=True)
    assert (found.verdict, found.ours) == ("not testable at this scale", "none here")


@pytest.mark.parametrize(("key", "value"), [("judge", "strict"), ("paper", "another")])
def test_a_claim_with_an_unknown_judge_or_paper_is_refused(checkout, key, value):
    entry = {"paper": "mnemosyne", "says": "p", "rule": "r", "judge": "whole"} | {key: value}
    folders.claims().write_text(
        "[y]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in entry.items()), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=f"claim 'y': {key} '{value}' is none of"):
        claims.stated()


def test_ids_are_found_in_code_and_must_be_written_out():
    assert claims.made(['run.claim("a", held=x)\nother("b")', 'run.claim("c", **measured("d"))']) == ["a", "c"]
    with pytest.raises(ValueError, match=r"run.claim\(f'fig\{n\}', …\): write the claim's id out"):
        claims.made(["run.claim(f'fig{n}', held=x)"])
