"""Run every test that is marked `bad_input`, and count them for the docs.

    python -m tests.faults.bad_inputs

A case is a test with one set of parameters. It ends in a clear error where the test expects one, else in a right value.
"""

import inspect
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ERROR = re.compile(r"raises\(|SystemExit|stderr|\.err\b|call\(")
"""How a test speaks of an error that it expects."""


class Count:
    """A plugin of pytest that notes how each case ended: (room, outcome) → how many."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str]] = Counter()
        self.expects: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            error = ERROR.search(inspect.getsource(item.function))
            self.expects[item.nodeid] = "clear_error" if error else "right"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (report.when == "call" and not report.skipped) or report.failed:
            room = report.nodeid.removeprefix("tests/").partition("::")[0].removesuffix(".py")
            self.found[room, "wrong" if report.failed else self.expects[report.nodeid]] += 1

    def rows(self) -> list[dict]:
        """A line of the tally for each file of tests."""
        rooms = sorted({room for room, _ in self.found})
        count = lambda room: {kind: self.found[room, kind] for kind in ("right", "clear_error", "wrong")}
        return [{"what": f"bad inputs of tests/{r}", "tried": sum(count(r).values()), **count(r)} for r in rooms]


def main() -> None:
    """Run the tests and write data/results/faults/bad_inputs.csv."""
    count = Count()
    tests = Path(__file__).parents[1]
    status = pytest.main(["-m", "bad_input", "-p", "no:randomly", str(tests)], plugins=[count])
    from tests.faults import tally  # after pytest, which checks types in whatever is imported under it

    if count.found:
        print(tally.shown(count.rows()))
        tally.record("bad_inputs", count.rows())
    sys.exit(status)


if __name__ == "__main__":
    main()
