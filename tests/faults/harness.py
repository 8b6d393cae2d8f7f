"""Faults on purpose: kills, full disks, folders that cannot be written, two runs at once, clocks that jump.

python -m tests.faults.harness --times 100 --record      # every kind, 100 kills each; writes the tally of the docs
python -m tests.faults.harness --times 5 publish         # one kind, a few kills; only prints
"""

import argparse
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.backends.backend_agg
import sklearn.datasets

import mnemosyne.book.commands
from tests.faults import conditions, kills, tally, works


@dataclass(frozen=True)
class Tries:
    """How often things are tried, and where."""

    place: Path
    kills: int
    conditions: int  # disks, and pairs of runs; 0 for no condition but kills

    def of(self, work: works.Work, victims: tuple[str, ...] = ("parent",)) -> list[dict]:
        """Rows of the tally for one work."""
        here = self.place / work.what.replace(" ", "-")
        wanted = kills.undisturbed(work, here / "undisturbed")
        found = kills.times(self.kills, work, here / "killed", wanted, victims)
        rows = [kills.row(f"kill -9 of {work.what}: {v}", [k for k in found if k.victim == v]) for v in victims]
        return rows + conditions.tried(work, here / "conditions", wanted, self.conditions)


def outer_loop(tries: Tries) -> list[dict]:
    """The loop of meta-training alone, which does nothing but keep what it has."""
    return tries.of(works.LOOP)


def meta_training(tries: Tries) -> list[dict]:
    """The command, on networks of four units. Other conditions than kills are tried on its loop."""
    return replace(tries, conditions=0).of(works.META_TRAIN)


def reproducing(tries: Tries) -> list[dict]:
    """Two notebooks."""
    return tries.of(works.REPRODUCE, ("parent", "kernel", "both"))


def publishing(tries: Tries) -> list[dict]:
    """Of the same notebooks, which may have run already."""
    runs = tries.place / "reproduce" / "undisturbed"
    if not runs.exists():
        kills.alone(works.REPRODUCE, runs)
    return tries.of(works.publishing(runs))


IMPORTED = matplotlib.backends.backend_agg, sklearn.datasets, mnemosyne.book.commands
"""What runs would import; they are forked from here, and kills are to fall on work, not on imports."""

KINDS = {"outer-loop": outer_loop, "meta-train": meta_training, "reproduce": reproducing, "publish": publishing}


def main() -> None:
    """Try each kind, print the tally, and with --record write it for the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--times", type=int, default=100, help="kills of each kind, at least")
    parser.add_argument("--conditions", type=int, help="disks and pairs of runs; a tenth of the kills by default")
    parser.add_argument("--record", action="store_true", help="write data/results/faults, a file for each kind")
    chosen = parser.parse_args()
    few, rows = max(1, chosen.times // 10) if chosen.conditions is None else chosen.conditions, []
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{place}/jax")
        for kind in chosen.kinds or KINDS:
            found = KINDS[kind](Tries(Path(place), chosen.times, few))
            rows += found
            if chosen.record:
                tally.record(kind.replace("-", "_"), found)
    print(tally.shown(rows))
    raise SystemExit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
