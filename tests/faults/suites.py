"""Run a part of the tests, and count how its cases ended for the docs.

    python -m tests.faults.suites bad_inputs meshes dtypes
    other/bin/python -m tests.faults.suites versions        # with JAX and its friends of other versions

A case is a test with one set of parameters. It ends in a clear error where the test expects one, else in a right value.
"""

import argparse
import inspect
import re
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

ERROR = re.compile(r"raises\(|SystemExit|stderr|\.err\b|call\(")
"""How a test speaks of an error that it expects."""


class Count:
    """A plugin of pytest that notes how each case ended: (room, outcome) → how many."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str]] = Counter()
        self.expects: dict[str, str] = {}
        self.failed: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            error = ERROR.search(inspect.getsource(item.function))
            self.expects[item.nodeid] = "clear_error" if error else "right"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (report.when == "call" and not report.skipped) or report.failed:
            room = report.nodeid.removeprefix("tests/").partition("::")[0].removesuffix(".py")
            self.found[room, "wrong" if report.failed else self.expects[report.nodeid]] += 1
            if report.failed:
                self.failed.setdefault(room, []).append(report.nodeid.partition("::")[2])

    def rows(self, what: str) -> list[dict]:
        """A line of the tally for each file of tests."""
        rooms = sorted({room for room, _ in self.found})
        count = lambda room: {kind: self.found[room, kind] for kind in ("right", "clear_error", "wrong")}
        note = lambda room: ", ".join(self.failed.get(room, []))
        return [{"what": f"{what}: {r}", "tried": sum(count(r).values()), **count(r), "note": note(r)} for r in rooms]


OPTIMIZERS = ["optimizer/test_training_code.py", "optimizer/test_tradeoffs.py"]
SUITES = {
    "bad_inputs": ("bad inputs", ["-m", "bad_input"], ["."]),
    "meshes": ("meshes", ["-k", "shard or mesh or boxes or annotated"], OPTIMIZERS),
    "dtypes": ("dtypes", ["-k", "dtype or bfloat16 or 64_bit or beyond_float32"], ["memory", "optimizer", "tasks"]),
    "versions": (f"jax {version('jax')}, optax {version('optax')}", [], [*OPTIMIZERS, "optimizer/test_tensorwise.py"]),
}
"""What each is called in the tally, which cases it has, and where they are."""


def main() -> None:
    """Run suites and write data/results/faults, a file for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", choices=SUITES, metavar="suite", help=f"of {', '.join(SUITES)}")
    failed = False
    for name in parser.parse_args().suites:
        what, chosen, places = SUITES[name]
        count, tests = Count(), Path(__file__).parents[1]
        failed |= pytest.main([*chosen, "-p", "no:randomly", *(str(tests / p) for p in places)], plugins=[count]) != 0
        from tests.faults import tally  # after pytest, which checks types in whatever is imported under it

        if count.found:
            print(tally.shown(count.rows(what)))
            tally.record(f"jax_{version('jax')}" if name == "versions" else name, count.rows(what))
    sys.exit(failed)


if __name__ == "__main__":
    main()
