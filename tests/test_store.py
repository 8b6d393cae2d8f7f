"""Files are whole or not there, equal content makes equal bytes, and one process writes at a time."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mnemosyne import store

TREE = {"a": [jnp.arange(3.0), jnp.zeros((2, 0))], "b": (jnp.array(2, jnp.int32), jnp.array([True, False]))}
ABOUT = {name: str(i) for i, name in enumerate(["zebra", "architecture", "iteration", "dataset", "seed", "ä"])}


def saved(path, tree=TREE, about=ABOUT):
    store.save_tree(path, tree, about)
    return path.read_bytes()


def test_equal_trees_make_equal_files(tmp_path):
    turned = dict(reversed(ABOUT.items()))
    found = {hashlib.sha256(saved(tmp_path / f"{i}", about=(ABOUT, turned)[i % 2])).digest() for i in range(20)}
    assert len(found) == 1


def test_half_precision_and_no_metadata(tmp_path):
    tree = {"x": jnp.arange(5, dtype=jnp.bfloat16), "y": jnp.float16(2)}
    store.save_tree(tmp_path / "x", tree)
    back = store.load_tree(tmp_path / "x", tree)
    assert jax.tree.map(lambda a: str(a.dtype), back) == {"x": "bfloat16", "y": "float16"}
    assert np.array_equal(back["x"], tree["x"])
    assert store.read(tmp_path / "x")[1] == {}


def test_a_file_of_another_program_has_no_digest_and_is_read(tmp_path):
    save_file({"x": np.arange(3.0)}, tmp_path / "x", {"by": "others"})
    arrays, about = store.read(tmp_path / "x")
    assert np.array_equal(arrays["x"], np.arange(3.0))
    assert about == {"by": "others"}


@pytest.mark.bad_input
def test_any_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "x"
    whole = saved(path)
    noticed = 0
    for bit in range(0, 8 * len(whole), 5):
        raw = bytearray(whole)
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        try:
            back = store.load_tree(path, TREE)
        except store.StoreError:
            noticed += 1
        else:  # as a bit of the digest's own name
            assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (TREE, back)), strict=True))
    assert noticed > 0.95 * 8 * len(whole) / 5


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:7],
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b + b"\0",
        lambda b: b[: len(b) // 2] + bytes(len(b) - len(b) // 2),
        lambda b: bytes(len(b)),
        lambda b: b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
        lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        lambda b: b[:-4] + b"\0\0\x80\x3f",
    ],
)
def test_damage_is_named(tmp_path, damage):
    path = tmp_path / "x"
    path.write_bytes(damage(saved(path, {"x": jnp.arange(1.0, 9.0)})))
    with pytest.raises(store.StoreError, match=r"x is damaged"):
        store.read(path)


@pytest.mark.bad_input
def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(store.StoreError, match=path.name):
            store.read(path)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_file_as_it_was_and_nothing_else(tmp_path, monkeypatch, name):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "x"
    before = saved(path)
    monkeypatch.setattr(*{"open": (Path, "open"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[name], full)
    with pytest.raises(store.StoreError, match=r"x could not be written: No space left on device; nothing was changed"):
        store.save_tree(path, {"a": jnp.zeros(1)})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.bad_input
def test_a_folder_that_is_not_there_or_is_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in ("nowhere", "file"):
        with pytest.raises(store.StoreError, match=f"{folder}/x could not be written"):
            store.write(tmp_path / folder / "x", "text")


def test_text_and_bytes_are_written_one_after_another(tmp_path):
    store.write(tmp_path / "x", "ä", b"\xff")
    assert (tmp_path / "x").read_bytes() == b"\xc3\xa4\xff"


def refuse(who):
    raise store.StoreError(f"held by {who}")


def test_a_lock_is_held_once_and_names_its_holder(tmp_path):
    path = tmp_path / "lock"
    mine = pytest.raises(store.StoreError, match=f"held by process {os.getpid()} on ")
    with store.locked(path, refuse), mine, store.locked(path, refuse):
        pass
    with store.locked(path, refuse):
        pass


HOLD = """
import sys
from pathlib import Path
from mnemosyne import store
with store.locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_vanishes_with_its_process(tmp_path):
    path = tmp_path / "lock"
    held = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8") as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(store.StoreError, match=f"process {holder.pid} "), store.locked(path, refuse):
            pass
        holder.kill()
        holder.wait()
        with store.locked(path, refuse):
            pass


@pytest.mark.bad_input
def test_a_lock_that_cannot_be_made_is_named(tmp_path):
    with (
        pytest.raises(store.StoreError, match="nowhere/lock cannot be made"),
        store.locked(tmp_path / "nowhere/lock", refuse),
    ):
        pass
