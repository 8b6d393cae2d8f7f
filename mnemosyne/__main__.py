"""The command line: reproduce, meta-train, data, weights. `python -m mnemosyne --help`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mnemosyne.metatrain.recipes import SEARCHED, Selection, by_search, by_truncation, make_weights
from mnemosyne.metatrain.search import SearchConfig
from mnemosyne.metatrain.truncated import MetaConfig
from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.store import StoreError
from mnemosyne.tasks.data import images

Positional = tyro.conf.Positional
TRUNCATED = tuple(name for name, entry in OPTIMIZERS.items() if not entry.parts and name != "paced")


def reproduce(
    *,
    scale: str = "quick",
    seed: int = 0,
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NOTEBOOK …")] = (),
    force: bool = False,
    keep_going: bool = False,
    jobs: int = 1,
) -> int:
    """Regenerate every figure and table by running the notebooks.

    Args:
        scale: quick (minutes on a laptop), laptop (hours) or paper (an accelerator).
        seed: offsets every random key.
        only: notebooks to run, by number (03) or name; all by default.
        force: run also what is up to date, and compute anew what was kept.
        keep_going: start others after a notebook that failed.
        jobs: notebooks that run at a time; 2 are faster on a CPU, an accelerator serves one.
    """
    try:
        from mnemosyne.book.reproduce import reproduce as run
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is missing: pip install 'mnemosyne-optimizer[notebooks]'") from error
    return run(scale=scale, seed=seed, only=only, force=force, keep_going=keep_going, jobs=jobs)


def publish(
    *,
    scale: str = "laptop",
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NOTEBOOK …")] = (),
) -> int:
    """Copy what runs at a scale have computed to what the repository keeps: tables, figures, notebooks, rows.

    Args:
        scale: of the runs, whose seed is 0.
        only: notebooks, by number (03) or name; all by default.
    """
    from mnemosyne.book.publish import publish as run

    print(f"{len(run(scale=scale, only=only))} files published")
    return 0


def meta_train(
    name: Positional[Literal[TRUNCATED]],
    meta: tyro.conf.OmitArgPrefixes[MetaConfig] = MetaConfig(),  # noqa: B008
    selection: Selection = Selection(),  # noqa: B008
    *,
    out: Path | None = None,
    dataset: str = "mnist",
) -> int:
    """Meta-train an optimizer and write its weights and card; the same command goes on after a kill.

    Args:
        name: which rule.
        meta: what meta-training does.
        selection: how a snapshot is chosen afterwards.
        out: folder of the run; data/meta-training/<name> by default.
        dataset: images to meta-train on.
    """

    folder = out or Path("data") / "meta-training" / name
    report(make_weights(name, by_truncation(name, meta, dataset), folder, selection, line))
    return 0


def search(
    config: tyro.conf.OmitArgPrefixes[SearchConfig] = SearchConfig(),  # noqa: B008
    selection: Selection = SEARCHED,
    *,
    out: Path = Path("data/meta-training/paced"),
) -> int:
    """Search for the pace of `paced`; the same command goes on after a kill.

    Args:
        config: what the search does.
        selection: how a snapshot is chosen afterwards.
        out: folder of the run.
    """
    report(make_weights("paced", by_search("paced", config), out, selection, line))
    return 0


def line(row: dict) -> None:
    """Print a row of a meta-training log."""
    print("  ".join(f"{k} {v:.6g}" for k, v in row.items()), flush=True)


def report(path: Path) -> None:
    """Say where new weights are and how to ship them."""
    print(f"wrote {path}, with a card (.md) and a log (.csv) beside it; to ship it, copy the three to {zoo.folder()}")


def data_command(action: Positional[Literal["list", "fetch", "verify"]], name: Positional[str | None] = None) -> int:
    """List data sets, download one's originals, or check that they are the published files.

    Args:
        action: what to do.
        name: a data set; needed by fetch and verify.
    """
    if action == "list":
        for known in images.NAMES:
            print(f"{known:14s} {state(known)}")
        print(f"originals: {images.originals()} (MNEMOSYNE_DATA), prepared: {images.cache()} (MNEMOSYNE_CACHE)")
        return 0
    if name is None:
        raise ValueError(f"which data set? python -m mnemosyne data {action} {'|'.join(images.SOURCES)}")
    if action == "fetch":
        print(f"{name}: originals in {images.fetch(name)}")
    else:
        images.verify(name)
        print(f"{name}: every file is the published one")
    return 0


def state(name: str) -> str:
    """One line on whether a data set can be used."""
    if name in images.DIGITS:
        return "bundled with scikit-learn"
    try:
        images.verify(name)
        return f"present; {images.SOURCES[name].licence}"
    except images.DataError:
        source = images.SOURCES[name]
        remedy = f"python -m mnemosyne data fetch {name}" if source.url else "no public address; see data/README.md"
        return f"absent or damaged: {remedy}; {source.licence}"


def weights(action: Positional[Literal["list", "card"]], name: Positional[str | None] = None) -> int:
    """List the weights that ship with the package, or print the card of one.

    Args:
        action: what to do.
        name: whose card.
    """
    if action == "card":
        print(zoo.card(name or "paced"))
        return 0
    for known in zoo.available():
        paths = zoo.files_of(known)
        parts = "" if known in zoo.shipped() else "  of " + " and ".join(path.stem for path in paths)
        print(f"{known:16s} {sum(path.stat().st_size for path in paths) / 1e3:6.1f} kB{parts}")
    return 0


COMMANDS = {
    "reproduce": reproduce,
    "publish": publish,
    "meta-train": meta_train,
    "search": search,
    "data": data_command,
    "weights": weights,
}


def main(args: list[str] | None = None) -> None:
    """Run one command; a mistake in its arguments or data is a message, not a traceback."""
    try:
        sys.exit(tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="mnemosyne", args=args))
    except (ValueError, images.DataError, StoreError, PermissionError, FileNotFoundError) as error:
        sys.exit(f"mnemosyne: {error}")


if __name__ == "__main__":
    main()
