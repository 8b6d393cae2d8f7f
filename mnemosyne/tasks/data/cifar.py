"""CIFAR images from the authors' binary archives, and from difference-coded subsets."""

import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from mnemosyne.store import StoreError
from mnemosyne.tasks.files import File, whole

SIDE = 32
"""Pixels on a side, in three colours."""

Images = UInt8[np.ndarray, "n 32 32 3"]
Labels = Int[np.ndarray, "n"]


def read_archive(path: File, part: str, classes: int) -> tuple[Images, Labels]:
    """Read the training or test part of `cifar-10-binary.tar.gz` or `cifar-100-binary.tar.gz`.

    A record is one label byte (two for CIFAR-100: superclass, class), then 3,072 pixels, colour by colour.

    Args:
        path: the archive.
        part: "train" or "test".
        classes: 10 or 100, which says how many label bytes there are.

    Returns:
        Images and labels in the archive's order, its batches one after another.

    Raises:
        StoreError: if the archive is missing, damaged, or holds no records of this part and so many classes.
    """
    path = whole(path)
    raw = _members(path, part)
    size = (2 if classes == 100 else 1) + 3 * SIDE * SIDE
    if not raw:
        raise StoreError(f"{path} holds no {part} part of .bin files: the binary version of CIFAR is wanted")
    if len(raw) % size:
        raise StoreError(f"{path}: {len(raw):,} bytes of {part} are no whole records of {size:,}: is this CIFAR-{classes}?")
    records = np.frombuffer(raw, np.uint8).reshape(-1, size)
    labels = records[:, size - 3 * SIDE * SIDE - 1]
    if labels.max() >= classes:
        raise StoreError(f"{path} has a label {labels.max()} in {part}, and {classes} classes end before it")
    images = records[:, size - 3 * SIDE * SIDE :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


def _members(path: Path, part: str) -> bytes:
    """The files of a part in the order of their names, joined."""
    try:
        with tarfile.open(path) as archive:
            files = [m for m in archive.getmembers() if m.isfile() and _belongs(Path(m.name).name, part)]
            return b"".join(archive.extractfile(m).read() for m in sorted(files, key=lambda m: m.name))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise StoreError(f"{path} is cut short or no archive: {error}; copy or download it again") from error


def _belongs(file: str, part: str) -> bool:
    wanted = ("data_batch_", "train.bin") if part == "train" else ("test_batch", "test.bin")
    return file.endswith(".bin") and file.startswith(wanted)


def read_differences(path: File) -> tuple[Images, Labels]:
    """Read a difference-coded subset: planes R−G, G, B−G, each differenced along both axes modulo 256.

    Args:
        path: an .npz file with `d` uint8 [3 n 32 32] and the labels `y` [n].

    Returns:
        Images and labels, exactly as they were before coding.

    Raises:
        StoreError: if the file is missing, damaged, or holds something else.
    """
    path = whole(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            coded, labels = stored["d"], stored["y"]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is damaged or no .npz file with d and y: {error}") from error
    if labels.ndim != 1 or coded.dtype != np.uint8 or coded.shape != (3, len(labels), SIDE, SIDE):
        raise StoreError(
            f"{path} holds d {coded.dtype} {coded.shape} and y {labels.shape}: uint8 (3, n, {SIDE}, {SIDE}) and (n,) "
            "are wanted"
        )
    planes = np.cumsum(np.cumsum(coded, 2, dtype=np.uint8), 3, dtype=np.uint8)
    images = np.stack([planes[0] + planes[1], planes[1], planes[2] + planes[1]], axis=-1)
    return images, labels.astype(np.int32)
