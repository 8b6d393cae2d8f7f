import gzip
import json

import numpy as np
import pandas as pd
import pytest

from mnemosyne.book import folders, kept
from mnemosyne.book.kept import Kept

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_ROOT", str(tmp_path))
    return tmp_path


def counting(content):
    calls = []
    return calls, lambda: calls.append(1) or content


def test_content_is_computed_once_and_first_and_later_calls_return_the_same():
    x = np.float32([0.1, 1 / 3, np.nan, np.inf, 1e-30])
    frame = pd.DataFrame({"x": x, "n": range(5), "s": list("abcde"), "b": [True, False] * 2 + [True]})
    calls, compute = counting([frame, {"log": [{"loss": 0.1, "each": [1, 2]}]}])
    first, second = Kept().get(KEY, compute), Kept().get(KEY, compute)
    assert len(calls) == 1
    for table, log in (first, second):
        assert np.array_equal(table.x.to_numpy(np.float32), x, equal_nan=True)
        assert list(table.dtypes.astype(str)) == ["float64", "int64", "object", "bool"] or table.s.tolist() == list(
            "abcde"
        )
        assert log == {"log": [{"loss": 0.1, "each": [1, 2]}]}
    assert first[0].equals(second[0])
    Kept().get(OTHER, compute)
    assert len(calls) == 2


def test_force_computes_anew_and_the_newer_is_kept():
    Kept().get(KEY, lambda: 1)
    assert Kept(force=True).get(KEY, lambda: 2) == 2
    assert Kept().get(KEY, lambda: 3) == 2


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a digit changed":
        path.write_bytes(gzip.compress(gzip.decompress(content).replace(b"0.25", b"0.75")))
    elif how == "no JSON":
        path.write_bytes(gzip.compress(b"{"))


@pytest.mark.bad_input
@pytest.mark.parametrize("how", ["truncated", "empty", "a digit changed", "no JSON"])
def test_a_damaged_file_is_told_and_computed_anew(capsys, how):
    calls, compute = counting(pd.DataFrame({"x": [0.25]}))
    Kept().get(KEY, compute)
    damage(kept._path(KEY), how)
    assert Kept().get(KEY, compute).x[0] == 0.25
    assert len(calls) == 2
    assert f"{KEY}.json.gz is damaged; it is not used" in capsys.readouterr().out
    Kept().get(KEY, compute)
    assert len(calls) == 2


def test_what_is_published_is_found_and_a_damaged_archive_is_told(checkout, capsys):
    calls, compute = counting(pd.DataFrame({"x": [0.25]}))
    Kept().get(KEY, compute)
    archive = folders.published_rows() / "laptop" / "01_x.zip"
    folders.write(archive, kept.archive([KEY], "make figures"))
    first = archive.read_bytes()
    folders.write(archive, kept.archive([KEY], "make figures"))
    assert archive.read_bytes() == first
    kept._path(KEY).unlink()
    assert Kept().get(KEY, compute).x[0] == 0.25
    assert len(calls) == 1
    archive.write_bytes(first[: len(first) // 2])
    assert Kept().get(KEY, compute).x[0] == 0.25
    assert len(calls) == 2
    assert "01_x.zip is damaged" in capsys.readouterr().out


def test_arrays_are_kept_with_what_was_measured(checkout, capsys):
    like = {"w": np.zeros(3, np.float32)}
    calls, compute = counting(({"w": np.float32([1, 2, 3])}, {"accuracy": np.float32(0.5)}))
    for _ in range(2):
        arrays, measured = Kept().arrays(KEY, like, compute)
        assert np.array_equal(arrays["w"], [1, 2, 3])
        assert measured == {"accuracy": 0.5}
    assert len(calls) == 1
    path = kept._arrays(KEY)
    folders.write(folders.published_rows() / "laptop" / "01_x.zip", kept.archive([KEY], "make figures"))
    path.write_bytes(path.read_bytes()[:-2])
    assert np.array_equal(Kept().arrays(KEY, like, compute)[0]["w"], [1, 2, 3])
    assert "is damaged or not there" in capsys.readouterr().out
    assert len(calls) == 2
    for mine in (path, kept._path(KEY)):
        mine.unlink()
    assert np.array_equal(Kept().arrays(KEY, like, compute)[0]["w"], [1, 2, 3])  # of the archive
    assert len(calls) == 2


def test_how_contents_came_is_counted():
    one = Kept()
    for key in (KEY, OTHER):
        one.get(key, lambda: 1)
    (source,) = one.sources()
    assert source["entries"] == 2
    assert "jax" in source["versions"]
    entry = json.loads(gzip.decompress(kept._path(KEY).read_bytes()))
    assert set(entry) == {"about", "sha256", "content"}
    assert entry["about"]["seconds"] >= 0


@pytest.mark.bad_input
def test_a_flipped_bit_in_what_is_published_is_never_used(checkout, capsys):
    """Wherever it is: in an entry, its name, or the directory of the archive."""
    table = pd.DataFrame({"x": np.linspace(0, 1, 50)})
    Kept().get(KEY, lambda: table)
    archive = folders.published_rows() / "laptop" / "01_x.zip"
    folders.write(archive, kept.archive([KEY], "make figures"))
    kept._path(KEY).unlink()
    content, whole, told = archive.read_bytes(), kept.find(KEY), 0
    for i in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[i] ^= 1 << (i % 8)
        archive.write_bytes(flipped)
        found = kept.find(KEY)
        assert found in (None, whole)
        told += found is None and "is damaged" in capsys.readouterr().out
    assert told > len(content) / 6


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "content", [b"", bytes(400), b"<html>503</html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_what_is_no_archive_is_named_and_computed_anew(checkout, capsys, content):
    archive = folders.published_rows() / "laptop" / "01_x.zip"
    folders.write(archive, content)
    assert Kept().get(KEY, lambda: 3) == 3
    assert "01_x.zip is damaged" in capsys.readouterr().out


@pytest.mark.bad_input
@pytest.mark.parametrize("entry", [[], {"content": 1}, {"content": 1, "sha256": kept._digest(1)}, 3])
def test_an_entry_that_says_nothing_is_named_and_computed_anew(checkout, capsys, entry):
    folders.write(kept._path(KEY), gzip.compress(json.dumps(entry).encode()))
    assert Kept().get(KEY, lambda: 4) == 4
    assert ".json.gz is damaged; it is not used (" in capsys.readouterr().out
