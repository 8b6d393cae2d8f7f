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
from tests.faults import conditions, kills, tally, works


def outer_loop(place: Path, times: int) -> list[dict]:
    """The loop of meta-training alone, which does nothing but keep what it has."""
    return tried(works.LOOP, place, times)


def meta_training(place: Path, times: int) -> list[dict]:
    """The command, on networks of four units. Other conditions than kills are tried on its loop."""
    wanted = kills.undisturbed(works.META_TRAIN, place / "undisturbed")
    return [kills.row("kill -9 of meta-train", kills.times(times, works.META_TRAIN, place / "killed", wanted))]


def reproducing(place: Path, times: int) -> list[dict]:
    """Two notebooks."""
    return tried(works.REPRODUCE, place, times, ("parent", "kernel", "both"))


def publishing(place: Path, times: int) -> list[dict]:
    """Of the same notebooks."""
    kills.undisturbed(works.FOR_PUBLISHING, place / "runs")
    return tried(works.publishing(place / "runs" / "second"), place, times)


def tried(work: works.Work, place: Path, times: int, victims: tuple[str, ...] = ("parent",)) -> list[dict]:
    """Kills, and a tenth as often every other condition."""
    wanted = kills.undisturbed(work, place / "undisturbed")
    found = kills.times(times, work, place / "killed", wanted, victims)
    rows = [kills.row(f"kill -9 of {work.what}: {v}", [k for k in found if k.victim == v]) for v in victims]
    return rows + conditions.tried(work, place / "conditions", wanted, max(1, times // 10))


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
