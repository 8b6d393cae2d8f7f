"""What was tried against the project, how often, and what came of it: the numbers behind docs/faults.md.

    record("fuzz", [{"what": "random trees", "tried": 2000, "right": 1950, "clear_error": 50, "wrong": 0, "note": ""}])

Each harness has a file of its own, data/results/faults/<name>.csv, which its long form writes whole. A short form,
which every run of the tests goes through, prints and writes nothing here.
"""

import csv
import io
from pathlib import Path

from mnemosyne.book import folders

COLUMNS = ("what", "tried", "right", "clear_error", "wrong", "note")
"""What was tried, in words; how often; how often the value was right, a clear error came, neither; a remark."""

FOLDER = Path(__file__).parents[2] / "data" / "results" / "faults"


def record(name: str, rows: list[dict], folder: Path = FOLDER) -> Path:
    """Write the tally of one harness, in place of the one before.

    Args:
        name: of the file, without its ending.
        rows: each with `COLUMNS`, of which `clear_error`, `wrong` and `note` may be left out.
        folder: where to.

    Returns:
        The file.

    Raises:
        ValueError: if a row has another column, or its outcomes do not add up to what was tried.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(whole, rows))
    path = folder / f"{name}.csv"
    folders.write(path, text.getvalue())
    return path


def whole(row: dict) -> dict:
    """A row with every column, after a check that its numbers agree."""
    if unknown := row.keys() - set(COLUMNS):
        raise ValueError(f"a row of a tally has the columns {', '.join(COLUMNS)}, not {', '.join(sorted(unknown))}")
    row = {"clear_error": 0, "wrong": 0, "note": ""} | row
    ended = row["right"] + row["clear_error"] + row["wrong"]
    if ended != row["tried"]:
        raise ValueError(f"{row['what']}: {row['tried']} were tried, but right, clear_error and wrong sum to {ended}")
    return row


def shown(rows: list[dict]) -> str:
    """Rows as lines of text, for a terminal."""
    lines = [[str(row[column]) for column in COLUMNS] for row in map(whole, rows)]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *lines, strict=True)]
    padded = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in (COLUMNS, *lines)]
    return "\n".join(line.rstrip() for line in padded)
