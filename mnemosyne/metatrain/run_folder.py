"""The folder of a meta-training: one process at a time, its log, checkpoints and snapshots, each whole or not there.

with opened(path, about) as folder:
    kept = folder.last(like)           # (carry, log) of the newest checkpoint that is whole, or None
    folder.row(log)
    folder.checkpoint(carry, log)
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mnemosyne import store
from mnemosyne.types import Theta

CHECKPOINTS = ("checkpoint.safetensors", "checkpoint-previous.safetensors")
"""The newest, and the one before, should the newest be damaged."""
SNAPSHOTS = "theta-*.safetensors"


class RunFolder(NamedTuple):
    """A folder that this process alone writes into."""

    path: Path
    about: dict  # the trainer, its configuration, the shapes of θ, the tasks: what makes two runs the same

    def last(self, like: Any) -> tuple[Any, list[dict]] | None:
        """What the newest whole checkpoint holds: (carry, log). One that cannot be used is told and set aside.

        Args:
            like: shapes of what a trainer goes on from.

        Raises:
            ValueError: if the checkpoint is of another run.
        """
        found, told = None, []
        for path in filter(Path.exists, (self.path / name for name in CHECKPOINTS)):
            try:
                found = self._read(path, like)
                break
            except store.StoreError as error:
                aside = path.replace(path.with_suffix(".unusable"))
                told.append(f"{error}\nIt is now called {aside.name} and is not used")
        iteration = int(found[0].iteration) if found else 0
        after = f"goes on from iteration {iteration}, the checkpoint before." if found else "starts again."
        for problem in told:
            print(f"{problem}; the run {after}", flush=True)
        for path in self.path.glob(SNAPSHOTS):
            if iteration_of(path) > iteration:
                path.unlink()
        return found

    def row(self, log: list[dict]) -> None:
        """Write `log.jsonl`, to be read along: a line for each row."""
        store.write(self.path / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log))

    def snapshot(self, theta: Theta, iteration: int) -> None:
        """Save θ, for a choice among snapshots."""
        store.save_tree(self.path / f"theta-{iteration:06d}.safetensors", theta)

    def checkpoint(self, carry: Any, log: list[dict]) -> None:
        """Save what a run goes on from, and keep the checkpoint before."""
        newest, before = (self.path / name for name in CHECKPOINTS)
        if newest.exists():
            newest.replace(before)
        store.save_tree(newest, carry, {"run": json.dumps(self.about), "log": json.dumps(log)})

    def _read(self, path: Path, like: Any) -> tuple[Any, list[dict]]:
        arrays, about = store.read(path)
        if about.keys() != {"run", "log"}:
            raise store.StoreError(f"{path} is no checkpoint of this version")
        same(path, json.loads(about["run"]), self.about)
        return store.fill(path, arrays, like), json.loads(about["log"])


@contextmanager
def opened(path: Path, about: dict) -> Iterator[RunFolder]:
    """Make or open a run's folder, and be the only one who writes there.

    Args:
        path: the folder.
        about: what makes two runs the same, as JSON has it.

    Raises:
        store.StoreError: if the folder cannot be made, or another process uses it.
        ValueError: if it holds another run.
    """
    about = json.loads(json.dumps(about))  # lists for tuples, as they come back
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store.StoreError(f"{path} cannot be the folder of a run: {error.strerror}") from error

    def refuse(holder: str) -> None:
        raise store.StoreError(f"{path} is in use: {holder} meta-trains into it. Wait, or choose another folder.")

    with store.locked(path / ".lock", refuse):
        for left in path.glob(store.PARTS):
            left.unlink()
        _check(path, about)
        yield RunFolder(path, about)


def same(where: Path, found: dict, about: dict) -> None:
    """Raise a ValueError that says in what a run differs from the one that `where` is of, if it does."""
    if found == about:
        return
    lines = [f"  {name}: {was}, now {now}" for name, was, now in _differing(found, about)]
    raise ValueError(
        f"{where.parent} holds a run of another configuration: {where}. Choose another folder.\n" + "\n".join(lines)
    )


def iteration_of(snapshot: Path) -> int:
    """The iteration of a snapshot, of its name."""
    return int(snapshot.stem.split("-")[1])


def _check(path: Path, about: dict) -> None:
    """Compare the folder's `config.json`, and write it where there is none."""
    note = path / "config.json"
    try:
        found = json.loads(note.read_bytes())
    except FileNotFoundError:
        found = None
    except ValueError as error:
        print(f"{note} is damaged ({error}); it is written anew", flush=True)
        found = None
    if found is not None:
        same(note, found, about)
        return
    if list(path.glob(SNAPSHOTS)) and not any((path / name).exists() for name in CHECKPOINTS):
        raise ValueError(f"{path} holds snapshots of a run that nothing is known of. Choose another folder.")
    for checkpoint in filter(Path.exists, (path / name for name in CHECKPOINTS)):
        _check_checkpoint(checkpoint, about)
    store.write(note, json.dumps(about, indent=1))


def _check_checkpoint(path: Path, about: dict) -> None:
    """The run that a checkpoint is of must be this one; a damaged checkpoint is told later."""
    try:
        _, known = store.read(path)
    except store.StoreError:
        return
    if "run" in known:
        same(path, json.loads(known["run"]), about)


def _differing(found: Any, about: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields of nested dicts that differ: (name, value found, value wanted)."""
    if not (isinstance(found, dict) and isinstance(about, dict)):
        if found != about:
            yield name, found, about
        return
    for key in sorted(found.keys() | about.keys()):
        yield from _differing(found.get(key), about.get(key), f"{name}.{key}".removeprefix("."))
