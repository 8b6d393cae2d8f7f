"""Where things lie: the checkout, what it publishes, what runs write, what is kept of them."""

import os
from pathlib import Path


def root() -> Path:
    """The checkout: `$MNEMOSYNE_ROOT`, or the nearest folder upwards that holds `notebooks/`.

    Raises:
        FileNotFoundError: outside a checkout, saying how to point at one.
    """
    if os.environ.get("MNEMOSYNE_ROOT"):
        return Path(os.environ["MNEMOSYNE_ROOT"])
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks").is_dir() and (folder / "mnemosyne").is_dir():
            return folder
    raise FileNotFoundError(
        f"no checkout of mnemosyne at or above {Path.cwd()}; run from inside one or set MNEMOSYNE_ROOT to it"
    )


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
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
