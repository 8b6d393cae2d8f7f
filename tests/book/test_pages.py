"""README and docs: short, with generated numbers, code that runs as it stands, and links that lead somewhere."""

import json
import re

import jax
import pytest

import mnemosyne
from mnemosyne.book import folders, pages, results
from tests.helpers import python_blocks

ROOT = folders.root()
PAGES = pages.pages()
README = ROOT / "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_generated_blocks_are_what_published_results_give(page):
    """If this fails: python -m mnemosyne.book.pages."""
    assert pages.refreshed(page.read_text(encoding="utf-8")) == page.read_text(encoding="utf-8")


def test_every_generated_block_is_on_a_page():
    used = {
        name for page in PAGES for name in re.findall(r"<!-- generated: (\w+) -->", page.read_text(encoding="utf-8"))
    }
    assert used == pages.GENERATED.keys()


def test_a_typed_number_in_a_generated_block_does_not_stay():
    text = README.read_text(encoding="utf-8")
    assert pages.refreshed(text.replace("over 5 seeds", "over 50 seeds")) == text
    assert "over 5 seeds" in text


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Published results of another checkout, which a test may change."""
    for name in ("notebooks", "data/results/laptop"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "data/results/laptop").mkdir()
    for path in (ROOT / "data/results/laptop").iterdir():
        (tmp_path / "data/results/laptop" / path.name).symlink_to(path)
    monkeypatch.setenv("MNEMOSYNE_ROOT", str(tmp_path))
    return tmp_path / "data/results/laptop"


def replaced(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_headline_follows_claims_and_tables(elsewhere):
    before = pages.headline()
    replaced(elsewhere / "transfer_means.csv", "2.63231", "7.77")
    replaced(elsewhere / "01_memory.claims.json", '"reproduced"', '"not reproduced"')
    after = pages.headline()
    assert "it is 2.63 on the worst network" in before
    assert "it is 7.77 on the worst network" in after
    count = lambda text, verdict: int(re.search(rf"(\d+) {verdict}", text)[1])
    assert count(after, "not reproduced") == count(before, "not reproduced") + 1


def test_the_command_writes_stale_blocks_anew_and_nothing_else(elsewhere, capsys):
    root = elsewhere.parents[2]
    page = "Before.\n\n<!-- generated: addresses -->\nold\n<!-- end -->\n\nAfter.\n"
    (root / "README.md").write_text(page, encoding="utf-8")
    pages.main()
    assert (root / "README.md").read_text(encoding="utf-8") == page.replace("old\n", pages.addresses())
    pages.main()
    assert capsys.readouterr().out == "wrote README.md\n"


def test_prodigy_is_told_as_it_is_measured(elsewhere):
    row = next(
        line
        for line in (elsewhere / "transfer_means.csv").read_text(encoding="utf-8").splitlines()
        if "Prodigy" in line
    )
    replaced(elsewhere / "transfer_means.csv", row, "Prodigy,200,1.25,1,2,3,16")
    assert "Prodigy has 1.25 and " in pages.remembering()


def test_the_fresh_tasks_are_told_as_they_are_measured(elsewhere):
    assert "0 of 65 runs diverged" in pages.quality()
    replaced(elsewhere / "untuned_lost.csv", "Mnemosyne slim,1,0,65", "Mnemosyne slim,1,1,65")
    assert "1 of 65 runs diverged" in pages.quality()


def test_the_larger_networks_are_told_as_they_are_measured(elsewhere):
    path = elsewhere / "larger_ratios.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if "1000,Mnemosyne slim," in line and line.startswith("attention"))
    shown = row.split('"')[1]
    assert f"is {shown} on attention" in pages.on_larger()
    replaced(path, row, row.replace(shown, "7.77 [7.00, 8.00]"))
    assert "is 7.77 [7.00, 8.00] on attention" in pages.on_larger()


def test_the_price_is_told_as_it_is_measured(elsewhere):
    path = elsewhere / "untuned_price.csv"
    row = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("Mnemosyne slim,"))
    replaced(path, row, ",".join([*row.split(",")[:-2], "7.77", "1"]))
    assert "takes 7.8 ns per parameter with `slim`" in pages.price()


def test_bars_in_a_cell_do_not_end_it():
    assert pages.table(("a",), [("|z|",)]).splitlines()[-1] == r"| \|z\| |"


def test_the_ledger_has_every_published_claim_whole():
    shown = pages.ledger()
    rows = shown.splitlines()[2:]
    published = [c for name in results.notebooks() for c in results.published_claims("laptop", name)]
    assert len(rows) == len(published) > 40
    for claim, row in zip(published, rows, strict=True):
        for part in ("id", "verdict", "paper", "rule", "ours", "interval"):
            assert claim[part].replace("|", r"\|") in row


def test_the_readme_is_short_and_names_the_two_commands():
    assert README.stat().st_size <= 8_000
    for needed in ("make figures", "make test", "mnemosyne.pretrained()", "pip install ."):
        assert needed in README.read_text(encoding="utf-8")
    assert len(re.findall(r"!\[", README.read_text(encoding="utf-8"))) == 3


def test_the_first_example_of_the_readme_trains_as_it_stands():
    found = {}
    exec(python_blocks("README.md")[0], found)
    assert found["loss"](found["params"]) < 0.25 < found["loss"](jax.tree.map(jax.numpy.zeros_like, found["params"]))


def test_the_names_that_the_readme_gives_are_there():
    names = re.findall(r'^\| `"(\w+)"`', README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) == 5
    for name in names:
        assert mnemosyne.pretrained(name).init({"w": jax.numpy.zeros((2, 3))})


def test_every_notebook_is_in_the_table_of_figures():
    text = (ROOT / "docs/figures.md").read_text(encoding="utf-8")
    for name in results.notebooks():
        assert f"[{name}](../notebooks/{name}.ipynb)" in text
        assert f"`make figures ONLY={name[:2]}`" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page):
    for link in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_recipe_of_one_piece_changed_runs():
    """Four import lines; shortened, it meta-trains a rule and makes an optimizer of it."""
    code = python_blocks("docs/change_one_piece.md")[0]
    assert len(re.findall(r"^from mnemosyne", code, re.MULTILINE)) == 4
    for long, short in (
        ("iterations=200", "iterations=20, horizon=4, window=2, replicas=1"),
        ("META_TRAIN,", "META_TRAIN[:1],"),
    ):
        assert long in code
        code = code.replace(long, short)
    found = {}
    exec(code, found)
    params = {"w": jax.numpy.ones(3)}
    updates, _ = found["tx"].update(params, found["tx"].init(params))
    assert jax.numpy.abs(updates["w"]).max() > 0


def test_no_notebook_has_a_badge_that_leads_to_a_front_page():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert "badge" not in "".join("".join(c["source"]) for c in cells), path.name
