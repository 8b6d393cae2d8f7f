"""Every reader of files that others have made, with what people have in the files' places."""

import gzip
import io
import shutil
import tarfile

import numpy as np
import pytest

from mnemosyne.store import StoreError
from mnemosyne.tasks import data, files
from mnemosyne.tasks.data import cifar, idx, images, text
from mnemosyne.tasks.data.tokens import load_tokenizer
from mnemosyne.tasks.models.checkpoints import VISION_NAMES, load_checkpoint
from mnemosyne.tasks.models.transformer import shapes
from mnemosyne.tasks.models.vision import VisionTransformer
from mnemosyne.tasks.superglue import load_rows
from tests.tasks.models import GOLDEN

LIKE = shapes(VisionTransformer(layers=2, heads=3, hidden=12, mlp_dim=20, patch=4, side=8, classes=5))
READERS = {
    "checkpoint": ("model.safetensors", lambda path: load_checkpoint(path, VISION_NAMES, LIKE)),
    "tokenizer.json": ("tokenizer.json", load_tokenizer),
    "vocab.txt": ("vocab.txt", load_tokenizer),
    "spiece.model": ("spiece.model", load_tokenizer),
    "idx": ("train-images-idx3-ubyte.gz", idx.read_idx),
    "archive": ("cifar-10-binary.tar.gz", lambda path: cifar.read_archive(path, "train", 10)),
    "differences": ("cifar.npz", cifar.read_differences),
    "text": ("input.txt", files.read_text),
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 791656\n"
STAND_INS = {
    "a Git LFS pointer": (POINTER, r"is a Git LFS pointer, not the file it stands for: run `git lfs pull`"),
    "an empty file": (b"", r"is empty: copy or download it again"),
    "a web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", r"is a web page, not the file"),
    "zeros": (bytes(2_000), r"holds zeros, as a file does that was never written to its end"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("stand_in", STAND_INS)
@pytest.mark.parametrize("reader", READERS)
def test_what_stands_in_for_a_file_is_named(reader, stand_in, tmp_path):
    name, read = READERS[reader]
    content, says = STAND_INS[stand_in]
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises((StoreError, data.DataError), match=f"{name} {says}"):
            read(path)


@pytest.mark.bad_input
@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file_and_a_link_to_nothing_are_named(reader, tmp_path):
    name, read = READERS[reader]
    with pytest.raises((StoreError, data.DataError), match=f"{name} is missing: put the file there. Nothing is downl"):
        read(str(tmp_path / name))
    (tmp_path / name).symlink_to("blobs/1f")
    with pytest.raises(
        (StoreError, data.DataError), match=f"{name} is missing: it is a link to blobs/1f, which is not"
    ):
        read(tmp_path / name)


@pytest.mark.bad_input
@pytest.mark.parametrize("reader", READERS)
def test_bytes_of_something_else_are_named(reader, tmp_path):
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08 cut short" + bytes(range(200)))
    with pytest.raises((StoreError, data.DataError), match=name):
        read(tmp_path / name)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "reader", sorted(READERS.keys() - {"checkpoint", "tokenizer.json", "vocab.txt", "spiece.model"})
)
def test_a_folder_in_a_files_place_is_named(reader, tmp_path):
    name, read = READERS[reader]
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match=f"{name} is a folder, and a file is wanted"):
        read(tmp_path / name)


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "load"), [("shakespeare", text.load_text), ("rte", load_rows)])
def test_originals_that_are_pointers_are_named(name, load, tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path))
    for path in images.paths(name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(POINTER)
    with pytest.raises(data.DataError, match=rf"(?s){name} is not usable:.*: is a Git LFS pointer"):
        load(name)


# Text -----------------------------------------------------------------------------------------------------------------

TEXTS = {
    "a byte-order mark": (b"\xef\xbb\xbfto be", "to be"),
    "line ends of Windows": (b"to\r\nbe", "to\r\nbe"),
    "gzip": (gzip.compress("tö bé".encode()), "tö bé"),
    "a mark in gzip": (gzip.compress(b"\xef\xbb\xbfto be"), "to be"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", TEXTS)
def test_text_is_read_as_it_is(name, tmp_path):
    content, wanted = TEXTS[name]
    (tmp_path / "text").write_bytes(content)
    assert files.read_text(tmp_path / "text") == wanted


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("tö be".encode("latin-1"), r"is not UTF-8 \(byte 0xf6 at 1\): save it as UTF-8"),
        ("to be".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (gzip.compress(b"to be" * 50)[:-9], "is cut short or damaged"),
    ],
    ids=["latin-1", "utf-16", "cut gzip"],
)
def test_text_of_another_encoding_is_refused(content, says, tmp_path):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(StoreError, match=says):
        files.read_text(tmp_path / "text")


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b").write_text("x", encoding="utf-8")
    assert files.whole("~/a b") == tmp_path / "a b"


# Images ---------------------------------------------------------------------------------------------------------------


def packed(array, kind=8):
    """An array of bytes as idx."""
    sizes = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


IMAGES, LABELS = np.arange(5 * 784).reshape(5, 28, 28) % 251, np.array([3, 1, 4, 1, 5])


@pytest.mark.bad_input
@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["packed", "unpacked"])
def test_idx_is_read_packed_or_not_from_a_str(pack, tmp_path):
    (tmp_path / "i").write_bytes(pack(packed(IMAGES)))
    (tmp_path / "l").write_bytes(pack(packed(LABELS)))
    pixels, labels = idx.read(str(tmp_path / "i"), str(tmp_path / "l"), "train")
    order = idx.order("train", 5)
    assert np.array_equal(pixels[..., 0], IMAGES[order])
    assert np.array_equal(labels, LABELS[order])


WRONG_IDX = {
    "cut": (packed(IMAGES)[:-1], packed(LABELS), r"i has 3,935 bytes unpacked, and its \[5, 28, 28\] need 3,936"),
    "longer": (packed(IMAGES), packed(LABELS) + b"x", r"l has 14 bytes unpacked"),
    "only a head": (packed(IMAGES)[:6], packed(LABELS), "i has 6 bytes unpacked"),
    "floats": (packed(IMAGES, kind=13), packed(LABELS), "no idx file of bytes: it begins with 00 00 0d 03"),
    "exchanged": (packed(LABELS), packed(IMAGES), r"i holds \(5,\) and .*l \(5, 28, 28\): images .* in this order"),
    "of two parts": (packed(IMAGES), packed(LABELS[:4]), "of one part"),
    "other sides": (packed(IMAGES[:, :14]), packed(LABELS), r"images \[n 28 28\]"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", WRONG_IDX)
def test_wrong_idx_files_are_refused(name, tmp_path):
    first, second, says = WRONG_IDX[name]
    (tmp_path / "i").write_bytes(first)
    (tmp_path / "l").write_bytes(second)
    with pytest.raises(StoreError, match=says):
        idx.read(tmp_path / "i", tmp_path / "l", "train")


def tarred(**members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name.replace("__", "."))
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return buffer.getvalue()


RECORD = bytes([7]) + bytes(range(256)) * 12
ARCHIVES = {
    "of Python": (tarred(data_batch_1=RECORD), "holds no train part of .bin files: the binary version"),
    "of CIFAR-100": (tarred(train__bin=b"\1" + RECORD), "no whole records of 3,073: is this CIFAR-10"),
    "cut record": (tarred(data_batch_1__bin=RECORD[:-1]), "no whole records"),
    "cut": (tarred(data_batch_1__bin=RECORD * 90)[:300], "is cut short or no archive"),
    "no archive": (b"hello" * 300, "is cut short or no archive"),
    "another label": (tarred(data_batch_1__bin=b"\x0b" + RECORD[1:]), "has a label 11 in train, and 10 classes"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ARCHIVES)
def test_wrong_archives_are_refused(name, tmp_path):
    content, says = ARCHIVES[name]
    (tmp_path / "c.tar.gz").write_bytes(content)
    with pytest.raises(StoreError, match=says):
        cifar.read_archive(tmp_path / "c.tar.gz", "train", 10)


@pytest.mark.bad_input
def test_an_archive_is_read_from_a_str(tmp_path):
    (tmp_path / "c.tar.gz").write_bytes(tarred(data_batch_1__bin=RECORD))
    pixels, labels = cifar.read_archive(str(tmp_path / "c.tar.gz"), "train", 10)
    assert labels.tolist() == [7]
    assert np.array_equal(pixels[0].transpose(2, 0, 1).ravel(), np.frombuffer(RECORD[1:], np.uint8))


CODED = np.zeros((3, 2, 32, 32), np.uint8)
SUBSETS = {
    "no labels": ({"d": CODED}, "damaged or no .npz file with d and y: .*y"),
    "other numbers": ({"d": CODED.astype(float), "y": np.zeros(2)}, r"holds d float64 .*uint8 \(3, n, 32, 32\)"),
    "other sides": ({"d": CODED[..., :28], "y": np.zeros(2)}, r"\(3, 2, 32, 28\)"),
    "other number of labels": ({"d": CODED, "y": np.zeros(3)}, r"y \(3,\)"),
    "one label": ({"d": CODED, "y": np.array(3)}, r"y \(\)"),
    "objects": ({"d": CODED, "y": np.array([None, "a"], object)}, "damaged or no .npz file"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", SUBSETS)
def test_wrong_subsets_are_refused(name, tmp_path):
    arrays, says = SUBSETS[name]
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(StoreError, match=says):
        cifar.read_differences(tmp_path / "s.npz")


@pytest.mark.bad_input
def test_an_array_alone_is_no_subset(tmp_path):
    np.save(tmp_path / "s.npy", CODED)
    with pytest.raises(StoreError, match=r"damaged or no \.npz file"):
        cifar.read_differences(tmp_path / "s.npy")


@pytest.mark.bad_input
def test_a_tokeniser_is_read_from_a_str(tmp_path):
    shutil.copy(GOLDEN / "spiece.model", tmp_path / "spiece.model")
    assert load_tokenizer(str(tmp_path / "spiece.model")).get_vocab_size() == 160
