"""Promises the repository makes about itself: environments in step, notebooks by their contract, no stray paths."""

import ast
import html
import re
import subprocess
import sys
import tomllib

import nbformat
import papermill
import pytest
import yaml

from mnemosyne.book import chapter, folders, results
from mnemosyne.book.scale import SCALES

ROOT = folders.root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROOMS = ("memory", "theory", "optimizer", "tasks", "metatrain", "memformers", "book")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def tracked():
    """Files under git; all files where the checkout came without it, as from a source distribution."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, encoding="utf-8")
    if listed.stdout:
        return [ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    folders_of_runs = {".venv", "cache", "raw", "runs", "build", "__pycache__"}
    found = (path for path in ROOT.rglob("*") if path.is_file())
    return [path for path in found if not folders_of_runs & set(path.relative_to(ROOT).parts)]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs git's list of files")
def test_a_source_distribution_has_what_its_tests_need(tmp_path):
    """By the list that setuptools makes of it: all that is under git."""
    command = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "egg_info", "--egg-base", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (listing,) = tmp_path.glob("*.egg-info/SOURCES.txt")
    listed = set(listing.read_text(encoding="utf-8").splitlines())
    needed = {path.relative_to(ROOT).as_posix() for path in tracked()}
    assert {"tests/conftest.py", "tests/helpers.py", "tests/golden/t5.npz", "data/claims.toml"} <= needed
    assert needed <= listed, sorted(needed - listed)
    assert not {path for path in listed if path.startswith(("data/cache", "runs", ".venv"))}


def test_conda_environment_installs_the_project_with_its_extras():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    extras = re.fullmatch(r"-e \.\[(.+)\]", pip[0])[1].split(",")
    assert set(extras) == {"book", "lab", "dev"} <= PROJECT["optional-dependencies"].keys()
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


def test_there_are_notebooks_and_none_escapes():
    assert [p.stem for p in NOTEBOOKS] == results.notebooks()
    assert len(NOTEBOOKS) >= 4
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--nbval-lax" in makefile
    assert re.search(r"--nbval-lax.* notebooks\n", makefile)  # the folder, not a list


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_contract(path):
    notebook = nbformat.read(path, as_version=4)
    first, code = notebook.cells[0], [c for c in notebook.cells if c.cell_type == "code"]
    assert first.cell_type == "markdown"
    for needed in ("**Reproduces**", "**Paper**", "**Runtime**"):
        assert needed in first.source
    parameters = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1
    assert 'scale: str = "quick"' in parameters[0].source
    assert "seed: int = 0" in parameters[0].source
    everything = "\n".join(c.source for c in code)
    assert re.search(rf'open_run\(\s*"{path.stem}",\s+scale,\s+seed,\s', everything)
    assert "run.claims()" in everything
    assert code[-1].source.strip() == "run.close()"
    for line in everything.splitlines():
        assert not line.lstrip().startswith(("%", "!")), line
        assert not line.rstrip().endswith(";"), line
    assert len(everything.splitlines()) <= 200


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_figures_are_as_wide_as_a_page(path):
    """A width is written as a number, so that it holds at every scale; `chapter.legible` looks at those saved."""
    code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    assert too_wide(code) == []


def test_a_wide_figure_is_found():
    assert too_wide("plt.subplots(figsize=(5.5, 2 * n)); plotting.canvas(5.5, 2); plt.figure()") == []
    assert too_wide("plt.figure(figsize=(6, 2))") == ["6"]
    assert too_wide("size = n + 1, 2\nplt.subplots(1, 2, figsize=size)\nplotting.canvas(2 * n, 2)") == ["size", "2 * n"]


def too_wide(code: str) -> list[str]:
    """Widths of figures that are more than 5.5 in, or not seen from the source."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    sizes = [k.value for call in calls for k in call.keywords if k.arg == "figsize"]
    widths = [size.elts[0] if isinstance(size, ast.Tuple) else size for size in sizes]
    widths += [call.args[0] for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "canvas"]
    fits = lambda width: isinstance(width, ast.Constant) and width.value <= chapter.WIDTH
    return [ast.unparse(width) for width in widths if not fits(width)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_parameters_are_the_sizes_a_reader_would_turn(path):
    """Each is said with what it is at each scale, and handed to the run."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    sizes = re.findall(r"^(\w+): int = 0  # (.+)$", cell, re.MULTILINE)
    sizes = [(name, said) for name, said in sizes if name != "seed"]
    assert 1 <= len(sizes) <= 3
    assert len(sizes) == len(cell.splitlines()) - 2
    explained = papermill.inspect_notebook(str(path))  # as `papermill --help-notebook` does
    assert {"scale", "seed", *(name for name, _ in sizes)} == explained.keys()
    source = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    call = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "open_run")
    given = {k.arg: k.value for k in call.keywords}
    own = {k.value: v for k, v in zip(given["own"].keys, given["own"].values, strict=True)} if "own" in given else {}
    handed = given | own
    for name, said in sizes:
        assert handed[name].id == name
        if name not in own:
            values = [f"{getattr(scale, name):,}" for scale in SCALES.values()]
            assert said.endswith("; 0: {}, {} or {} by scale".format(*values)), said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_imports_in_a_few_lines_from_the_rooms(path):
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    lines = [line for cell in code for line in cell.splitlines() if re.match(r"(from|import) mnemosyne", line)]
    assert any(line.startswith("from mnemosyne.book import ") for line in lines)
    assert len(lines) <= 5
    rooms = {line.split()[1] for line in lines}
    assert rooms <= {"mnemosyne", "mnemosyne.book.verdicts", *(f"mnemosyne.{room}" for room in ROOMS)}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook_is_executed_small_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert all(o.output_type != "error" for o in outputs)
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert path.stat().st_size <= 300_000
    assert "widgets" not in notebook.metadata
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert not any(o.get("name") == "stderr" for o in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_verdicts_are_the_ones_shown(path):
    """The page was executed at laptop, and shows each claim with its rule, whole, and its verdict, as published."""
    claims = results.published_claims("laptop", path.stem)
    assert claims
    notebook = nbformat.read(path, as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert any(f"{path.stem} at scale laptop" in o.get("text", "") for o in outputs)
    text = html.unescape("".join("".join(o.get("data", {}).get("text/html", "")) for o in outputs))
    for claim in claims:
        assert claim["rule"]
        for shown in ("id", "verdict", "rule", "ours"):
            assert claim[shown] in text, shown


def test_the_colab_driver_is_no_chapter_and_leaves_the_accelerator_alone():
    driver = nbformat.read(ROOT / "colab.ipynb", as_version=4)
    code = [c for c in driver.cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code)
    tree = ast.parse("\n".join(c.source for c in code))  # no magics
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert imported == {"json", "os", "subprocess", "sys"}
    text = "\n".join(c.source for c in code)
    for needed in ("MNEMOSYNE_OUTPUT", "MNEMOSYNE_DATA", '"reproduce"', "drive.mount"):
        assert needed in text
    libraries = next(n.value for n in ast.walk(tree) if isinstance(n, ast.Assign) and n.targets[0].id == "BOOK")
    book = {re.match(r"[\w-]+", text)[0] for text in PROJECT["optional-dependencies"]["book"]}
    assert set(ast.literal_eval(libraries)) == book - {PROJECT["name"], "ipykernel"}


def test_choosing_what_to_run_starts_no_accelerator():
    """A TPU serves one process, and that has to be the notebook's, not the one that starts it."""
    program = (
        "from mnemosyne.book import reproduce\n"
        "from jax._src import xla_bridge\n"
        "reproduce.up_to_date('01_memory', 'quick', 0)\n"
        "reproduce.fingerprint_of('01_memory', 'quick', 0)\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_no_machine_path_and_no_pickle_in_tracked_text():
    suffixes = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".json", ".csv", ".lock", ""}
    for path in tracked():
        if path.suffix in suffixes and path.name != "test_repository.py":
            text = path.read_text(errors="ignore", encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(home|root|work|tmp)/\w", text), path
            if path.suffix == ".py" and "tests" not in path.parts:
                assert "pickle" not in text.replace("allow_pickle=False", ""), path


def test_contributing_names_files_and_tests_that_exist():
    named = re.findall(
        r"`([\w./<>]+\.(?:py|md|toml|ipynb))(?:::(\w+))?`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    )
    assert len(named) > 25
    for file, test in named:
        if "<" in file:
            assert (ROOT / file).parent.is_dir(), file
        elif test:
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
        else:
            assert (ROOT / file).exists(), file


def test_every_module_is_small():
    for path in (ROOT / "mnemosyne").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path


def opens_without_encoding(code: str) -> list[str]:
    """Calls that open a text file, or another program's output, in whatever encoding the machine is set to."""
    found = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = {k.arg: k.value for k in call.keywords}
        of_path = isinstance(call.func, ast.Attribute)
        mode = given.get("mode", (*call.args[0 if of_path else 1 :], None)[0])
        as_text = name == "open" and not (isinstance(mode, ast.Constant) and "b" in str(mode.value))
        as_text &= not (of_path and ast.unparse(call.func.value) in ("tarfile", "Image", "os", "webbrowser"))
        of_path_text = of_path and name in ("read_text", "write_text") and ast.unparse(call.func.value) != "files"
        of_program = name in ("run", "Popen", "check_output", "check_call", "call", "getoutput")
        of_program &= bool({"text", "universal_newlines"} & given.keys())
        if (as_text or of_path_text or of_program) and "encoding" not in given:
            found.append(ast.unparse(call))
    return found


def test_a_text_file_opened_in_the_machines_encoding_is_found():
    wrong = [
        *("path.read_text()", "path.write_text('a')", "open(path)", "open(path, 'w')", "path.open()", "path.open('a')"),
        *("gzip.open(path, 'rt')", "subprocess.run(['git'], text=True)"),
    ]
    assert opens_without_encoding("\n".join(wrong)) == wrong
    right = (
        "path.read_text(encoding='utf-8')\nopen(path, 'rb')\npath.open('wb')\ntarfile.open(path)\nread_text('mnist')"
    )
    assert opens_without_encoding(right) == []


@pytest.mark.bad_input
def test_every_text_file_is_opened_as_utf_8():
    """Else a machine with another locale reads other letters, or stops at the first that its encoding lacks."""
    sources = {path: path.read_text(encoding="utf-8") for path in tracked() if path.suffix == ".py"}
    for path in (path for path in tracked() if path.suffix == ".ipynb"):
        cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        sources[path] = "\n".join(cells)
    assert len(sources) > 100
    for path, code in sources.items():
        assert opens_without_encoding(code) == [], path
