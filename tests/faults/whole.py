"""What a folder holds, file by file: whether each is whole, and its content without what differs from run to run."""

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from mnemosyne import store

UNLIKE = {"seconds", "papermill", "started", "id", "execution", "page"}
"""Fields that say when something ran and how long it took; `page` is the digest of a page that has such fields."""


def _json(content: bytes) -> bytes:
    return json.dumps(_timeless(json.loads(content))).encode()


def _timeless(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _timeless(v) for k, v in x.items() if k not in UNLIKE}
    return [_timeless(v) for v in x] if isinstance(x, list) else x


def _lines(content: bytes) -> bytes:
    """A log: a line that was cut short counts as not written."""
    return b"\n".join(_json(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n"))


def _csv(content: bytes) -> bytes:
    head, *rows = csv.reader(io.StringIO(content.decode()))
    if not content.endswith(b"\n") or {len(row) for row in rows} - {len(head)}:
        raise ValueError("a table that was cut short")
    timeless = [i for i, name in enumerate(head) if name not in UNLIKE]
    return "\n".join(",".join(row[i] for i in timeless) for row in (head, *rows)).encode()


def _card(content: bytes) -> bytes:
    if not content.endswith(b"\n") or b"\n## Choice of the snapshot\n" not in content:
        raise ValueError("a card that was cut short")
    return re.sub(rb"- \*\*Time\*\*.*\n", b"", content)


def _kept(content: bytes) -> bytes:
    entry = json.loads(gzip.decompress(content))
    return json.dumps(entry["content"]).encode()


def _picture(content: bytes) -> bytes:
    Image.open(io.BytesIO(content)).load()
    return content


def _page(content: bytes) -> bytes:
    if not content.rstrip().endswith(b"%%EOF"):
        raise ValueError("a PDF that was cut short")
    return content


def _zip(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} is damaged")
    return content


READ: dict[str, Callable[[bytes], bytes]] = {
    ".json": _json,
    ".ipynb": _json,
    ".jsonl": _lines,
    ".csv": _csv,
    ".md": _card,
    ".gz": _kept,
    ".png": _picture,
    ".pdf": _page,
    ".zip": _zip,
}
"""How files are read, by ending."""

PASSING = (".lock", ".log")
"""Files that may be there or not."""
TIMED = "checkpoint"
"""Files that begin so are written when some time has passed: which step they hold differs from run to run."""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path, without times.

    Raises:
        ValueError: naming each file that is not whole.
    """
    found, broken = {}, []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.endswith(PASSING):
            continue
        try:
            if path.suffix == ".safetensors":
                store.read(path)
            content = b"" if path.name.startswith(TIMED) else path.read_bytes()
            found[str(path.relative_to(folder))] = READ.get(path.suffix, bytes)(content)
        except FileNotFoundError:
            continue
        except Exception as error:
            broken.append(f"{path.relative_to(folder)} is not whole ({type(error).__name__}: {error})")
    if broken:
        raise ValueError("; ".join(broken))
    return found


def half_written(folder: Path) -> list[str]:
    """The files of a folder that are not whole, each with why; one under a passing name, `.part`, may be anything."""
    try:
        contents(folder)
    except ValueError as error:
        return str(error).split("; ")
    return []


def differing(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """Files that are not there, that should not be there, or that hold something else."""
    told = {name: "is missing" for name in wanted.keys() - found.keys()}
    told |= {name: "is left over" for name in found.keys() - wanted.keys()}
    told |= {name: "differs" for name in found.keys() & wanted.keys() if found[name] != wanted[name]}
    return [f"{name} {what}" for name, what in sorted(told.items())]
