"""The idx files of MNIST and Fashion-MNIST, in the order that tensorflow-datasets gives their examples."""

import gzip
from hashlib import md5
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

Images = UInt8[np.ndarray, "n 28 28 1"]
Labels = Int[np.ndarray, "n"]


def read(images: Path, labels: Path, part: str) -> tuple[Images, Labels]:
    """Read one part of a data set.

    Args:
        images: its idx file of images.
        labels: its idx file of labels.
        part: "train" or "test", which the order depends on.

    Returns:
        Images and labels, shuffled as `order` says.
    """
    i = order(part, len(values := read_idx(labels)))
    return read_idx(images)[i][..., None], values[i].astype(np.int32)


def order(part: str, n: int) -> list[int]:
    """The order into which tensorflow-datasets shuffles n examples: that of the MD5 of the part's name and a number."""
    return sorted(range(n), key=lambda i: md5(f"{part}{i}".encode(), usedforsecurity=False).digest())


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read one gzipped idx file: a magic number, one big-endian size per axis, then bytes."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)
