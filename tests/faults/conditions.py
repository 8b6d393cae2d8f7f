"""Disks that are full, folders that cannot be written, two runs at once, clocks that jump."""

import os
import random
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import processes, tally, whole
from tests.faults.kills import AFTER, PATIENCE, Undisturbed
from tests.faults.works import Work, settings

CLOCK = Path(__file__).parent / "clock"
"""Python runs what is in this folder when it starts, where it is on the path."""
MEGABYTE = 2**20
NAMED = r"failed|mnemosyne: "
"""How an error speaks that says what has failed."""


# Disks ---------------------------------------------------------------------------------------------------------------


def _mount(folder: Path, *options: str) -> bool:
    """Mount a file system in memory, or change one; whether this user may."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A folder of a megabyte, if this user may mount one."""
    folder.mkdir(parents=True)
    mounted = _mount(folder, "size=1m")
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disk(work: Work, place: Path, wanted: Undisturbed, room: int) -> dict:
    """Run where so many bytes are left; then make room and run again.

    Where no disk may be mounted, no file may be longer than that instead.
    """
    with small_disk(place / "disk") as mounted:
        folder = place / "disk" / "work"
        folder.mkdir()
        work.prepare(folder)
        filler = place / "disk" / "filler"
        run = lambda: work.run(folder)
        if mounted:
            filler.write_bytes(bytes(max(0, shutil.disk_usage(place / "disk").free - room)))
        else:
            run = lambda: (resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)), work.run(folder))
        first = _run(run, place / "first.log", settings(folder))
        wrong = work.half_written(folder)
        filler.unlink(missing_ok=True)
        wrong += _once_more(work, folder, place, wanted)
    return _outcome(first, wrong, "No space left|File too large")


def read_only(work: Work, place: Path, wanted: Undisturbed) -> dict | None:
    """Run where nothing can be written; then allow it and run again. None if this user can do neither."""
    with small_disk(place / "disk") as mounted:
        folder = place / "disk" / "work"
        folder.mkdir()
        work.prepare(folder)
        if not mounted and os.geteuid() == 0:
            return None
        _writable(place / "disk", mounted, False)
        first = _run(lambda: work.run(folder), place / "first.log", settings(folder))
        _writable(place / "disk", mounted, True)
        wrong = _once_more(work, folder, place, wanted)
    if first.code == 0 and wanted.contents:
        wrong.append("the run says nothing of a folder that cannot be written")
    return _outcome(first, wrong, "Read-only|Permission denied|cannot write")


def _writable(folder: Path, mounted: bool, may: bool) -> None:
    if mounted:
        subprocess.run(["mount", "-o", f"remount,{'rw' if may else 'ro'}", str(folder)], check=True)
        return
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        path.chmod(0o755 if may else 0o555)


# Two at once ---------------------------------------------------------------------------------------------------------


def two_at_once(work: Work, place: Path, wanted: Undisturbed, delay: float) -> dict:
    """Start a second run in the same folder so long after the first; then once more alone."""
    folder = place / "work"
    folder.mkdir(parents=True)
    work.prepare(folder)
    run = lambda: work.run(folder)
    both = [processes.start(run, place / "first.log", settings(folder))]
    time.sleep(delay)
    both.append(processes.start(run, place / "second.log", settings(folder)))
    wrong = []
    for child in both:
        if not child.wait(PATIENCE):
            child.kill()
            wrong.append("a run hangs beside another")
    if all(child.code for child in both):
        wrong.append("neither of two runs comes to its end")
    wrong += work.half_written(folder)
    wrong += _once_more(work, folder, place, wanted)
    failed = next((child for child in both if child.code), both[0])
    return _outcome(failed, wrong, "another|already|in use|at work")


# Clocks --------------------------------------------------------------------------------------------------------------


def jumping_clock(work: Work, place: Path, wanted: Undisturbed) -> dict:
    """Run with a clock that jumps by years every three seconds, in the kernels too; after an error, run again."""
    folder = place / "work"
    folder.mkdir(parents=True)
    work.prepare(folder)
    told = settings(folder)
    told["PYTHONPATH"] = f"{CLOCK}{os.pathsep}{told['PYTHONPATH']}"

    def run() -> None:
        exec((CLOCK / "sitecustomize.py").read_text(encoding="utf-8"), {})
        work.run(folder)

    first = _run(run, place / "first.log", told)
    wrong = _once_more(work, folder, place, wanted) if first.code else _ended(work, folder, wanted)
    return _outcome(first, wrong, NAMED)


def dated(work: Work, place: Path, wanted: Undisturbed, when: float) -> dict:
    """Run, give every file another date, and run again."""
    folder = place / "work"
    folder.mkdir(parents=True)
    work.prepare(folder)
    first = _run(lambda: work.run(folder), place / "first.log", settings(folder))
    for path in folder.rglob("*"):
        os.utime(path, (when, when))
    return _outcome(first, _once_more(work, folder, place, wanted), NAMED)


# What came of it -----------------------------------------------------------------------------------------------------


def _run(run: Callable[[], None], log: Path, told: dict[str, str]) -> processes.Child:
    child = processes.start(run, log, told)
    if not child.wait(PATIENCE):
        child.kill()
    processes.still_there(told, AFTER)
    return child


def _once_more(work: Work, folder: Path, place: Path, wanted: Undisturbed) -> list[str]:
    """What is wrong with a run after the trouble is over."""
    child = _run(lambda: work.run(folder), place / "again.log", settings(folder))
    if child.code:
        return [f"the next start ends with status {child.code}: {child.said()[-300:]}"]
    return _ended(work, folder, wanted)


def _ended(work: Work, folder: Path, wanted: Undisturbed) -> list[str]:
    try:
        return whole.differing(work.contents(folder), wanted.contents)
    except ValueError as error:
        return [str(error)]


def _outcome(child: processes.Child, wrong: list[str], clear: str) -> dict:
    """One try: right, or a clear error of the run that was in trouble, or wrong and why."""
    said = child.said()
    if child.code and not wrong and ("Traceback (most" in said or not re.search(clear, said)):
        wrong = [f"status {child.code} and no clear error: …{' '.join(said[-200:].split())}"]
    kind = "wrong" if wrong else "clear_error" if child.code else "right"
    return {"kind": kind, "why": "; ".join(wrong)}


def row(what: str, outcomes: list[dict]) -> dict:
    """A line of the tally."""
    count = lambda kind: sum(o["kind"] == kind for o in outcomes)
    kinds = {kind: count(kind) for kind in ("right", "clear_error", "wrong")}
    return {
        "what": what,
        "tried": len(outcomes),
        **kinds,
        "note": tally.reasons([o["why"] for o in outcomes if o["why"]]),
    }


def tried(work: Work, place: Path, wanted: Undisturbed, times: int) -> list[dict]:
    """Every condition: disks with less and less room, two runs at less and less distance, clocks.

    Args:
        work: what is done.
        place: an empty folder.
        wanted: the like, left alone.
        times: disks, and pairs of runs; 0 for nothing at all.
    """
    if not times:
        return []
    rng, number = random.Random(0), iter(range(10**6))
    new = lambda: place / str(next(number))
    rooms = [round(MEGABYTE / 4 * (i / times) ** 2) + 1 for i in range(times)]
    shut = [found for found in [read_only(work, new(), wanted)] if found]
    clocks = [jumping_clock(work, new(), wanted), dated(work, new(), wanted, 0), dated(work, new(), wanted, 4e9)]
    return [
        row(f"{work.what} on a disk that fills up", [full_disk(work, new(), wanted, room) for room in rooms]),
        row(f"{work.what} in a folder that cannot be written", shut),
        row(
            f"two of {work.what} at once",
            [two_at_once(work, new(), wanted, rng.uniform(0, wanted.seconds)) for _ in range(times)],
        ),
        row(f"{work.what} while the clock jumps, and with files of 1970 and 2096", clocks),
    ]
