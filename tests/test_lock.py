"""The locks hold all that is needed, at versions that fit, so that installing them asks nothing of later releases."""

import json
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mnemosyne.book import folders
from tools import environment

ROOT = folders.root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = {"requirements.lock": "book", "requirements-dev.lock": "dev", "requirements-lab.lock": "lab"}


def pins(*locks):
    """name → [version, extras, holds here] of every line that pins something."""
    found = {}
    for lock in locks:
        for line in (ROOT / lock).read_text(encoding="utf-8").splitlines():
            if "==" in line and not line.startswith(" "):
                r = Requirement(line.removesuffix("\\"))
                if r.marker is None or r.marker.evaluate():
                    _, extras = found.get(canonicalize_name(r.name), (None, set()))
                    found[canonicalize_name(r.name)] = str(r.specifier)[2:], extras | r.extras
    return found


def of_extra(extra):
    """Requirement texts of one of the project's extras, and of those that it takes in."""
    texts = PROJECT["project"]["optional-dependencies"][extra]
    own = {text: r.extras for text in texts if (r := Requirement(text)).name == PROJECT["project"]["name"]}
    return [t for t in texts if t not in own] + [t for extras in own.values() for e in extras for t in of_extra(e)]


def unmet(wanted, pinned, requires):
    """Follow requirements from `wanted` and say which no line meets.

    Args:
        wanted: requirement texts to begin with.
        pinned: as `pins` returns it.
        requires: name → the requirement texts of that distribution, None where it is not installed.
    """
    problems, seen, stack = [], set(), [(text, {""}, "the project") for text in wanted]
    while stack:
        text, extras, by = stack.pop()
        r = Requirement(text)
        if r.marker and not any(r.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(r.name)
        version, named = pinned.get(name, (None, set()))
        if version is None or not r.specifier.contains(version, prereleases=True):
            problems.append(f"{by} requires {text}, pinned is {version}")
        if not r.extras <= named and name != by:  # uv leaves out a package's own extras of its extras
            problems.append(f"{by} requires {text}, the line of {name} names the extras {sorted(named)}")
        asked = frozenset(["", *r.extras])
        if (name, asked) not in seen:
            seen.add((name, asked))
            stack += [(t, asked, name) for t in requires(name) or []]
    return problems


def requires(name):
    try:
        return metadata.requires(name)
    except metadata.PackageNotFoundError:
        return None


@pytest.mark.parametrize("lock", EXTRAS)
def test_every_requirement_is_met_by_a_pinned_line(lock):
    """Of all that is installed at its pinned version, through extras too: what `pip check` does not look at."""
    pinned = pins("requirements.lock", lock)
    wanted = [*PROJECT["project"]["dependencies"], *of_extra(EXTRAS[lock]), *PROJECT["dependency-groups"]["build"]]

    def of_the_pinned(name):
        here = name in pinned and requires(name) is not None and metadata.version(name) == pinned[name][0]
        return requires(name) if here else None

    assert unmet(wanted, pinned, of_the_pinned) == []


def test_extras_take_in_others():
    """Each of these is what one command installs, with all that it stands on."""
    assert set(of_extra("tasks")) < set(of_extra("book")) < set(of_extra("docs")) < set(of_extra("dev"))
    assert set(of_extra("book")) < set(of_extra("lab"))


def test_this_environment_is_the_locks():
    """Without it, the test above would say nothing."""
    record = Path(sys.prefix) / environment.RECORD
    if not record.exists():
        pytest.skip("an environment of another making")
    held = json.loads(record.read_text(encoding="utf-8"))["locks"]
    assert held == {lock: environment.digest(ROOT / lock) for lock in held}
    pinned = pins(*held)
    assert len(pinned) > 100
    assert {name: metadata.version(name) for name in pinned} == {name: version for name, (version, _) in pinned.items()}


def test_what_is_not_met_is_said():
    """A package, a version, an extra and what only that extra needs."""
    needs = {"a": ["b[c]>=2", "d; extra == 'never'"], "b": ["e<3; extra == 'c'"]}.get
    assert unmet(["a"], {"a": ("1", set()), "b": ("2.1", {"c"}), "e": ("2", set())}, needs) == []
    [extra] = unmet(["a"], {"a": ("1", set()), "b": ("2.1", set()), "e": ("2", set())}, needs)
    assert "requires b[c]>=2, the line of b names the extras []" in extra
    [version] = unmet(["a"], {"a": ("1", set()), "b": ("2.1", {"c"}), "e": ("3", set())}, needs)
    assert version == "b requires e<3; extra == 'c', pinned is 3"
    [absent] = unmet(["a"], {"a": ("1", set()), "b": ("2.1", {"c"})}, needs)
    assert absent.endswith("pinned is None")


@pytest.mark.parametrize("lock", EXTRAS)
def test_every_pin_has_hashes_and_no_address(lock):
    text = (ROOT / lock).read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert len(blocks) >= 10
    for block in blocks:
        line, *hashes = block.splitlines()
        assert re.fullmatch(r"[\w.-]+(\[[\w, -]+\])?==\S+( ; .+)? \\", line)
        assert hashes
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", h) for h in hashes)
    assert "://" not in text


def test_who_wants_figures_installs_no_linter_and_no_jupyterlab():
    running = pins("requirements.lock")
    assert not running.keys() & {"ruff", "pytest", "coverage", "uv", "nbval", "jupyterlab", "jupyter-server"}
    assert {"jax", "papermill", "ipykernel", "setuptools"} <= running.keys()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in ("INSTALL = .* requirements.lock", "figures: env", "test: dev", "lab:\n.*requirements-lab.lock"):
        assert re.search(f"^{line}", makefile, re.MULTILINE), line
    assert "pip install" not in makefile.replace('uv" pip install', "")


def test_pip_gets_the_locks_lines_and_nothing_else():
    """Pip 23 looks at newer releases of `etils[epath]` though `etils[epath,epy]` is pinned, and then refuses them."""
    assert {"--require-hashes", "--no-deps", "--no-build-isolation"} <= set(environment.LOCKED)
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(environment.PROJECT)


@pytest.fixture
def finished(tmp_path):
    """A finished environment of one lock, and that lock and one more."""
    locks = [tmp_path / "a.lock", tmp_path / "b.lock"]
    for lock in locks:
        lock.write_text(f"{lock.stem}==1", encoding="utf-8")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").touch()
    record = {"path": str(venv), "locks": {"a.lock": environment.digest(locks[0])}}
    (venv / environment.RECORD).write_text(json.dumps(record), encoding="utf-8")
    return venv, locks


def test_a_finished_environment_is_kept_and_added_to(finished):
    venv, (a, b) = finished
    assert environment.todo(venv, [a]) == ([], False)
    assert environment.todo(venv, [a, b]) == ([b], False)


@pytest.mark.parametrize("what", ["half", "damaged", "other lock", "no python", "moved"])
def test_any_other_is_made_anew(finished, what):
    venv, (a, b) = finished
    record = venv / environment.RECORD
    if what == "half":
        record.write_text("{}", encoding="utf-8")
    elif what == "damaged":
        record.write_text(record.read_text(encoding="utf-8")[:20], encoding="utf-8")
    elif what == "other lock":
        a.write_text("a==2", encoding="utf-8")
    elif what == "no python":
        (venv / "bin/python").unlink()
    else:
        venv = venv.rename(venv.parent / "elsewhere")
    assert environment.todo(venv, [a, b]) == ([a, b], True)


def test_a_folder_of_another_making_is_left_alone(finished):
    venv, locks = finished
    (venv / environment.RECORD).unlink()
    with pytest.raises(SystemExit, match="was not made by this: remove it"):
        environment.todo(venv, locks)
    assert (venv / "bin/python").exists()


def test_progress_is_read_from_what_pip_prints():
    log = (
        "Ignoring cffi: markers 'x' don't match your environment\n"
        "Collecting absl-py==2.5.1 (from -r requirements.lock (line 1))\n"
        "  Downloading absl_py-2.5.1-py3-none-any.whl (137 kB)\n"
        "Requirement already satisfied: six==1.17.0 in somewhere\n"
        "Processing ./wheels/zipp-4.1.2-py3-none-any.whl (from -r requirements.lock (line 12))\n"
        "Collecting jaxlib==0.10.2 (from -r requirements.lock (line 9))\n"
        "  Downloading jaxlib-0.10.2-cp311-cp311-manylinux_2_27_x86_64.whl (85.4 MB)\n"
    )
    assert environment.progress(log, 6, 0) == "4 of 5 fetched, at jaxlib, 85.4 MB"
    assert (
        environment.progress(log + "Installing collected packages: zipp, jaxlib, absl-py\n", 6, 1) == "1 of 3 unpacked"
    )
    assert environment.progress("", 5, 0) == "0 of 5 fetched"
