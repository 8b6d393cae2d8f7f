"""Results kept on disk under the hash of what computed them, and checked when they are read.

    kept = Kept()
    rows = kept.get(key, compute)     # a table, or plain values; computed once
    kept.sources()                    # how what was handed out came

An entry is JSON: the content, its hash, and how it came. What a run computes is a file of its own in the cache, whole
or not there. What is published is a zip of entries for each notebook, so that everyone finds what one has computed.
"""

import gzip
import hashlib
import io
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import pandas as pd

from mnemosyne import store
from mnemosyne.book import folders
from mnemosyne.book.keys import value
from mnemosyne.provenance import device, versions
from mnemosyne.types import Params

# What reading a damaged gzip or zip file raises; the last two if a bit says that it is encrypted, or compressed anew.
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Kept:
    """What one notebook's run reads and keeps."""

    force: bool = False  # compute anew what was kept
    used: dict[str, dict] = field(default_factory=dict)  # key → how it came, of all that was handed out

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """What was kept under a key, or else what `compute` returns, which is kept.

        Args:
            key: a hash of all that the content depends on, see `keys`.
            compute: without arguments → a table, or tables, numbers, strings in lists and dicts.

        Returns:
            The content as read back, so that a first call and a later one return the same.
        """
        entry = None if self.force else find(key)
        if entry is None:
            began = time.perf_counter()
            content = _encoded(compute())
            about = {"versions": versions(), "device": device(), "seconds": round(time.perf_counter() - began, 1)}
            entry = {"about": about, "sha256": _digest(content), "content": content}
            folders.write(_path(key), gzip.compress(json.dumps(entry).encode(), mtime=0))
        self.used[key] = entry["about"]
        return _decoded(entry["content"])

    def arrays(self, key: str, like: Params, compute: Callable[[], tuple[Params, dict]]) -> tuple[Params, dict]:
        """The same for a pytree of arrays, and numbers that were measured with it.

        Args:
            key: as above.
            like: a pytree with the structure and shapes to fill.
            compute: → (arrays, numbers by name).
        """

        def computed() -> dict:
            arrays, measured = compute()
            folders.writable(_path(key).parent)
            store.save_tree(_arrays(key), arrays, {"sha256": value(jax.tree.leaves(arrays))})
            return {name: float(x) for name, x in measured.items()}

        numbers = self.get(key, computed)
        found = _read_arrays(key, like)
        if found is None:
            _arrays(key).unlink(missing_ok=True)
            numbers = Kept(force=True, used=self.used).get(key, computed)
            found = store.load_tree(_arrays(key), like)
        return found, numbers

    def sources(self) -> list[dict]:
        """How what was handed out came: versions, device and number of entries, most first."""
        frame = pd.DataFrame(self.used.values(), columns=["versions", "device", "note"]).fillna("")
        counts = frame.value_counts(sort=True).reset_index(name="entries")
        return [{k: v for k, v in row.items() if v != ""} for row in counts.to_dict("records")]


def find(key: str) -> dict | None:
    """The entry of a key, from the cache or from what is published; a damaged one is told and passed over."""
    mine = _path(key)
    if mine.exists():
        entry = _checked(str(mine), lambda: gzip.decompress(mine.read_bytes()))
        if entry is not None:
            return entry
    for path in sorted(folders.published_rows().glob("*/*.zip")):
        entry = _from_zip(path, key)
        if entry is not None:
            return entry
    return None


def archive(keys: Iterable[str], remedy: str) -> bytes:
    """A zip of the entries of these keys, the same bytes each time.

    Raises:
        ValueError: if one is gone or damaged, with the command that computes it anew.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as whole:
        for key in sorted(keys):
            entry = find(key)
            if entry is None:
                raise ValueError(f"rows are gone or damaged that the run has used ({key}): {remedy} FORCE=1")
            whole.writestr(zipfile.ZipInfo(f"{key}.json"), json.dumps(entry), zipfile.ZIP_DEFLATED, 9)
            if _arrays(key).exists():
                store.read(_arrays(key))  # a StoreError names one that is damaged
                whole.writestr(zipfile.ZipInfo(_arrays(key).name), _arrays(key).read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def _path(key: str) -> Path:
    return folders.cache() / "kept" / f"{key}.json.gz"


def _arrays(key: str) -> Path:
    return folders.cache() / "kept" / f"{key}.safetensors"


def _checked(where: str, read: Callable[[], bytes]) -> dict | None:
    """An entry that is whole, or None and a line that says it is not."""
    try:
        entry = json.loads(read())
        if entry["sha256"] == _digest(entry["content"]) and isinstance(entry["about"], dict):
            return entry
        wrong = "its content has another SHA-256 than it says"
    except (KeyError, TypeError) as error:
        wrong = f"it is no entry: {error}"
    except UNREADABLE as error:
        wrong = str(error) or type(error).__name__
    print(f"{where} is damaged; it is not used ({wrong})", flush=True)
    return None


def _from_zip(path: Path, key: str) -> dict | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{key}.json" not in archive.namelist():
                return None
            if f"{key}.safetensors" in archive.namelist() and not _arrays(key).exists():
                folders.write(_arrays(key), archive.read(f"{key}.safetensors"))
            return _checked(f"{key} in {path}", lambda: archive.read(f"{key}.json"))
    except UNREADABLE as error:
        print(f"{path} is damaged ({error}); it is not used", flush=True)
        return None


def _read_arrays(key: str, like: Params) -> Params | None:
    try:
        arrays = store.load_tree(_arrays(key), like)
        if store.read(_arrays(key))[1]["sha256"] == value(jax.tree.leaves(arrays)):
            return arrays
    except (OSError, KeyError, store.StoreError):
        pass
    print(f"{_arrays(key)} is damaged or not there; it is computed anew", flush=True)
    return None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _encoded(x: Any) -> Any:
    """Tables as CSV with nine digits, which tell single-precision numbers apart; all else as JSON has it."""
    if isinstance(x, pd.DataFrame):
        return {"csv": x.to_csv(index=False, float_format="%.9g", lineterminator="\n")}
    if isinstance(x, dict):
        return {k: _encoded(v) for k, v in x.items()}
    return [_encoded(v) for v in x] if isinstance(x, (list, tuple)) else x


def _decoded(x: Any) -> Any:
    if isinstance(x, dict):
        if x.keys() == {"csv"}:
            return pd.read_csv(io.StringIO(x["csv"]), float_precision="round_trip")
        return {k: _decoded(v) for k, v in x.items()}
    return [_decoded(v) for v in x] if isinstance(x, list) else x
