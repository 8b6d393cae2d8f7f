import base64
import io
import json
import os
import re
import threading
from concurrent.futures import Future

import nbformat
import numpy as np
import pytest
from PIL import Image

from mnemosyne.book import chapter, folders, publish, reproduce
from mnemosyne.book.progress import Progress
from tests.conftest import notebook

FIGURE = """import matplotlib.pyplot as plt
import optax
import pandas as pd
from mnemosyne.evaluate import untuned
from mnemosyne.book import open_run
from tests.helpers import quadratic
run = open_run("03_figure", scale, seed)
rows = run.table("t", run.train(quadratic("a", 3), untuned("mine", optax.sgd(RATE)), 100))
fig, ax = plt.subplots()
ax.plot(rows.step, rows.train_loss, color=COLOR)
run.figure("f", fig)
plt.show()
run.claim("x", held=True, ours="o")
run.claims()
run.close()"""


def write(checkout, name, source, **values):
    for key, value in values.items():
        source = source.replace(key, repr(value))
    (checkout / "notebooks" / f"{name}.ipynb").write_text(nbformat.writes(notebook(source)), encoding="utf-8")


@pytest.fixture
def drawn(checkout, monkeypatch):
    """Write the notebook with a figure, run it, and tell how many rows files there are."""
    monkeypatch.setenv("PYTHONPATH", str(chapter.STYLE.parents[2]))

    def run(rate=0.1, color="red", **options):
        write(checkout, "03_figure", FIGURE, RATE=rate, COLOR=color)
        assert reproduce.reproduce(only=("03",), **options) == 0
        return len(list(folders.cache().glob("kept/*")))

    return run


@pytest.mark.filterwarnings("ignore")
def test_reproduce_runs_caches_fails_and_tells(checkout, capsys):
    before = dict(os.environ)
    assert reproduce.reproduce(only=("01",), seed=3) == 0
    first = capsys.readouterr().out
    assert "1/1  01_good              ran" in first
    assert "seed 3" in first
    assert "reproduced" in first
    assert reproduce.reproduce(only=("01",), seed=3) == 0
    assert "cached" in capsys.readouterr().out
    assert reproduce.reproduce(only=("01",), seed=4) == 0
    assert "ran" in capsys.readouterr().out
    assert reproduce.reproduce(only=("02", "01_good"), force=True, keep_going=True) == 1
    told = capsys.readouterr().out
    assert "01_good              ran" in told
    assert "RuntimeError: on purpose" in told
    copy = nbformat.read(checkout / "runs/quick/notebooks/02_bad.ipynb", as_version=4)
    assert any("before" in str(c.get("outputs")) for c in copy.cells)
    assert not reproduce.up_to_date("02_bad", "quick", 0)
    assert dict(os.environ) == before


@pytest.mark.filterwarnings("ignore")
def test_what_is_missing_or_outdated_is_drawn_again_without_training(drawn, checkout, capsys, monkeypatch):
    assert drawn() == 1
    png, table = (checkout / "runs/quick" / p for p in ("figures/f.png", "tables/t.csv"))
    first, rows = png.read_bytes(), table.read_bytes()
    capsys.readouterr()
    drawn()
    assert "cached" in capsys.readouterr().out
    for gone in (png, table):
        gone.unlink()
        assert drawn() == 1
        assert "ran" in capsys.readouterr().out
    assert (png.read_bytes(), table.read_bytes()) == (first, rows)
    png.write_bytes(first[:-1])  # damaged, or from elsewhere
    assert drawn() == 1
    assert png.read_bytes() == first
    assert drawn(color="blue") == 1  # one rows file still
    assert png.read_bytes() != first
    assert table.read_bytes() == rows
    assert drawn(rate=0.2) == 2
    assert table.read_bytes() != rows
    style = checkout / "another.mplstyle"
    style.write_text(chapter.STYLE.read_text(encoding="utf-8") + "lines.linewidth: 5\n", encoding="utf-8")
    monkeypatch.setattr(chapter, "STYLE", style)
    assert not reproduce.up_to_date("03_figure", "quick", 0)


def test_a_notebook_is_stale_by_code_and_not_by_comments_and_text(checkout, monkeypatch):
    before = reproduce.fingerprint_of("01_good", "quick", 0)
    write(checkout, "01_good", "# a comment\n" + nbformat.read(reproduce.source_of("01_good"), 4).cells[1].source)
    assert reproduce.fingerprint_of("01_good", "quick", 0) == before
    write(checkout, "01_good", "x = 1\n" + nbformat.read(reproduce.source_of("01_good"), 4).cells[1].source)
    changed = reproduce.fingerprint_of("01_good", "quick", 0)
    assert len({before, changed, reproduce.fingerprint_of("01_good", "quick", 1)}) == 3
    monkeypatch.setattr(reproduce.keys, "package", lambda: "other code")
    assert reproduce.fingerprint_of("01_good", "quick", 0) != changed


def test_a_notebook_is_stale_when_a_rule_of_its_own_changes(checkout):
    before, path = reproduce.fingerprint_of("01_good", "quick", 0), folders.claims()
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("below {limit}", "above {limit}") + "# a comment\n", encoding="utf-8")
    assert reproduce.fingerprint_of("01_good", "quick", 0) == before  # makes no such claim
    path.write_text(text.replace('rule = "r"', 'rule = "another"'), encoding="utf-8")
    assert reproduce.fingerprint_of("01_good", "quick", 0) != before


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_whose_sizes_were_changed_is_not_published(drawn, checkout):
    drawn(scale="laptop")
    path = checkout / "notebooks/03_figure.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("scale, seed)", "scale, seed, seeds=2)"), encoding="utf-8")
    assert reproduce.reproduce(scale="laptop", only=("03",)) == 0
    assert (checkout / "runs/laptop-seeds-2/tables/t.csv").exists()
    with pytest.raises(ValueError, match="no run that is up to date of 03_figure"):
        publish.publish(only=("03",))


def test_a_failure_keeps_the_next_from_starting(checkout, capsys):
    write(checkout, "03_later", "1")
    assert reproduce.reproduce(only=("02", "03"), jobs=1) == 1
    told = capsys.readouterr().out
    assert "03_later             not run" in told
    assert not (checkout / "runs/quick/notebooks/03_later.ipynb").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_that_reads_tables_runs_after_those_that_write_them(checkout, capsys):
    opened = "import time\nimport pandas as pd\nfrom mnemosyne.book import open_run, read_table\n"
    claim = 'run.claim("x", held=True, ours=ours)\nrun.claims()\nrun.close()'
    writer = 'run = open_run("04_writer")\ntime.sleep(2)\nrun.table("t", pd.DataFrame({"a": [NUMBER]}))\nours = ""\n'
    reader = 'run = open_run("05_reader")\nours = "read {}".format(read_table("quick", "t").a[0])\n'
    write(checkout, "04_writer", opened + writer + claim, NUMBER=17)
    write(checkout, "05_reader", opened + reader + claim)
    assert reproduce.reproduce(only=("04", "05"), jobs=2) == 0
    assert "read 17" in capsys.readouterr().out
    assert reproduce.reproduce(only=("05",)) == 0
    assert "05_reader            cached" in capsys.readouterr().out
    write(checkout, "04_writer", opened + writer + claim, NUMBER=18)
    assert reproduce.reproduce(only=("04", "05"), jobs=2) == 0
    assert "read 18" in capsys.readouterr().out


def test_reproduce_refuses_what_is_not_there(checkout):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        reproduce.reproduce(jobs=0)
    with pytest.raises(ValueError, match="no notebook 07; there are 01_good, 02_bad"):
        reproduce.reproduce(only=("07",))
    with pytest.raises(ValueError, match="unknown scale"):
        reproduce.reproduce(scale="tiny")


@pytest.mark.filterwarnings("ignore")
def test_publishing_is_the_only_way_into_what_is_published(drawn, checkout, capsys, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")  # as an environment may have it; pages show their figures even so
    source = checkout / "notebooks/03_figure.ipynb"
    write(checkout, "03_figure", FIGURE)
    with pytest.raises(ValueError, match='up to date of 03_figure; make figures SCALE=laptop ONLY="03"'):
        publish.publish(only=("03",))
    drawn(scale="laptop")
    assert not (checkout / "data/results").exists()
    assert not (checkout / "figures").exists()
    assert all(not c.outputs for c in nbformat.read(source, as_version=4).cells)
    old = checkout / "data/results/laptop/of_a_notebook_that_is_gone.csv"
    old.parent.mkdir(parents=True)
    old.write_text("a\n", encoding="utf-8")
    files = {str(p.relative_to(checkout)) for p in publish.publish(only=("03",))}
    assert files == {
        *(f"data/results/laptop/{f}" for f in ("t.csv", "t.meta.json", "03_figure.claims.json")),
        *(f"figures/laptop/f.{kind}" for kind in ("png", "pdf")),
        *("data/rows/laptop/03_figure.zip", "notebooks/03_figure.ipynb"),
    }
    assert old.exists()  # others' files stay where not all is published
    page = nbformat.read(source, as_version=4)
    assert [c.execution_count for c in page.cells] == [1, 2]
    assert "image/png" in str(page.cells[1].outputs)
    assert "scale laptop" in str(page.cells[1].outputs)
    assert 'scale: str = "quick"' in page.cells[0].source
    assert reproduce.up_to_date("03_figure", "laptop", 0)  # outputs are no code
    for path in folders.cache().glob("kept/*"):
        path.unlink()
    (checkout / "runs/laptop/figures/f.png").unlink()
    capsys.readouterr()
    assert drawn(scale="laptop") == 0  # the rows came from what is published


@pytest.mark.filterwarnings("ignore")
def test_publishing_all_deletes_what_no_notebook_writes_and_quick_publishes_claims_alone(drawn, checkout):
    for name in ("01_good", "02_bad"):
        (checkout / "notebooks" / f"{name}.ipynb").unlink()
    old = checkout / "figures/laptop/old.png"
    old.parent.mkdir(parents=True)
    old.write_text("", encoding="utf-8")
    drawn(scale="laptop")
    publish.publish()
    assert not old.exists()
    drawn()
    (only,) = publish.publish(scale="quick")
    assert only == checkout / "data/results/quick/03_figure.claims.json"
    assert not (checkout / "figures/quick").exists()


def test_published_pages_say_neither_when_nor_where():
    source, run = notebook("1"), notebook("1")
    run.metadata["papermill"] = {"output_path": "somewhere"}
    run.cells[1].metadata["papermill"] = {"duration": 1.0}
    run.cells.insert(1, nbformat.v4.new_code_cell("scale = 'laptop'", metadata={"tags": ["injected-parameters"]}))
    run.cells[2].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=3)]
    page = publish.with_outputs(source, run)
    assert "papermill" not in json.dumps(page)
    assert page.cells[0].metadata["tags"] == ["parameters"]
    assert len(page.cells) == 2
    assert page.cells[1].outputs[0].execution_count == page.cells[1].execution_count == 2


def test_progress_says_what_is_done_what_runs_and_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr("mnemosyne.book.progress.EVERY", 0.01)
    progress, last = Progress(total=10, jobs=2), Future()
    for name in ("a", "b", "c"):
        progress.at(name, "cell 1/2")
        progress.end(name, "ran, 60 s", 60.0)
    progress.at("d", "cell 3/18")
    line = progress.line()
    threading.Timer(0.5, last.set_result, [None]).start()
    progress.follow([last])
    assert "3 of 10" in capsys.readouterr().out
    assert line == "3 of 10 done, d cell 3/18 (0 s), about 4 min left"


def test_the_closing_table_shows_the_published_verdict_beside_one_that_cannot_be_had_here(checkout):
    run = chapter.open_run("01_good")
    run.claim("empirical", held=[True], ours="o", sizes={"limit": 1})
    run.claims()
    published = checkout / "data/results/laptop/01_good.claims.json"
    published.parent.mkdir(parents=True)
    published.write_text(
        json.dumps([{"id": "empirical", "paper": "p", "rule": "r", "ours": "o", "verdict": "partly"}]), encoding="utf-8"
    )
    table = reproduce.closing_table([reproduce.Outcome("01_good", "ran", 1.0)], "quick")
    assert re.search(r"not testable at this scale +partly +1$", table)


def test_pictures_keep_their_size_in_few_colors():
    wide = np.linspace(0, 255, 200 * 300 * 3).reshape(200, 300, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, format="png")
    small = base64.b64decode(publish.in_few_colors(base64.b64encode(buffer.getvalue()).decode()))
    again = Image.open(io.BytesIO(small))
    assert again.size == (300, 200)
    assert np.abs(np.asarray(again.convert("RGB"), int) - wide).mean() < 8


DIES = "import os, signal, time\nprint('before', flush=True)\ntime.sleep(1)\nos.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.bad_input
def test_a_kernel_that_dies_is_named_at_once_and_the_table_closes(checkout, capsys):
    write(checkout, "02_bad", DIES)
    write(checkout, "03_later", "1")
    (checkout / "notebooks/04_cut.ipynb").write_text('{"cells": [', encoding="utf-8")
    assert reproduce.reproduce(only=("02", "03", "04"), keep_going=True) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    at = next(i for i, line in enumerate(lines) if "02_bad               failed" in line)
    assert "its kernel died in cell 3/3, ended by SIGKILL" in lines[at + 1]
    assert at < next(i for i, line in enumerate(lines) if "03_later             ran" in line)
    assert re.search(r"04_cut +failed, 0 s\n.*04_cut\.ipynb is no notebook", told.out)
    assert re.search(r"^02_bad +– +failed +– +\d+$", told.out, re.MULTILINE)
    assert "Traceback" not in told.out + told.err
    copy = nbformat.read(checkout / "runs/quick/notebooks/02_bad.ipynb", as_version=4)
    assert any("before" in str(c.get("outputs")) for c in copy.cells)


STAMPS = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "zeros": lambda text: "\0" * len(text),
    "a list": lambda text: "[]",
    "without its key": lambda text: text.replace('"key"', '"kex"').replace('"used"', '"uses"'),
}


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_stamp_or_note_is_named_and_its_notebook_runs_again(checkout, capsys):
    """At the next start, and with --force, and for a notebook that reads the tables of this one."""
    source = nbformat.read(reproduce.source_of("01_good"), 4).cells[1].source
    assert reproduce.reproduce(only=("01",)) == 0
    folder = checkout / "runs/quick"
    whole_ones = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.json")}
    stamp, note = folder / "notebooks/01_good.json", folder / "tables/01_good.run.json"
    write(checkout, "04_reader", source.replace("01_good", "04_reader") + "\n# read_table(")
    for how in STAMPS.values():
        for path in (stamp, note):
            for kept, text in whole_ones.items():
                kept.write_text(text, encoding="utf-8")
            path.write_text(how(whole_ones[path]), encoding="utf-8")
            capsys.readouterr()
            reproduce.fingerprint_of("04_reader", "quick", 0)
            assert not reproduce.up_to_date("01_good", "quick", 0)
            told = capsys.readouterr().out
            assert str(path) in told
            assert "it is deleted, and its notebook counts as not run" in told
            assert not path.exists()
    stamp.write_text("", encoding="utf-8")
    note.write_text("{", encoding="utf-8")
    assert reproduce.reproduce(only=("01",), force=True) == 0
    assert reproduce.up_to_date("01_good", "quick", 0)


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
def test_what_is_gone_or_has_changed_is_named(checkout, capsys):
    assert reproduce.reproduce(only=("01",)) == 0
    folder = checkout / "runs/quick"
    for path in (folder / "tables/01_good.claims.json", folder / "notebooks/01_good.ipynb"):
        text = path.read_text(encoding="utf-8")
        for changed, told in ((text[:-20], "is not as it was written"), (None, "is gone")):
            capsys.readouterr()
            path.unlink() if changed is None else path.write_text(changed, encoding="utf-8")
            assert not reproduce.up_to_date("01_good", "quick", 0)
            assert f"{path} {told}; 01_good counts as not run" in capsys.readouterr().out
            path.write_text(text, encoding="utf-8")
            assert reproduce.up_to_date("01_good", "quick", 0)


@pytest.mark.bad_input
def test_publishing_writes_nothing_where_rows_are_damaged(checkout, monkeypatch):
    monkeypatch.setattr(reproduce, "up_to_date", lambda *args: True)
    monkeypatch.setattr(publish.results, "used", lambda *args: ["a" * 64])
    monkeypatch.setattr(publish.results, "written", lambda *args: {})
    with pytest.raises(ValueError, match=r"rows are gone or damaged .*make figures SCALE=laptop ONLY=01 FORCE=1"):
        publish.publish(only=("01",))
    assert not (checkout / "data/rows").exists()


@pytest.mark.bad_input
def test_the_table_closes_beside_a_damaged_published_file(checkout, capsys):
    published = checkout / "data/results/laptop/01_good.claims.json"
    published.parent.mkdir(parents=True)
    published.write_text("<html>", encoding="utf-8")
    table = reproduce.closing_table([reproduce.Outcome("01_good", "failed", 1.0)], "quick")
    assert re.search(r"01_good +– +failed +– +1$", table)
    assert "01_good.claims.json is a web page" in capsys.readouterr().out
