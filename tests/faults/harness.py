"""Faults on purpose: kills, full disks, folders that cannot be written, two runs at once, clocks that jump.

python -m tests.faults.harness --times 100 --record      # every kind, 100 kills each; writes the tally of the docs
python -m tests.faults.harness --times 5 publish         # one kind, a few kills; only prints
"""

import argparse
import os
import tempfile
from pathlib import Path

import matplotlib.backends.backend_agg
import sklearn.datasets

import mnemosyne.book.commands
from tests.faults import kills, tally, works


def meta_training(place: Path, times: int) -> list[dict]:
    """The command, on networks of four units."""
    wanted = kills.undisturbed(works.META_TRAIN, place / "undisturbed")
    return [kills.row("kill -9 of meta-train", kills.times(times, works.META_TRAIN, place / "killed", wanted))]


def outer_loop(place: Path, times: int) -> list[dict]:
    """Its loop alone, which does nothing but keep what it has."""
    wanted = kills.undisturbed(works.LOOP, place / "undisturbed")
    return [kills.row("kill -9 of the outer loop", kills.times(times, works.LOOP, place / "killed", wanted))]


def reproducing(place: Path, times: int) -> list[dict]:
    """Two notebooks."""
    wanted = kills.undisturbed(works.REPRODUCE, place / "undisturbed")
    victims = ("parent", "kernel", "both")
    found = kills.times(times, works.REPRODUCE, place / "killed", wanted, victims)
    return [kills.row(f"kill -9 of reproduce: {v}", [k for k in found if k.victim == v]) for v in victims]


def publishing(place: Path, times: int) -> list[dict]:
    """Of the same notebooks."""
    kills.undisturbed(works.FOR_PUBLISHING, place / "runs")
    work = works.publishing(place / "runs" / "second")
    wanted = kills.undisturbed(work, place / "undisturbed")
    return [kills.row("kill -9 of publish", kills.times(times, work, place / "killed", wanted))]


IMPORTED = matplotlib.backends.backend_agg, sklearn.datasets, mnemosyne.book.commands
"""What runs would import; they are forked from here, and kills are to fall on work, not on imports."""

KINDS = {"outer-loop": outer_loop, "meta-train": meta_training, "reproduce": reproducing, "publish": publishing}


def main() -> None:
    """Try each kind, print the tally, and with --record write it for the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--times", type=int, default=100, help="kills of each kind, at least")
    parser.add_argument("--record", action="store_true", help="write data/results/faults, a file for each kind")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{place}/jax")
        for kind in chosen.kinds or KINDS:
            found = KINDS[kind](Path(place) / kind, chosen.times)
            rows += found
            if chosen.record:
                tally.record(kind.replace("-", "_"), found)
    print(tally.shown(rows))
    raise SystemExit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
