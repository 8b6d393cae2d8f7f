"""Files read with a check that they are whole and mean what they say: claims, tables, notes, stamps.

    claims, rows = whole.claims(path), whole.table(path)      # or a `Damaged` that names the file and what is wrong

A file that was cut at the end of a line looks whole. So what is published is listed with its digests, and a run notes
the digests of what it has written.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from PIL import Image

from mnemosyne.book import folders
from mnemosyne.book.verdicts import VERDICTS
from mnemosyne.tasks.files import ADVICE, EMPTY, stand_in

CLAIM = ("id", "paper", "rule", "ours", "verdict")
"""Fields of a claim without which it says nothing; each is a text."""


class Damaged(ValueError):
    """A file that is not whole, or does not hold what its place says."""

    def __init__(self, path: Path, wrong: str, remedy: str = ""):
        super().__init__(f"{path} {wrong}{f'; {remedy}' if remedy else ''}")
        self.path, self.wrong = path, wrong


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def text(path: Path) -> str:
    """The text of a file.

    Raises:
        Damaged: an empty file, zero bytes, what is not UTF-8, a web page, or a pointer of Git LFS.
    """
    content = path.read_bytes()
    if b"\0" in content:
        raise Damaged(path, "holds zero bytes, as a file may after a power cut or on a full disk")
    if problem := stand_in(path) if content.strip() else EMPTY:
        raise Damaged(path, problem, ADVICE[problem])
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(path, f"is not UTF-8: {error.reason} at byte {error.start}") from error


def values(path: Path, kind: type = dict, names: tuple[str, ...] = ()) -> Any:
    """The JSON of a file: a dict that has these names, or a list."""
    try:
        found = json.loads(text(path))
    except json.JSONDecodeError as error:
        raise Damaged(path, f"is not whole: {error}") from error
    if not isinstance(found, kind):
        raise Damaged(path, f"holds a {type(found).__name__} where a {kind.__name__} belongs")
    missing = [name for name in names if name not in found]
    if missing:
        raise Damaged(path, f"lacks {', '.join(missing)}")
    return found


def claims(path: Path) -> list[dict]:
    """The claims of a file, each with a verdict that there is."""
    found = values(path, list)
    for claim in found:
        fields = claim if isinstance(claim, dict) else {}
        wrong = [name for name in CLAIM if not isinstance(fields.get(name), str)]
        if wrong:
            raise Damaged(path, f"holds a claim ({fields.get('id', 'no id')}) without {', '.join(wrong)}")
        if claim["verdict"] not in VERDICTS:
            verdict = f"the verdict {claim['verdict']!r} on {claim['id']}, which is none of {', '.join(VERDICTS)}"
            raise Damaged(path, f"holds {verdict}")
    ids = [claim["id"] for claim in found]
    twice = sorted({id for id in ids if ids.count(id) > 1})
    if twice:
        raise Damaged(path, f"holds {', '.join(twice)} more than once")
    return found


def table(path: Path) -> pd.DataFrame:
    """The table of a CSV file, in which every line has as many cells as the header, and the last one ends."""
    found = text(path)
    head, *rows = csv.reader(io.StringIO(found, newline=""))
    if "" in head or len(set(head)) < len(head) or all(map(_is_number, head)):
        raise Damaged(path, f"has no header of column names, but {','.join(head)[:80]!r}")
    if not rows:
        raise Damaged(path, "holds a header and no rows")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(head):
            raise Damaged(path, f"has {len(row)} cells in row {number} and {len(head)} in its header")
    if not found.endswith("\n"):
        raise Damaged(path, f"is cut: row {len(rows)} does not end")
    return pd.read_csv(io.StringIO(found))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook, in version 4 of its format."""
    text(path)
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # of nbformat, or of what it finds where a notebook's parts belong
        raise Damaged(path, f"is no notebook: {str(error).splitlines()[0][:120]}") from error


def picture(path: Path) -> Path:
    """A PNG that can be drawn, by its path."""
    try:
        Image.open(io.BytesIO(path.read_bytes())).load()
    except (OSError, ValueError, SyntaxError) as error:
        raise Damaged(path, f"is no whole picture: {error}") from error
    return path


# What is published ----------------------------------------------------------------------------------------------------


def published(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` finds in a table, a claims file or a figure as published; None where none is published.

    Raises:
        Damaged: if the file is not the one that was published, or is none that can be read.
    """
    wanted = digests(path.parent.name).get(path.name)
    remedy = f"get the published one again: git checkout -- {path.relative_to(folders.root())}"
    if not path.exists():
        if wanted is None:
            return None
        raise Damaged(path, "is gone", remedy)
    try:
        found = read(path)
    except Damaged as error:
        raise Damaged(path, error.wrong, remedy) from error
    if wanted not in (None, digest(path)):
        raise Damaged(path, f"is not what was published (SHA-256 {digest(path)[:12]}…, not {wanted[:12]}…)", remedy)
    return found


def digests(scale: str) -> dict[str, str]:
    """The digests of a scale's published tables, claims and figures, by name; empty if they are not listed."""
    path = listing(scale)
    if not path.exists():
        return {}
    found = values(path)
    wrong = [name for name, digest in found.items() if not re.fullmatch(r"[0-9a-f]{64}", str(digest))]
    if wrong:
        raise Damaged(path, f"holds no SHA-256 of {wrong[0]}")
    return found


def listing(scale: str) -> Path:
    """The file beside a scale's published tables that lists what is published."""
    return folders.published_tables(scale).with_name(f"{scale}.digests.json")
