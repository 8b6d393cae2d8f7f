"""Where things lie: the checkout, what it publishes, what runs write, what is kept of them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mnemosyne import store


def root() -> Path:
    """The checkout: `$MNEMOSYNE_ROOT`, or the nearest folder upwards that holds `notebooks/`.

    Raises:
        FileNotFoundError: outside a checkout, or if `$MNEMOSYNE_ROOT` is no folder, saying how to point at one.
    """
    if os.environ.get("MNEMOSYNE_ROOT"):
        pointed = Path(os.environ["MNEMOSYNE_ROOT"])
        if not pointed.is_dir():
            raise FileNotFoundError(
                f"MNEMOSYNE_ROOT is {pointed}, which is no folder: set it to a checkout of mnemosyne"
            )
        return pointed
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks").is_dir() and (folder / "mnemosyne").is_dir():
            return folder
    raise FileNotFoundError(
        f"no checkout of mnemosyne at or above {Path.cwd()}; run from inside one or set MNEMOSYNE_ROOT to it"
    )


def checkout() -> Path:
    """`root`, with its notebooks.

    Raises:
        FileNotFoundError: where there are none, as where `$MNEMOSYNE_ROOT` is another folder.
    """
    if not any((root() / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        raise FileNotFoundError(f"{root()} holds no notebooks: set MNEMOSYNE_ROOT to a checkout of mnemosyne")
    return root()


def runs(scale: str, seed: int = 0) -> Path:
    """What runs of a scale and seed write, ignored by git: under `$MNEMOSYNE_OUTPUT`, or `runs/` of the checkout.

    It holds `tables/`, with claims, `figures/` and `notebooks/`, as executed.
    """
    base = Path(os.environ.get("MNEMOSYNE_OUTPUT") or root() / "runs")
    return base / (f"{scale}-seed-{seed}" if seed else scale)


def cache() -> Path:
    """What can be made again, ignored by git: kept rows, compiled programs."""
    return root() / "data" / "cache"


def claims() -> Path:
    """What the papers claim and how it is judged, under git."""
    return root() / "data" / "claims.toml"


def published_tables(scale: str) -> Path:
    """Tables and claims as published, under git."""
    return root() / "data" / "results" / scale


def published_figures(scale: str) -> Path:
    """Figures as published, under git."""
    return root() / "figures" / scale


def faults() -> Path:
    """Tallies of what was tried against the project, and what came of it, under git."""
    return root() / "data" / "results" / "faults"


def published_rows() -> Path:
    """Rows of the runs behind what is published, for each scale an archive for each notebook, under git."""
    return root() / "data" / "rows"


def writable(folder: Path) -> None:
    """Make a folder and check that files can be written there; a PermissionError names it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write results to {folder}: {error.strerror}") from error


def write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, as `store.write` does, and make its folder.

    Raises:
        store.StoreError: names the file and says why; what was there before is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store.StoreError(f"{path} could not be written: {error.strerror}") from error
    store.write(path, content)


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock; while another process has it, say so and wait.

    Args:
        path: of the lock's file.
        doing: what is done within, for those who wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def wait(who: str) -> None:
        print(f"another process is at work here: {who}; waiting for it to end", flush=True)

    with store.locked(path, wait, doing):
        yield


def sweep(folder: Path) -> list[Path]:
    """Delete what writers that were killed have left unfinished below a folder, and return it."""
    left = [
        p for p in folder.rglob(store.PARTS) if (pid := re.search(r"\.(\d+)\.part$", p.name)) and not _runs(int(pid[1]))
    ]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
