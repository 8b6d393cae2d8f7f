"""Files that others have made: what only stands where a file should be is named, and never read as one.

path = whole("~/t5/spiece.model")   # a `StoreError` if it is missing, empty, a Git LFS pointer, a web page
lines = read_text(path).split("\n")
"""

import gzip
import re
import zlib
from pathlib import Path

from mnemosyne.store import StoreError

File = str | Path
POINTER = b"version https://git-lfs.github.com/spec/"
PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)
GZIP = b"\x1f\x8b"
BEGINNING = 512  # bytes that tell what a file is


def local(path: File) -> Path:
    """The path, with ~ as the user's folder."""
    return Path(path).expanduser()


def whole(path: File) -> Path:
    """The path of a file that is there and is the file itself.

    Raises:
        StoreError: if it is missing, a folder, unreadable, empty, all zeros, a Git LFS pointer or a web page.
    """
    path = local(path)
    if path.is_symlink() and not path.exists():
        raise StoreError(f"{path} is missing: it is a link to {path.readlink()}, which is not there")
    if not path.exists():
        raise StoreError(f"{path} is missing: put the file there. Nothing is downloaded")
    if path.is_dir():
        raise StoreError(f"{path} is a folder, and a file is wanted")
    if problem := stand_in(path):
        raise StoreError(f"{path} {problem}: {ADVICE[problem]}")
    return path


EMPTY, LINK = "is empty", "is a Git LFS pointer, not the file it stands for"
WEB, ZEROS = "is a web page, not the file", "holds zeros, as a file does that was never written to its end"
ADVICE = {
    EMPTY: "copy or download it again",
    LINK: "run `git lfs pull` in its repository",
    WEB: "download the file itself",
    ZEROS: "copy or download it again",
}
"""What only stands where a file should be, and what to do about it."""


def stand_in(path: Path) -> str | None:
    """What a file is that only stands where another should be, a key of `ADVICE`; None for all others."""
    beginning = _beginning(path)
    if not beginning:
        return EMPTY
    if beginning.startswith(POINTER):
        return LINK
    if PAGE.match(beginning):
        return WEB
    if len(beginning) >= BEGINNING and not beginning.strip(b"\0"):
        return ZEROS
    return None


def read_bytes(path: File) -> bytes:
    """A file's bytes, unpacked if it is packed by gzip.

    Raises:
        StoreError: as `whole`, and if what is packed is cut short or damaged.
    """
    path = whole(path)
    raw = path.read_bytes()
    try:
        return gzip.decompress(raw) if raw.startswith(GZIP) else raw
    except (OSError, EOFError, zlib.error) as error:
        raise StoreError(f"{path} is cut short or damaged: {error}; copy or download it again") from error


def read_text(path: File) -> str:
    """A file's text, without a byte-order mark and with its line ends as they are.

    Raises:
        StoreError: as `read_bytes`, and if it is no UTF-8.
    """
    raw = read_bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "UTF-16" if wide else f"not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start})"
        raise StoreError(f"{local(path)} is {found}: save it as UTF-8") from error


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            return f.read(BEGINNING)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
