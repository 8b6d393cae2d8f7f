"""What runs have written and what is published, read back with the checks of `whole`.

results.read_claims("quick", "07_mlps")          # of the run here
results.read_table("quick", "fig10")             # of the run here, else the published one
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from mnemosyne.book import folders, whole


def notebooks() -> list[str]:
    """Names of all notebooks, in the order they run."""
    return sorted(p.stem for p in (folders.root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def written(scale: str, notebook: str, seed: int = 0) -> dict[str, str]:
    """What a notebook's last whole run wrote: path under the run's folder → hash. Empty if there was none."""
    return _noted(scale, notebook, seed)["written"]


def used(scale: str, notebook: str, seed: int = 0) -> list[str]:
    """Keys of the kept entries that a notebook's last whole run used."""
    return _noted(scale, notebook, seed)["used"]


def forget(scale: str, notebook: str, seed: int = 0) -> None:
    """Forget what a notebook's last run wrote: the next may fail, or change its sizes and write elsewhere."""
    note_of(scale, notebook, seed).unlink(missing_ok=True)


def _noted(scale: str, notebook: str, seed: int) -> dict:
    """The note of a run that ended; one that is damaged is told and deleted, as if the run had not ended."""
    path = note_of(scale, notebook, seed)
    return noted(path, {"written": dict, "used": list}) or {"written": {}, "used": []}


def noted(path: Path, kinds: dict[str, type]) -> dict | None:
    """A note that says of what a run was made; None where there is none. A damaged one is told and deleted."""
    if not path.exists():
        return None
    try:
        found = whole.values(path, names=tuple(kinds))
        wrong = [name for name, kind in kinds.items() if not isinstance(found[name], kind)]
        if not wrong:
            return found
        told = f"{path} holds no {kinds[wrong[0]].__name__} under {wrong[0]!r}"
    except whole.Damaged as error:
        told = str(error)
    print(f"{told}; it is deleted, and its notebook counts as not run", flush=True)
    path.unlink(missing_ok=True)
    return None


def note_of(scale: str, notebook: str, seed: int) -> Path:
    """A file that says what a run that ended has written and used."""
    return folders.runs(scale, seed) / "tables" / f"{notebook}.run.json"


def read_claims(scale: str, notebook: str, seed: int = 0) -> list[dict]:
    """The claims that a notebook's run wrote at a scale; empty if it has not run."""
    return _of_run(scale, seed, f"{notebook}.claims.json", whole.claims) or []


def published_claims(scale: str, notebook: str) -> list[dict]:
    """The claims of a notebook that are published for a scale."""
    return whole.published(folders.published_tables(scale) / f"{notebook}.claims.json", whole.claims) or []


def read_table(scale: str, id: str, seed: int = 0) -> pd.DataFrame | None:
    """A table that another notebook's run wrote; else for seed 0 the published one, and a line says so; else None.

    Raises:
        whole.Damaged: if the file is not what the run wrote, or not what was published.
    """
    found = _of_run(scale, seed, f"{id}.csv", whole.table)
    path = folders.published_tables(scale) / f"{id}.csv"
    if found is None and seed and path.exists():
        print(f"{id}: no run with seed {seed} has written it; the published table is of seed 0 and is not used")
    elif found is None:
        found = whole.published(path, whole.table)
        if found is not None:
            print(f"{id}: the published table; no run here has written it")
    return found


def _of_run(scale: str, seed: int, file: str, read: Callable[[Path], Any]) -> Any:
    """What `read` finds in a file of a run's tables; None where there is none."""
    path = folders.runs(scale, seed) / "tables" / file
    if not path.exists():
        return None
    writers = [n for n in notebooks() if f"tables/{file}" in written(scale, n, seed)]
    remedy = f"run its notebook again: make figures SCALE={scale} SEED={seed} FORCE=1"
    if writers:
        remedy += f" ONLY={writers[0].split('_')[0]}"
        wanted = written(scale, writers[0], seed)[f"tables/{file}"]
        if wanted != whole.digest(path):
            raise whole.Damaged(path, f"is not what the run of {writers[0]} has written", remedy)
    try:
        return read(path)
    except whole.Damaged as error:
        raise whole.Damaged(path, error.wrong, remedy) from error
