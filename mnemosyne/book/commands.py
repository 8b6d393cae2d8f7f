"""The commands that need the libraries of the book: reproduce, publish, meta-train, search, evolve."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from mnemosyne.book import folders
from mnemosyne.book.publish import publish as publish_runs
from mnemosyne.book.reproduce import reproduce as reproduce_notebooks
from mnemosyne.metatrain.pes import PESConfig
from mnemosyne.metatrain.recipes import (
    SEARCHED,
    SEARCHED_ON,
    VARIED,
    Selection,
    by_evolution,
    by_search,
    by_truncation,
    make_weights,
)
from mnemosyne.metatrain.search import SearchConfig
from mnemosyne.metatrain.truncated import MetaConfig
from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.registry import OPTIMIZERS

EVOLVED = ("small_fc", "nn_adam")
TRUNCATED = tuple(name for name, entry in OPTIMIZERS.items() if not entry.parts and name not in (*SEARCHED, *EVOLVED))


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
    folders.checkout()
    return reproduce_notebooks(scale=scale, seed=seed, only=only, force=force, keep_going=keep_going, jobs=jobs)


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
    folders.checkout()
    print(f"{len(publish_runs(scale=scale, only=only))} files published")
    return 0


def meta_train(
    name: tyro.conf.Positional[Literal[TRUNCATED]],
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
        dataset: images to meta-train on; `digits` are always there.
    """
    folder = out or Path("data") / "meta-training" / name
    folders.writable(folder)
    report(make_weights(name, by_truncation(name, meta, dataset), folder, selection, line))
    return 0


def search(
    name: tyro.conf.Positional[Literal[tuple(SEARCHED)]] = "paced",
    config: tyro.conf.OmitArgPrefixes[SearchConfig] = SearchConfig(),  # noqa: B008
    selection: Selection = VARIED,
    *,
    out: Path | None = None,
    images: str = "mnist",
    text: str = "wikitext2",
    tasks: Literal[tuple(SEARCHED_ON)] = "varied",
) -> int:
    """Search for a law of a few numbers over whole runs; the same command goes on after a kill.

    Args:
        name: which optimizer.
        config: what the search does.
        selection: how a snapshot is chosen afterwards.
        out: folder of the run; data/meta-training/<name> by default.
        images: a data set for the networks that see images; `digits` are always there.
        text: a data set for those that read; `synthetic` is always there.
        tasks: on which set; the hard one has batches of one, deep and wide networks and examples known by heart.
    """
    folder = out or Path("data") / "meta-training" / name
    folders.writable(folder)
    report(make_weights(name, by_search(name, config, images, text, tasks), folder, selection, line))
    return 0


def evolve(
    name: tyro.conf.Positional[Literal[EVOLVED]],
    config: tyro.conf.OmitArgPrefixes[PESConfig] = PESConfig(),  # noqa: B008
    selection: Selection = VARIED,
    *,
    out: Path | None = None,
    images: tuple[str, ...] = ("mnist", "cifar10_15k"),
    text: str = "wikitext2",
) -> int:
    """Meta-train an optimizer by persistent evolution strategies; the same command goes on after a kill.

    Args:
        name: which optimizer.
        config: what evolution does.
        selection: how a snapshot is chosen afterwards.
        out: folder of the run; data/meta-training/<name> by default.
        images: data sets to learn on; `digits` are always there.
        text: a data set for those validation tasks that read; `synthetic` is always there.
    """
    folder = out or Path("data") / "meta-training" / name
    folders.writable(folder)
    report(make_weights(name, by_evolution(name, config, images, text), folder, selection, line))
    return 0


def line(row: dict) -> None:
    """Print a row of a meta-training log."""
    print("  ".join(f"{k} {v:.6g}" for k, v in row.items()), flush=True)


def report(path: Path) -> None:
    """Say where new weights are and how to ship them."""
    print(f"wrote {path}, with a card (.md) and a log (.csv) beside it")
    print(f"to ship it, copy the three to {zoo.folder()} and put its SHA-256 into {zoo.SUMS} there")


COMMANDS = {"reproduce": reproduce, "publish": publish, "meta-train": meta_train, "search": search, "evolve": evolve}


def run(name: str, args: list[str]) -> int:
    """Run a command with the words behind its name; prints its help, or what is wrong with them, and exits."""
    return tyro.cli(COMMANDS[name], prog=f"mnemosyne {name}", args=args)
