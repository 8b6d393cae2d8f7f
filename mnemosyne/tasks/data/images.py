"""Images and labels: where the originals lie, what they must be, and how they become arrays.

    digits = load("digits")      # 8×8, bundled with scikit-learn, always there
    mnist = load("mnist")        # 28×28, from the original archives; an error says how to get them
    colour = load("cifar10_15k")  # 32×32×3, a balanced subset of CIFAR-10; the whole of it is "cifar10"

Originals are looked for in `$MNEMOSYNE_DATA/<name>/`, compared with the SHA-256 that `sources` lists, and read as they
are. Nothing is downloaded unless `fetch` is called, and no data set ever stands in for another.
"""

import functools
import hashlib
import os
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mnemosyne import store
from mnemosyne.tasks.data import cifar, idx
from mnemosyne.tasks.data.sources import INSTEAD, SOURCES, Original, Source
from mnemosyne.tasks.files import ADVICE, stand_in


class Split(NamedTuple):
    """Labelled images."""

    images: UInt8[Array, "n h w c"]
    labels: Int[Array, "n"]


class Dataset(NamedTuple):
    """One data set in three parts, with the statistics of its training pixels."""

    name: str
    train: Split
    validation: Split
    test: Split
    mean: float  # of training pixels / 255
    std: float
    classes: int = 10


class DataError(ValueError):
    """Data that is absent or not what it should be; the message says what to do."""


DIGITS = {"digits": (0, 10), "digits_low": (0, 5), "digits_high": (5, 10)}
"""Names of scikit-learn's digits → first class, and the one behind the last: all, or those below and from five on."""
NAMES = (*DIGITS, *SOURCES)
LOADERS = {"text": "text.load_text", "rows": "superglue.load_rows"}
"""What loads data that are no images, by format."""


def originals() -> Path:
    """Folder of original archives: `$MNEMOSYNE_DATA`, or `~/.cache/mnemosyne/data`.

    Raises:
        DataError: if there is a file in its place, or no home is known to look in.
    """
    try:
        folder = Path(os.environ.get("MNEMOSYNE_DATA") or Path.home() / ".cache" / "mnemosyne" / "data")
    except RuntimeError as error:
        raise DataError(f"{error}: set HOME, or MNEMOSYNE_DATA to the folder of the originals") from error
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise DataError(f"{folder} is a file, and should be the folder of the originals: set MNEMOSYNE_DATA to a folder")
    return folder


def load(name: str) -> Dataset:
    """Load a data set into memory.

    Args:
        name: one of `NAMES`.

    Returns:
        Images as uint8 and labels as int32. MNIST and Fashion-MNIST keep 5,000 training images for validation,
        the last in the fixed order of `idx.order`; CIFAR keeps its last 5,000, its subsets a tenth, balanced over the
        classes; digits, which has one part, is cut 1,197 / 300 / 300 after one fixed permutation, and its halves as
        it is. Labels count from 0.

    Raises:
        DataError: an unknown name, or originals that are absent or damaged. Never waits for a network.
    """
    if name in DIGITS:
        return _digits(name)
    source = _source(name)
    if source.format in LOADERS:
        raise DataError(f"{name} is text, not images: mnemosyne.tasks.{LOADERS[source.format]}({name!r})")
    verify(name)
    train, test = (Split(*part) for part in READERS[source.format](paths(name), source.classes))
    kept = len(train.labels) - source.held_back
    parts = (Split(*(a[:kept] for a in train)), Split(*(a[kept:] for a in train)), test)
    return _dataset(name, *parts, classes=source.classes)


def draw(data: Dataset, part: Split, key: Array, n: int) -> tuple[Float[Array, "n h w c"], Int[Array, "n"]]:
    """Draw a batch of n examples with replacement, pixels standardised as `data` says."""
    i = jax.random.randint(key, (n,), 0, part.labels.shape[0])
    return standardise(data, part.images[i]), part.labels[i]


def standardise(data: Dataset, images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """(pixel / 255 − mean) / std, in float32."""
    return (images.astype(jnp.float32) / 255.0 - data.mean) / data.std


def signs(part: Split, threshold: int = 127) -> Float[Array, "n p"]:
    """Binarise images: +1 where a pixel is above the threshold, −1 elsewhere, flattened."""
    return jnp.where(part.images > threshold, 1.0, -1.0).reshape(part.images.shape[0], -1)


def pool(data: Dataset, factor: int) -> Dataset:
    """Mean-pool images by a whole factor that divides their sides, for the same task at a lower cost."""

    def shrink(part: Split) -> Split:
        n, h, w, c = part.images.shape
        blocks = part.images.astype(jnp.float32).reshape(n, h // factor, factor, w // factor, factor, c)
        return part._replace(images=jnp.round(blocks.mean(axis=(2, 4))).astype(jnp.uint8))

    parts = [shrink(p) for p in (data.train, data.validation, data.test)]
    return _dataset(f"{data.name}/{factor}", *parts, classes=data.classes)


def resize(data: Dataset, side: int, channels: int) -> Dataset:
    """Interpolate images linearly to another side, as a model that was trained on others wants them.

    Args:
        data: images.
        side: of the new ones, pixels.
        channels: 1 averages colours, 3 repeats grey.

    Returns:
        Data under a name that says so; those that are as wanted already, as they are.

    Raises:
        ValueError: if there is no such way from the data's channels to these.
    """
    c = data.train.images.shape[3]
    if data.train.images.shape[1:] == (side, side, channels):
        return data
    if channels not in (1, c) and c != 1:
        raise ValueError(f"images of {c} channels do not become images of {channels}: 1 or {c} can be had")

    def change(part: Split) -> Split:
        images = part.images.astype(jnp.float32)
        images = images.mean(axis=3, keepdims=True) if channels == 1 else jnp.repeat(images, channels // c, axis=3)
        shape = (len(images), side, side, channels)
        return part._replace(images=jnp.round(jax.image.resize(images, shape, "linear")).astype(jnp.uint8))

    parts = [change(p) for p in (data.train, data.validation, data.test)]
    return _dataset(f"{data.name} {side}×{side}×{channels}", *parts, classes=data.classes)


def paths(name: str) -> list[Path]:
    """Where a data set's originals belong, in the order of its source's files."""
    source = _source(name)
    return [originals() / (source.folder or name) / original.file for original in source.files]


def verify(name: str) -> None:
    """Check that the originals are there and are the published ones, byte for byte.

    Raises:
        DataError: naming each file that is missing or differs, with the SHA-256 it should have.
    """
    source, problems = _source(name), []
    for path, original in zip(paths(name), source.files, strict=True):
        if problem := _problem(path, original):
            problems.append(f"  {path}: {problem}")
    if problems:
        folder = source.folder or name
        remedy = f"To download it: python -m mnemosyne data fetch {name}"
        if not source.url:
            remedy = f"These files have no public address: put them into {originals() / folder}"
            remedy += (
                f", or use {INSTEAD[name]}, which is another data set and can be downloaded."
                if name in INSTEAD
                else "."
            )
        raise DataError(
            f"{name} is not usable:\n" + "\n".join(problems) + f"\n{remedy}\nIf you have the originals elsewhere, "
            f"set MNEMOSYNE_DATA to the folder that holds {folder}/."
        )


def fetch(name: str) -> Path:
    """Download a data set's originals into `originals()`, skipping files that are right already.

    Where two processes fetch one data set, one downloads and the other waits for it.

    Returns:
        The folder. A file appears there only once it is complete and its SHA-256 is right.

    Raises:
        DataError: if a download fails, is cut short or is not the published file, if the folder cannot be written, or
            if there is no public address.
    """
    source = _source(name)
    folder, files = originals() / (source.folder or name), list(zip(paths(name), source.files, strict=True))
    if not source.url:
        verify(name)
    if not any(_problem(*file) for file in files):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "Set MNEMOSYNE_DATA to a folder that can be written."
        raise DataError(f"{folder} cannot be made: {error.strerror}. {remedy}") from error

    def wait(holder: str) -> None:
        print(f"{name}: {holder} downloads it; waiting", flush=True)

    try:
        with store.locked(folder.with_name(f".{folder.name}.lock"), wait):
            for left in folder.glob(store.PARTS):  # by a process that was killed
                left.unlink()
            for path, original in files:
                if _problem(path, original):
                    _download(source.url + original.file, path, original)
    except store.StoreError as error:
        raise DataError(str(error)) from error
    return folder


def _download(address: str, path: Path, original: Original) -> None:
    with store.partial(path) as beside:
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                chunks = iter(functools.partial(answer.read, 2**20), b"")
                _copy(chunks, beside)
        except (OSError, HTTPException) as error:
            raise DataError(f"could not download {address}: {error}; nothing was kept") from error
        if _sha256(beside) != original.sha256:
            size = f"{beside.stat().st_size:,} of {original.bytes:,} bytes came"
            raise DataError(f"{address} is cut short or not the published file: {size}; nothing was kept")


def _copy(chunks: Iterator[bytes], path: Path) -> None:
    """Write chunks as they come; a StoreError tells a full disk from a download that fails."""
    with path.open("wb") as file:
        for chunk in chunks:
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise store.StoreError(f"{path.parent} cannot be written: {error.strerror}") from error


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise DataError(f"unknown data set {name!r}; there are {', '.join(NAMES)}")
    return SOURCES[name]


def _problem(path: Path, original: Original) -> str:
    """What is wrong with a file, or nothing."""
    try:
        if problem := path.is_file() and stand_in(path):
            return f"{problem}: {ADVICE[problem]}"
        found = _sha256(path)
    except FileNotFoundError:
        return f"missing; sha256 {original.sha256}, {original.bytes:,} bytes"
    except OSError as error:
        return f"cannot be read ({error.strerror}); sha256 {original.sha256}, {original.bytes:,} bytes"
    return "" if found == original.sha256 else f"damaged; sha256 {found} instead of {original.sha256}"


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


READERS = {
    "idx": lambda files, classes: (idx.read(*files[:2], "train"), idx.read(*files[2:], "test")),
    "binary": lambda files, classes: [cifar.read_archive(*files, part, classes) for part in ("train", "test")],
    "differences": lambda files, classes: map(cifar.read_differences, files),
}
"""What reads a data set's files, by format: (paths, classes) → training part, test part."""


def _dataset(name: str, train: Split, validation: Split, test: Split, classes: int = 10) -> Dataset:
    pixels = train.images / np.float32(255)
    parts = [Split(jnp.asarray(s.images), jnp.asarray(s.labels, jnp.int32)) for s in (train, validation, test)]
    return Dataset(name, *parts, mean=float(pixels.mean()), std=float(pixels.std()), classes=classes)


def _digits(name: str) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], bunch.target[order]
    first, end = DIGITS[name]
    parts = []
    for cut in (slice(0, 1197), slice(1197, 1497), slice(1497, None)):
        kept = (first <= labels[cut]) & (labels[cut] < end)
        parts.append(Split(images[cut][kept], labels[cut][kept] - first))
    return _dataset(name, *parts, classes=end - first)


def state(name: str) -> str:
    """One line on whether a data set can be used."""
    if name in DIGITS:
        return "bundled with scikit-learn"
    try:
        verify(name)
        return f"present; {SOURCES[name].licence}"
    except DataError:
        source = SOURCES[name]
        remedy = f"python -m mnemosyne data fetch {name}" if source.url else "no public address; see data/README.md"
        return f"absent or damaged: {remedy}; {source.licence}"
