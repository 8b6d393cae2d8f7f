"""A run's folder: one process at a time, nothing half-written, and whatever befalls it, the same bits at the end."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import store
from mnemosyne.metatrain import loop
from mnemosyne.metatrain.loop import meta_train
from mnemosyne.metatrain.run_folder import CHECKPOINTS, opened
from mnemosyne.types import Task


@dataclass(frozen=True)
class Config:
    """Of a trainer for tests."""

    iterations: int = 12
    seed: int = 0


class Carry(NamedTuple):
    """What it goes on from."""

    theta: dict
    iteration: jax.Array


class Walk(NamedTuple):
    """θ walks at random, in whole steps, which are exact: the least that `meta_train` runs."""

    config: Config = Config()
    tasks: tuple[Task, ...] = ()

    chunk = 1
    save_every = 4

    def start(self):
        return Carry({"x": jnp.zeros(3)}, jnp.zeros((), jnp.int32))

    def iterate(self, carry, data):
        key = jax.random.fold_in(jax.random.key(self.config.seed), carry.iteration)
        x = carry.theta["x"] + jax.random.randint(key, (3,), -9, 10).astype(jnp.float32)
        return Carry({"x": x}, carry.iteration + 1), {"loss": jnp.sum(x)}


class Killed(Exception):
    pass


def until(iteration):
    """What a run reports to, which kills it once it has come so far."""

    def report(row):
        if row["iteration"] == iteration:
            raise Killed

    return report


def finished(folder):
    """What is the same in every run of a trainer: snapshots and the rows of the log, without their times."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return {path.name: path.read_bytes() for path in folder.glob("theta-*")}, timeless


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    meta_train(Walk(), folder=folder)
    return finished(folder)


@pytest.fixture
def stopped(tmp_path):
    """The folder of a run that was killed at iteration 9, with checkpoints at 8 and 4."""
    with pytest.raises(Killed):
        meta_train(Walk(), folder=tmp_path, report=until(9))
    return tmp_path


def test_what_a_folder_holds(tmp_path, undisturbed):
    meta_train(Walk(), folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(".lock", "config.json", "log.jsonl", *CHECKPOINTS),
        *(f"theta-{i:06d}.safetensors" for i in (4, 8, 12)),
    }
    assert finished(tmp_path) == undisturbed


DAMAGES = {
    "half": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "zeros": lambda raw: bytes(len(raw)),
    "a bit": lambda raw: raw[:-2] + bytes([raw[-2] ^ 4]) + raw[-1:],
    "a page": lambda raw: b"<html>502</html>",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(stopped, undisturbed, capsys, damage):
    newest = stopped / CHECKPOINTS[0]
    newest.write_bytes(damage(newest.read_bytes()))
    seen = []
    meta_train(Walk(), folder=stopped, report=lambda row: seen.append(row["iteration"]))
    assert seen == list(range(1, 13))
    said = capsys.readouterr().out
    assert f"{newest} is damaged" in said
    assert "goes on from iteration 4, the checkpoint before" in said
    assert (stopped / "checkpoint.unusable").exists()
    assert finished(stopped) == undisturbed


@pytest.mark.bad_input
def test_a_run_without_a_whole_checkpoint_starts_again_and_says_so(stopped, undisturbed, capsys):
    for name in CHECKPOINTS:
        (stopped / name).write_bytes(b"")
    meta_train(Walk(), folder=stopped)
    assert capsys.readouterr().out.count("the run starts again.") == 2
    assert finished(stopped) == undisturbed


@pytest.mark.bad_input
def test_a_checkpoint_of_another_kind_is_not_used(stopped, undisturbed, capsys):
    store.save_tree(stopped / CHECKPOINTS[0], {"x": jnp.zeros(3)}, {"by": "hand"})
    meta_train(Walk(), folder=stopped)
    assert "is no checkpoint of this version" in capsys.readouterr().out
    assert finished(stopped) == undisturbed


@pytest.mark.bad_input
@pytest.mark.parametrize("content", [b"", b"\0" * 40, b'{"iteration": 1}\n{"it', b"<html></html>"])
def test_a_damaged_log_is_written_anew(stopped, undisturbed, content):
    (stopped / "log.jsonl").write_bytes(content)
    meta_train(Walk(), folder=stopped)
    assert finished(stopped) == undisturbed


@pytest.mark.bad_input
@pytest.mark.parametrize("content", [b"", b'{"trainer": "Wal', b"\0\0", b"\xff\xfe"])
def test_a_damaged_note_of_the_configuration_is_told_and_written_anew(stopped, undisturbed, capsys, content):
    whole = (stopped / "config.json").read_bytes()
    (stopped / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)another configuration.*config.seed: 0, now 1"):
        meta_train(Walk(Config(seed=1)), folder=stopped)  # its checkpoints know
    meta_train(Walk(), folder=stopped)
    assert "config.json is damaged" in capsys.readouterr().out
    assert (stopped / "config.json").read_bytes() == whole
    assert finished(stopped) == undisturbed


@pytest.mark.bad_input
def test_another_configuration_is_named_field_by_field(stopped):
    with pytest.raises(ValueError, match=r"(?s)another configuration.*config.iterations: 12, now 16"):
        meta_train(Walk(Config(iterations=16)), folder=stopped)


@pytest.mark.bad_input
def test_snapshots_that_nothing_is_known_of_are_left_alone(tmp_path):
    foreign = tmp_path / "theta-000007.safetensors"
    foreign.write_bytes(b"somebody's")
    with pytest.raises(ValueError, match="holds snapshots of a run that nothing is known of"):
        meta_train(Walk(), folder=tmp_path)
    assert foreign.read_bytes() == b"somebody's"


@pytest.mark.bad_input
def test_a_second_run_in_a_folder_is_refused(tmp_path, undisturbed):
    trainer = Walk()
    in_use = pytest.raises(store.StoreError, match=r"is in use: process \d+ on .* meta-trains into it")

    def report(row):
        if row["iteration"] == 2:
            with in_use:
                meta_train(trainer, folder=tmp_path)

    meta_train(trainer, folder=tmp_path, report=report)
    assert finished(tmp_path) == undisturbed


@pytest.mark.bad_input
def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(store.StoreError, match=f"{path} cannot be the folder of a run"):
            meta_train(Walk(), folder=path)


def test_what_a_killed_writer_left_is_swept(stopped, undisturbed):
    (stopped / "checkpoint.safetensors.0a1b2c3d.77.part").write_bytes(b"half")
    meta_train(Walk(), folder=stopped)
    assert not list(stopped.glob("*.part"))
    assert finished(stopped) == undisturbed


def test_checkpoints_are_saved_by_time_as_well(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", (0.0, 0.0))
    with pytest.raises(Killed):
        meta_train(Walk(), folder=tmp_path, report=until(3))
    with opened(tmp_path, loop.identity(Walk())) as folder:
        carry, log = folder.last(jax.eval_shape(Walk().start))
    assert int(carry.iteration) == len(log) == 3
    meta_train(Walk(), folder=tmp_path)
    assert finished(tmp_path) == undisturbed


def test_a_costly_checkpoint_is_saved_less_often_but_each_minute():
    assert [loop._pause(cost) for cost in (0.0, 0.1, 1.0, 2.5, 60.0)] == [10.0, 10.0, 20.0, 50.0, 60.0]


@pytest.mark.bad_input
@pytest.mark.parametrize("at", [1, 2, 3, 7, 12, 13])
def test_a_full_disk_is_named_and_the_run_goes_on_later(tmp_path, undisturbed, monkeypatch, at):
    """At whichever of the writes it is full."""
    calls, really = [], os.fsync

    def fsync(number):
        calls.append(number)
        if len(calls) >= 2 * at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(store.StoreError, match="could not be written: No space left on device"):
        meta_train(Walk(), folder=tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.part"))
    meta_train(Walk(), folder=tmp_path)
    assert finished(tmp_path) == undisturbed


CHILD = """
import sys, time
from pathlib import Path
from mnemosyne.metatrain import loop
from tests.metatrain.test_run_folder import Walk
loop.EVERY = (0.0, 0.0)
print("ready", flush=True)
def report(row):
    print(row["iteration"], flush=True)
    time.sleep(0.02)
loop.meta_train(Walk(), folder=Path(sys.argv[1]), report=report)
"""


def test_kills_at_any_moment_change_no_bit_of_what_comes_out(tmp_path, undisturbed):
    rng = np.random.default_rng(0)
    for _ in range(2):
        command = [sys.executable, "-c", CHILD, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:
            assert child.stdout.readline() == "ready\n"
            child.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(timeout=rng.uniform(0.0, 0.15))
            child.kill()
    meta_train(Walk(), folder=tmp_path)
    assert finished(tmp_path) == undisturbed
