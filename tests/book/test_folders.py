"""Files are written whole or not at all, and a run is alone in its folder."""

import errno
import os
import subprocess
import sys
import time

import pytest

from mnemosyne import store
from mnemosyne.book import chapter, folders


def full(monkeypatch, at):
    """Let writing fail as on a full disk: when bytes are written, brought to the disk, or put into their place."""

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*at, refuse)


@pytest.mark.bad_input
@pytest.mark.parametrize("at", [(os, "fsync"), (folders.Path, "replace")])
def test_a_full_disk_leaves_what_was_there_and_no_part(tmp_path, monkeypatch, at):
    path = tmp_path / "new" / "f.png"
    folders.write(path, b"whole")
    full(monkeypatch, at)
    with pytest.raises(store.StoreError, match=r"f\.png could not be written: No space left on device"):
        folders.write(path, b"another")
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("f.png", b"whole")]


@pytest.mark.bad_input
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(store.StoreError, match=r"file/f\.png could not be written"):
        folders.write(tmp_path / "file" / "f.png", b"")


def test_what_killed_writers_have_left_is_swept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, mine, other = (tmp_path / f"a.{pid}.part" for pid in (ended.pid, os.getpid(), "x"))
    for path in (dead, mine, other):
        path.touch()
    assert folders.sweep(tmp_path) == [dead]
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])


HOLD = """
import sys, time
from pathlib import Path
from mnemosyne.book import folders
with folders.alone(Path(sys.argv[1]), "reproduce --scale quick --seed 0"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_waited_for_and_ends_with_its_process(tmp_path, capsys):
    path = tmp_path / "locks" / "quick-seed-0"
    environment = os.environ | {"PYTHONPATH": str(chapter.STYLE.parents[2])}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, env=environment)
    try:
        assert holder.stdout.readline() == b"held\n"
        waiter = subprocess.Popen(
            [sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, env=environment, encoding="utf-8"
        )
        told = waiter.stdout.readline()
        assert told.startswith(f"another process is at work here: process {holder.pid} on ")
        assert told.endswith(", reproduce --scale quick --seed 0; waiting for it to end\n")
        holder.kill()
        assert waiter.stdout.readline() == "held\n"
        waiter.kill()
        waiter.wait()
        began = time.perf_counter()
        with folders.alone(path, "publish"):
            assert path.read_text(encoding="utf-8").endswith(", publish\n")
        assert time.perf_counter() - began < 5
        assert not capsys.readouterr().out
    finally:
        for process in (holder, waiter):
            process.kill()
            process.communicate()
