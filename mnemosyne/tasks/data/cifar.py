"""CIFAR images from the authors' binary archives, and from difference-coded subsets."""

import tarfile
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

SIDE = 32
"""Pixels on a side, in three colours."""

Images = UInt8[np.ndarray, "n 32 32 3"]
Labels = Int[np.ndarray, "n"]


def read_archive(path: Path, part: str, classes: int) -> tuple[Images, Labels]:
    """Read the training or test part of `cifar-10-binary.tar.gz` or `cifar-100-binary.tar.gz`.

    A record is one label byte (two for CIFAR-100: superclass, class), then 3,072 pixels, colour by colour.

    Args:
        path: the archive.
        part: "train" or "test".
        classes: 10 or 100, which says how many label bytes there are.

    Returns:
        Images and labels in the archive's order, its batches one after another.
    """
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive.getmembers() if _belongs(Path(m.name).name, part)), key=lambda m: m.name)
        raw = b"".join(archive.extractfile(m).read() for m in members)
    prefix = 2 if classes == 100 else 1
    records = np.frombuffer(raw, np.uint8).reshape(-1, prefix + 3 * SIDE * SIDE)
    images = records[:, prefix:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, prefix - 1].astype(np.int32)


def _belongs(file: str, part: str) -> bool:
    wanted = ("data_batch_", "train.bin") if part == "train" else ("test_batch", "test.bin")
    return file.endswith(".bin") and file.startswith(wanted)


def read_differences(path: Path) -> tuple[Images, Labels]:
    """Read a difference-coded subset: planes R−G, G, B−G, each differenced along both axes modulo 256.

    Args:
        path: an .npz file with `d` uint8 [3 n 32 32] and the labels `y` [n].

    Returns:
        Images and labels, exactly as they were before coding.
    """
    with np.load(path, allow_pickle=False) as stored:
        planes = np.cumsum(np.cumsum(stored["d"], 2, dtype=np.uint8), 3, dtype=np.uint8)
        labels = stored["y"].astype(np.int32)
    return np.stack([planes[0] + planes[1], planes[1], planes[2] + planes[1]], axis=-1), labels
