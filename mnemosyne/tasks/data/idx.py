"""The idx files of MNIST and Fashion-MNIST, in the order that tensorflow-datasets gives their examples."""

from hashlib import md5
from math import prod

import numpy as np
from jaxtyping import Int, UInt8

from mnemosyne.store import StoreError
from mnemosyne.tasks.files import File, local, read_bytes

Images = UInt8[np.ndarray, "n 28 28 1"]
Labels = Int[np.ndarray, "n"]
UNSIGNED = bytes([0, 0, 8])  # how an idx file of bytes begins


def read(images: File, labels: File, part: str) -> tuple[Images, Labels]:
    """Read one part of a data set.

    Args:
        images: its idx file of images.
        labels: its idx file of labels.
        part: "train" or "test", which the order depends on.

    Returns:
        Images and labels, shuffled as `order` says.

    Raises:
        StoreError: as `read_idx`, and if these are not 28×28 images and as many labels.
    """
    pixels, values = read_idx(images), read_idx(labels)
    if pixels.shape[1:] != (28, 28) or values.shape != pixels.shape[:1]:
        raise StoreError(
            f"{local(images)} holds {pixels.shape} and {local(labels)} {values.shape}: "
            "images [n 28 28] and labels [n] are wanted, in this order and of one part"
        )
    i = order(part, len(values))
    return pixels[i][..., None], values[i].astype(np.int32)


def order(part: str, n: int) -> list[int]:
    """The order into which tensorflow-datasets shuffles n examples: that of the MD5 of the part's name and a number."""
    return sorted(range(n), key=lambda i: md5(f"{part}{i}".encode(), usedforsecurity=False).digest())


def read_idx(path: File) -> UInt8[np.ndarray, "..."]:
    """Read one idx file, gzipped or not: a magic number, one big-endian size per axis, then bytes.

    Raises:
        StoreError: if it is missing, no idx file of bytes, or cut short.
    """
    raw = read_bytes(path)
    axes = raw[3] if len(raw) > 3 else 0
    if not raw.startswith(UNSIGNED) or not axes:
        raise StoreError(f"{local(path)} is no idx file of bytes: it begins with {raw[:4].hex(' ')}, not 00 00 08")
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    if len(raw) != (wanted := 4 + 4 * axes + prod(shape)):
        raise StoreError(f"{local(path)} has {len(raw):,} bytes unpacked, and its {shape} need {wanted:,}: copy it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)
