"""Run after nbval: a verdict that flips against the published one is seen. `make test` calls it by name."""

import os

import pytest

from mnemosyne.book import results

OPEN = "inconclusive"


@pytest.mark.parametrize("notebook", results.notebooks())
def test_no_verdict_has_flipped(notebook):
    """A verdict may move to or from *inconclusive*, as an interval may by rounding; not from one side to the other."""
    assert os.environ.get("MNEMOSYNE_OUTPUT"), "set MNEMOSYNE_OUTPUT as `make test` does"
    got, wanted = (
        {c["id"]: c["verdict"] for c in read("quick", notebook)}
        for read in (results.read_claims, results.published_claims)
    )
    assert got.keys() == wanted.keys()
    flipped = {id: (wanted[id], v) for id, v in got.items() if v != wanted[id] and OPEN not in (v, wanted[id])}
    assert not flipped
