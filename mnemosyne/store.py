"""Files that are whole or not there: pytrees of arrays, written whole and checked when read; one writer at a time.

save_tree(path, theta, {"architecture": "light"})   # the same bytes each time
theta = load_tree(path, like)                       # a StoreError if one bit of the file has changed
"""

import contextlib
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

PARTS = "*.part"
"""Files that are being written; what a killed process leaves of them may be deleted under its folder's lock."""
_DIGEST = "digest"  # in a header: the SHA-256 of all else in the file
_META = "__metadata__"


class StoreError(Exception):
    """A file that is damaged, holds something else than was asked for, or could not be written."""


# Pytrees --------------------------------------------------------------------------------------------------------------


def names(tree: Any) -> list[str]:
    """A unique name per leaf, its path: 'encoders.0.memory.query.w'."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def save_tree(path: Path, tree: Any, metadata: dict[str, str] | None = None) -> None:
    """Save a pytree of arrays; an interrupted write leaves the file as it was.

    Args:
        path: a `.safetensors` file in a folder that exists.
        tree: arrays of any floating-point, integer or boolean dtype NumPy has.
        metadata: strings kept in the file's header, in the order of their names, so that equal trees make equal files.
            Beside them stands a digest of all else in the file, which `read` compares.

    Raises:
        StoreError: if the file cannot be written.
    """
    arrays = dict(zip(names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
    raw = save({k: np.asarray(a, order="C") for k, a in arrays.items()})
    header, body = _parted(raw)
    tensors = {name: place for name, place in header.items() if name != _META}
    about = dict(sorted((metadata or {}).items()))
    digest = _digest(_header(about, tensors), body)
    write(path, _header(dict(sorted({**about, _DIGEST: digest}.items())), tensors), body)


def load_tree(path: Path, like: Any) -> Any:
    """Load a pytree saved by `save_tree`.

    Args:
        path: the file.
        like: a pytree of arrays or shapes with the structure to fill.

    Raises:
        StoreError: if the file is damaged, or lists every name, shape and dtype that differs from `like`.
    """
    arrays, _ = read(path)
    return fill(path, arrays, like)


def fill(path: Path, arrays: dict[str, np.ndarray], like: Any) -> Any:
    """Make a pytree like `like` of the arrays that `read` has found in a file; raises as `load_tree`."""
    leaves = jax.tree.leaves(like)
    wanted = {n: (tuple(x.shape), np.dtype(x.dtype)) for n, x in zip(names(like), leaves, strict=True)}
    found = {n: (a.shape, a.dtype) for n, a in arrays.items()}
    if found != wanted:
        differing = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        lines = [f"  {n}: {found.get(n, 'missing')}, wanted {wanted.get(n, 'nothing')}" for n in differing]
        raise StoreError(f"{path} does not hold what was asked for:\n" + "\n".join(lines))
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[n]) for n in names(like)])


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file: (arrays by name, metadata).

    Raises:
        StoreError: if it is missing or damaged, or is not what its digest says. A file without one, as other programs
            write it, is damaged only if its header does not fit its size.
    """
    try:
        with safe_open(path, framework="numpy") as f:
            arrays, about = {name: f.get_tensor(name) for name in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118
        digest = about.pop(_DIGEST, None)
        if digest is not None:
            header, body = _parted(Path(path).read_bytes())
            tensors = {name: place for name, place in header.items() if name != _META}
            if digest != _digest(_header(dict(sorted(about.items())), tensors), body):
                raise StoreError(f"{path} is damaged: its bytes are not those that were written")
    except (SafetensorError, ValueError) as error:
        raise StoreError(f"{path} is damaged or no safetensors file: {error}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    return arrays, about


def _parted(raw: bytes) -> tuple[dict, memoryview]:
    """A safetensors file as its header and the numbers behind it."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), memoryview(raw)[end:]


def _header(about: dict[str, str], tensors: dict[str, dict]) -> bytes:
    """The start of a safetensors file: the length of a JSON text, and the text, filled up to a multiple of eight."""
    known = {_META: about, **tensors} if about else tensors
    text = json.dumps(known, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest(*parts: bytes | memoryview) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


# Files ----------------------------------------------------------------------------------------------------------------


def write(path: Path, *content: str | bytes | memoryview) -> None:
    """Write a file whole or not at all: beside its place first, then to the disk, then into its place.

    Args:
        path: in a folder that exists.
        content: one part after another; text becomes UTF-8.

    Raises:
        StoreError: if it cannot be written, as on a full disk; the file is as it was.
    """
    with partial(path) as beside, beside.open("wb") as file:
        for part in content:
            file.write(part.encode() if isinstance(part, str) else part)


@contextlib.contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A path beside a file's place to write it to; what is there at the end takes the place, unless an error comes.

    Raises:
        StoreError: if it cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.{os.getpid()}{PARTS[1:]}")
    try:
        yield beside
        _to_disk(beside)
        beside.replace(path)
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror or error}; nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    with contextlib.suppress(OSError):  # not every system can do this with a folder
        _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, would outlast a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], None], doing: str = "") -> Iterator[None]:
    """Be the only process, or thread, that holds a lock. It vanishes with its process, however that ends.

    Args:
        path: the lock's file, which stays, in a folder that exists.
        busy: called with who holds the lock, if someone does; what it raises refuses, and where it returns, the lock
            is waited for.
        doing: what is done within, for those who wait.

    Raises:
        StoreError: if the file cannot be made or locked.
    """
    import fcntl  # not on every system, and not needed to load weights

    def take(file: Any) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            busy(file.read().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}{doing and f', {doing}'}\n")
        file.flush()

    try:
        file = Path(path).open("a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror or error}") from error
    with file:
        try:
            take(file)
        except OSError as error:
            raise StoreError(f"{path} cannot be locked: {error.strerror or error}") from error
        yield
