import csv

import pytest

from tests.faults import tally


def test_a_tally_is_written_whole_with_every_column(tmp_path):
    path = tally.record("fuzz", [{"what": 'trees, "odd"', "tried": 3, "right": 2, "wrong": 1}], tmp_path)
    with path.open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert tuple(rows[0]) == tally.COLUMNS
    assert rows == [{"what": 'trees, "odd"', "tried": "3", "right": "2", "clear_error": "0", "wrong": "1", "note": ""}]
    assert [p.name for p in tmp_path.iterdir()] == ["fuzz.csv"]


def test_numbers_that_do_not_add_up_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 were tried, but right, clear_error and wrong sum to 2"):
        tally.record("fuzz", [{"what": "trees", "tried": 3, "right": 2}], tmp_path)
    with pytest.raises(ValueError, match="not failed"):
        tally.record("fuzz", [{"what": "trees", "tried": 3, "right": 3, "failed": 0}], tmp_path)
    assert not list(tmp_path.iterdir())
