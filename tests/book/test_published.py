"""What is published: rows are whole and small, and their rounding decides no verdict."""

import json
import random
import re
import shutil
import subprocess
import zipfile

import pytest

from mnemosyne.book import folders, kept, reproduce, results
from mnemosyne.book.scale import SCALES

ROOT = folders.root()
ARCHIVES = sorted((ROOT / "data" / "rows").glob("*/*.zip"))
KEPT = [n for n in results.notebooks() if (ROOT / "data" / "rows" / "laptop" / f"{n}.zip").exists()]


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda p: p.stem)
def test_published_rows_are_whole_and_say_how_they_came(path):
    found = entries(path)
    for name, content in found.items():
        if name.endswith(".json"):
            entry = kept._checked(name, lambda content=content: content)
            assert entry is not None
            assert {"versions", "device"} <= entry["about"].keys()
        else:
            assert name.replace(".safetensors", ".json") in found


def test_the_checkout_is_small():
    sizes = {p: p.stat().st_size for p in ARCHIVES}
    assert sum(sizes.values()) <= 25e6
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, encoding="utf-8"
    ).stdout
    tracked = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert sum(p.stat().st_size for p in tracked) <= 80e6


def test_nothing_of_a_users_run_is_under_git():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=False, encoding="utf-8").stdout
    assert not re.search(r"^(runs|data/cache)/", listed, re.MULTILINE)
    scales = {line.split("/")[1] for line in listed.splitlines() if line.startswith("figures/")}
    assert scales <= {name for name, scale in SCALES.items() if scale.judges}


def shaken(content, rng):
    """An entry whose every loss is changed by up to a millionth of itself."""
    entry = json.loads(content)

    def shake(x):
        if isinstance(x, dict) and x.keys() == {"csv"}:
            head, *lines = x["csv"].splitlines()
            losses = [i for i, column in enumerate(head.split(",")) if "loss" in column]
            return {"csv": "\n".join([head, *(moved(line.split(","), losses) for line in lines)]) + "\n"}
        if isinstance(x, dict):
            return {k: shake(v) for k, v in x.items()}
        return [shake(v) for v in x] if isinstance(x, list) else x

    def moved(cells, losses):
        for i in losses:
            cells[i] = f"{float(cells[i] or 'nan') * (1 + rng.uniform(-1e-6, 1e-6)):.9g}"
        return ",".join(cells)

    content = shake(entry["content"])
    return json.dumps(entry | {"content": content, "sha256": kept._digest(content)})


@pytest.mark.slow
def test_a_millionth_of_every_loss_changes_no_published_verdict(tmp_path, monkeypatch):
    """All notebooks with published rows, run at laptop on rows that were shaken."""
    for folder in ("notebooks", "mnemosyne", "data/results"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "data/claims.toml", tmp_path / "data")
    rng, count = random.Random(0), 0
    for path in ARCHIVES:
        shaken_path = tmp_path / path.relative_to(ROOT)
        shaken_path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(shaken_path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries(path).items():
                changed = shaken(content, rng) if name.endswith(".json") else content
                count += changed != content.decode(errors="ignore") if name.endswith(".json") else 0
                archive.writestr(name, changed)
    assert count > 0
    monkeypatch.setenv("MNEMOSYNE_ROOT", str(tmp_path))
    assert reproduce.reproduce(scale="laptop", only=tuple(KEPT), jobs=2) == 0
    verdicts = lambda claims: {c["id"]: c["verdict"] for c in claims}
    for name in KEPT:
        assert verdicts(results.read_claims("laptop", name)) == verdicts(results.published_claims("laptop", name))
