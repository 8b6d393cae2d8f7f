"""Files that are cut, empty, of zeros, of another kind or changed are named, and what is in them is not used."""

import io
import json

import pytest
from PIL import Image

from mnemosyne.book import claims, folders, pages, results, whole
from mnemosyne.book.chapter import open_run

pytestmark = pytest.mark.bad_input

TABLE = "a,b,c\n" + "".join(f"{i},{i / 7:.6g},x\n" for i in range(18))
CLAIM = {"id": "x", "paper": "p", "rule": "r", "ours": "o", "verdict": "partly"}
WRONG = {
    "empty": (lambda b: b"", "is empty"),
    "blank": (lambda b: b"\n\n", "is empty"),
    "zeros": (lambda b: bytes(len(b)), "holds zero bytes"),
    "half zeros": (lambda b: b[: len(b) // 2] + bytes(len(b) // 2), "holds zero bytes"),
    "another encoding": (lambda b: b + "é".encode("latin-1"), "is not UTF-8"),
    "a web page": (lambda b: b"<!DOCTYPE html><html><body>503</body></html>\n", "is a web page"),
    "a pointer": (lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}
WRONG_TABLE = WRONG | {
    "half": (lambda b: b[: len(b) // 2 + 3], "cells in row 10 and 3 in its header"),
    "cut within the last cell": (lambda b: b[:-2], "does not end"),
    "a header": (lambda b: b[:6], "a header and no rows"),
    "no header": (lambda b: b[6:].replace(b",x", b",1"), "has no header"),
    "a cell too many": (lambda b: b.replace(b"7,1,x", b"7,1,x,y"), "4 cells in row 8 and 3 in its header"),
}


@pytest.mark.parametrize("how", WRONG_TABLE)
def test_a_table_that_is_not_whole_is_named(tmp_path, how):
    path = tmp_path / "t.csv"
    path.write_text(TABLE, encoding="utf-8")
    assert len(whole.table(path)) == 18
    change, told = WRONG_TABLE[how]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(whole.Damaged, match=rf"t\.csv .*({told})"):
        whole.table(path)


WRONG_CLAIMS = WRONG | {
    "cut": (lambda b: b[:-9], "is not whole"),
    "another kind": (lambda b: b"{}", "holds a dict where a list belongs"),
    "no verdict": (lambda b: b.replace(b"verdict", b"vrdict"), r"holds a claim \(x\) without verdict"),
    "another verdict": (lambda b: b.replace(b"partly", b"surely"), "the verdict 'surely' on x, which is none of repro"),
    "a verdict that is no text": (lambda b: b.replace(b'"partly"', b"1"), "without verdict"),
    "no claims": (lambda b: b"[1]", r"holds a claim \(no id\)"),
    "twice": (lambda b: json.dumps([CLAIM, CLAIM]).encode(), "holds x more than once"),
}


@pytest.mark.parametrize("how", WRONG_CLAIMS)
def test_claims_that_say_nothing_are_named(tmp_path, how):
    path = tmp_path / "c.json"
    path.write_text(json.dumps([CLAIM]), encoding="utf-8")
    assert whole.claims(path) == [CLAIM]
    change, told = WRONG_CLAIMS[how]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(whole.Damaged, match=rf"c\.json .*{told}"):
        whole.claims(path)


@pytest.mark.parametrize("change", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: bytes(len(b))])
def test_a_picture_that_is_not_whole_is_named(tmp_path, change):
    path, drawn = tmp_path / "f.png", io.BytesIO()
    Image.effect_noise((40, 40), 9).save(drawn, format="png")
    path.write_bytes(drawn.getvalue())
    assert whole.picture(path) == path
    path.write_bytes(change(drawn.getvalue()))
    with pytest.raises(whole.Damaged, match=r"f\.png is no whole picture"):
        whole.picture(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 3}', "<html>"])
def test_what_is_no_notebook_is_named(tmp_path, content):
    path = tmp_path / "n.ipynb"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(whole.Damaged, match=r"n\.ipynb is"):
        whole.notebook(path)


@pytest.fixture
def published(checkout):
    folder = folders.published_tables("laptop")
    folder.mkdir(parents=True)
    for name, text in {"t.csv": TABLE, "01_good.claims.json": json.dumps([CLAIM])}.items():
        (folder / name).write_text(text, encoding="utf-8")
    listed = {path.name: whole.digest(path) for path in folder.iterdir()}
    whole.listing("laptop").write_text(json.dumps(listed), encoding="utf-8")
    return folder


def test_a_published_file_that_was_cut_between_two_lines_is_seen(published):
    assert len(results.read_table("laptop", "t")) == len(pages.published("t")) == 18
    assert results.published_claims("laptop", "01_good") == [CLAIM]
    (published / "t.csv").write_text("".join(TABLE.splitlines(True)[:9]), encoding="utf-8")
    told = r"t\.csv is not what was published .*git checkout -- data/results/laptop/t\.csv"
    for read in (lambda: results.read_table("laptop", "t"), lambda: pages.published("t")):
        with pytest.raises(whole.Damaged, match=told):
            read()
    (published / "t.csv").unlink()
    with pytest.raises(whole.Damaged, match=r"t\.csv is gone; get the published one again"):
        results.read_table("laptop", "t")
    changed = json.dumps([CLAIM | {"verdict": "reproduced"}])
    (published / "01_good.claims.json").write_text(changed, encoding="utf-8")
    with pytest.raises(whole.Damaged, match=r"01_good\.claims\.json is not what was published"):
        results.published_claims("laptop", "01_good")


@pytest.mark.parametrize("content", ["", "[]", '{"t.csv": 3}', '{"t.csv": "abc"}'])
def test_a_listing_that_lists_nothing_is_named(published, content):
    whole.listing("laptop").write_text(content, encoding="utf-8")
    with pytest.raises(whole.Damaged, match=r"laptop\.digests\.json"):
        results.read_table("laptop", "t")


def test_a_page_is_not_written_from_damaged_results(published, checkout):
    (checkout / "README.md").write_text("<!-- generated: ledger -->\n<!-- end -->\n", encoding="utf-8")
    (published / "01_good.claims.json").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"01_good\.claims\.json is empty"):
        pages.main()


def test_what_is_published_is_what_is_listed():
    for listing in (folders.root() / "data/results").glob("*.digests.json"):
        scale = listing.name.removesuffix(".digests.json")
        places = folders.published_tables(scale), folders.published_figures(scale)
        assert whole.digests(scale) == {path.name: whole.digest(path) for p in places for path in p.glob("*")}


def test_a_table_of_a_run_that_has_changed_since_is_named(checkout):
    run = open_run("01_good", seed=2)
    run.table("t", whole.pd.DataFrame({"a": [1.0, 2.0]}))
    run.claim("x", held=True, ours="o")
    run.claims()
    run.close()
    assert len(results.read_table("quick", "t", 2)) == 2
    path = run.folder / "tables/t.csv"
    path.write_text("a\n1\n", encoding="utf-8")
    with pytest.raises(whole.Damaged, match=r"not what the run of 01_good .*SCALE=quick SEED=2 FORCE=1 ONLY=01"):
        results.read_table("quick", "t", 2)
    (run.folder / "tables/01_good.claims.json").write_text("[", encoding="utf-8")
    with pytest.raises(whole.Damaged, match=r"01_good\.claims\.json"):
        results.read_claims("quick", "01_good", 2)


def test_what_is_published_is_not_shown_as_another_seeds(published, checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MNEMOSYNE_OUTPUT", str(tmp_path / "elsewhere"))
    assert results.read_claims("laptop", "01_good", 3) == []
    assert results.read_table("laptop", "t", 3) is None
    assert "no run with seed 3 has written it; the published table is of seed 0" in capsys.readouterr().out
    assert len(results.read_table("laptop", "t", 0)) == 18


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "claims.toml is empty"),
        ("[x", "claims.toml: Expected"),
        ("x = 3\n", "claims.toml"),
        ('[x]\npaper = "mnemosyne"\n', "claims.toml: .*says"),
        ("<html>", "is a web page"),
    ],
)
def test_a_file_of_claims_that_cannot_be_read_is_named(checkout, content, told):
    folders.claims().write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        claims.stated()
