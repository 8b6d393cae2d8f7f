"""Run after nbval: a verdict that flips against the committed one is seen. `make test` calls it by name."""

import json

import pytest

from mnemosyne import results

COMMITTED = results.root() / "data" / "results" / "quick"


@pytest.mark.parametrize("notebook", results.notebooks())
def test_verdicts_are_the_committed_ones(notebook):
    fresh = results.output() / "data" / "results" / "quick"
    assert fresh != COMMITTED, "set MNEMOSYNE_OUTPUT as `make test` does"
    got, wanted = (
        {c["id"]: c["verdict"] for c in json.loads((folder / f"{notebook}.claims.json").read_text())}
        for folder in (fresh, COMMITTED)
    )
    assert got == wanted
