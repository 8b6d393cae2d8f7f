"""Downloads: one process at a time, whole or not at all, and a clear error for whatever is in the way."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from mnemosyne import store
from mnemosyne.tasks.data import images as data
from mnemosyne.tasks.data import sources

CONTENT = {"a.gz": b"first" * 50_000, "b.gz": b"second" * 10}
FILES = [(name, hashlib.sha256(raw).hexdigest(), len(raw)) for name, raw in CONTENT.items()]


@contextmanager
def served(answer):
    """A web server on this machine; `answer` is what it does with a request, and paths asked for come back."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.lstrip("/"))
            answer(self, CONTENT.get(asked[-1], b""))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()


def whole(request, raw):
    request.send_response(200)
    request.send_header("Content-Length", str(len(raw)))
    request.end_headers()
    request.wfile.write(raw)


def cut(request, raw):
    request.send_response(200)
    request.send_header("Content-Length", str(len(raw)))
    request.end_headers()
    request.wfile.write(raw[: len(raw) // 2])


def cut_without_a_length(request, raw):
    request.send_response(200)
    request.end_headers()
    request.wfile.write(raw[: len(raw) // 2])


def no_such(request, raw):
    request.send_error(404)


def nonsense(request, raw):
    request.wfile.write(b"\0\1\2\n\n")


def page(request, raw):
    whole(request, b"<html>please log in</html>" + b" " * len(raw))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Make a data set "web" of two files at an address: its folder comes back."""
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path / "data"))

    def make(address):
        files = tuple(sources.Original(*file) for file in FILES)
        monkeypatch.setitem(data.SOURCES, "web", sources.Source("none", address, files, 0))
        return tmp_path / "data" / "web"

    return make


def test_a_download_is_whole_and_what_is_right_stays(published):
    with served(whole) as (address, asked):
        folder = published(address)
        assert data.fetch("web") == folder
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
        (folder / "a.gz").write_bytes(b"damaged")
        data.fetch("web")
        data.fetch("web")
        assert asked == ["a.gz", "b.gz", "a.gz"]
        data.verify("web")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            cut,
            r"a.gz is cut short .*: 125,000 of 250,000 bytes came|could not download .*a.gz: IncompleteRead",
        ),
        (cut_without_a_length, r"a.gz is cut short or not the published file: 125,000 of 250,000 bytes came"),
        (no_such, r"could not download .*a.gz: HTTP Error 404"),
        (nonsense, r"could not download .*a.gz"),
        (page, r"a.gz is cut short or not the published file: 250,026 of 250,000 bytes came"),
    ],
)
def test_a_download_that_fails_is_named_and_nothing_is_kept(published, answer, message):
    with served(answer) as (address, _):
        folder = published(address)
        with pytest.raises(data.DataError, match=message):
            data.fetch("web")
        assert list(folder.iterdir()) == []


@pytest.mark.bad_input
def test_a_server_that_is_not_there_is_named(published):
    with served(whole) as (address, _):
        folder = published(address)
    with pytest.raises(data.DataError, match=r"could not download .*a.gz: .*refused"):
        data.fetch("web")
    assert list(folder.iterdir()) == []


@pytest.mark.bad_input
def test_a_full_disk_is_told_from_a_download_that_fails(published, monkeypatch):
    def full(chunks, path):
        path.write_bytes(next(chunks))
        raise store.StoreError(f"{path.parent} cannot be written: No space left on device")

    monkeypatch.setattr(data, "_copy", full)
    with served(whole) as (address, _):
        folder = published(address)
        with pytest.raises(data.DataError, match="web cannot be written: No space left on device"):
            data.fetch("web")
        assert list(folder.iterdir()) == []


def test_what_a_killed_download_left_is_swept(published):
    with served(whole) as (address, _):
        folder = published(address)
        folder.mkdir(parents=True)
        for left in ("a.part", "a.gz.00112233.1.part"):
            (folder / left).write_bytes(b"half")
        data.fetch("web")
        assert {path.name for path in folder.iterdir()} == CONTENT.keys()


@pytest.mark.bad_input
def test_what_stands_in_the_way_is_named(published, tmp_path, monkeypatch):
    with served(whole) as (address, _):
        folder = published(address)
        (folder / "a.gz").mkdir(parents=True)
        with pytest.raises(data.DataError, match=r"a.gz could not be written: Is a directory"):
            data.fetch("web")
        with pytest.raises(data.DataError, match=r"a.gz: cannot be read \(Is a directory\)"):
            data.verify("web")
        (tmp_path / "file").write_text("", encoding="utf-8")
        for place, message in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "x", "Not a directory")):
            monkeypatch.setenv("MNEMOSYNE_DATA", str(place))
            with pytest.raises(data.DataError, match=message):
                data.fetch("web")


@pytest.mark.bad_input
def test_a_home_that_is_not_known_or_not_writable(published, monkeypatch, tmp_path):
    with served(whole) as (address, _):
        published(address)
        monkeypatch.delenv("MNEMOSYNE_DATA")
        (tmp_path / "home").write_text("", encoding="utf-8")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        with pytest.raises(data.DataError, match=r"cannot be made: .*Set MNEMOSYNE_DATA to a folder that can"):
            data.fetch("web")
        assert data.load("digits").train.images.shape == (1197, 8, 8, 1)

        def unknown():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(data.Path, "home", unknown)
        with pytest.raises(data.DataError, match="set HOME, or MNEMOSYNE_DATA"):
            data.fetch("web")


CHILD = """
import json, sys
from mnemosyne.tasks.data import images, sources
files = tuple(sources.Original(*file) for file in json.loads(sys.argv[2]))
images.SOURCES["web"] = sources.Source("none", sys.argv[1], files, 0)
images.fetch("web")
images.verify("web")
"""


def test_of_two_processes_one_downloads_and_the_other_waits(published):
    began = threading.Event()

    def slow(request, raw):
        began.set()
        time.sleep(1.0)
        whole(request, raw)

    with served(slow) as (address, asked):
        folder = published(address)
        command = [sys.executable, "-c", CHILD, address, json.dumps(FILES)]
        children = [
            subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, text=True, encoding="utf-8")
            for _ in range(2)
        ]
        assert [child.wait() for child in children] == [0, 0]
        assert asked == ["a.gz", "b.gz"]
        assert {path.name for path in folder.iterdir()} == CONTENT.keys()
        for child in children:
            child.stdout.close()
        for path in folder.iterdir():
            path.unlink()
        began.clear()
        killed = subprocess.Popen(command, env=os.environ)
        assert began.wait(60)
        killed.kill()
        killed.wait()
        data.fetch("web")  # neither its lock nor its half stands in the way
        assert {path.name for path in folder.iterdir()} == CONTENT.keys()
