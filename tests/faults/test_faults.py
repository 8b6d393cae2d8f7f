"""The harness in short: a few kills of each kind, and every other condition once. The long form is marked slow."""

import subprocess
import sys

import pandas as pd
import pytest

from mnemosyne.book import pages
from tests.faults import tally
from tests.faults.works import REPOSITORY


def harness(*args):
    """The tally it prints; it runs apart from pytest, since what it kills is forked from it."""
    command = [sys.executable, "-m", "tests.faults.harness", *args]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_outer_loop_survives_kills_full_disks_a_second_run_and_a_jumping_clock():
    said = harness("outer-loop", "--times", "4", "--conditions", "1")
    assert "two of outer loop at once" in said


def test_notebooks_and_publishing_survive_kills():
    said = harness("reproduce", "publish", "--times", "1", "--conditions", "0")
    assert "kill -9 of publish" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["outer-loop", "meta-train", "reproduce", "publish"])
def test_a_hundred_kills_and_ten_times_every_other_condition(kind):
    harness(kind, "--times", "100")


def test_published_tallies_add_up_and_say_what_was_wrong():
    paths = sorted(tally.FOLDER.glob("*.csv"))
    for path in paths:
        rows = pd.read_csv(path, keep_default_na=False)
        assert tuple(rows.columns) == tally.COLUMNS
        assert (rows.tried == rows.right + rows.clear_error + rows.wrong).all(), path
        assert rows[rows.wrong > 0].note.all(), path


def test_the_page_has_every_row_of_every_tally_and_their_sum(tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_ROOT", str(tmp_path))
    assert pages.faults() == "Nothing has been tried yet.\n"
    folder = tmp_path / "data" / "results" / "faults"
    tally.record("kills", [{"what": "kill -9", "tried": 1200, "right": 1199, "wrong": 1, "note": "a|b"}], folder)
    tally.record("fuzz", [{"what": "trees", "tried": 5, "right": 3, "clear_error": 2}], folder)
    *_, trees, kills, sums = pages.faults().splitlines()
    assert trees == "| fuzz | trees | 5 | 3 | 2 | 0 |  |"
    assert kills == "| kills | kill -9 | 1,200 | 1,199 | 0 | 1 | a\\|b |"
    assert sums == "|  | **all** | **1,205** | **1,202** | **2** | **1** |  |"
