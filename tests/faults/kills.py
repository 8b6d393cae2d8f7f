"""Kill -9 at random moments, start again until the work is done, and compare with a run that was left alone."""

import itertools
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import processes, tally, whole
from tests.faults.works import Work, settings

PATIENCE = 300.0
"""Seconds after which a run that should end counts as hung."""
AFTER = 15.0
"""Seconds that a kernel may outlive the run that started it."""


@dataclass
class Kill:
    """One kill and what came of it."""

    victim: str  # "parent", "kernel" or "both"
    wrong: list[str] = field(default_factory=list)
    told: bool = False  # whether the run that lost its kernel said so in a clear error


@dataclass(frozen=True)
class Undisturbed:
    """A run that was left alone."""

    seconds: float
    changes: int  # of files
    contents: dict[str, bytes]


def alone(work: Work, folder: Path) -> Undisturbed:
    """Run in a folder of its own, and leave it alone.

    Raises:
        RuntimeError: if it fails or leaves a process.
    """
    folder.mkdir(parents=True)
    work.prepare(folder)
    began = time.monotonic()
    child = processes.start(lambda: work.run(folder), folder.with_suffix(".txt"), settings(folder))
    ended = child.wait(PATIENCE)
    seconds = time.monotonic() - began
    child.kill()
    if not ended or child.code:
        raise RuntimeError(f"{work.what} does not run even when it is left alone:\n{child.said()}")
    if left := processes.still_there(settings(folder), AFTER):
        raise RuntimeError(f"{work.what} leaves {len(left)} processes when it is left alone")
    return Undisturbed(seconds, processes.changes_of(child), work.contents(folder))


def undisturbed(work: Work, place: Path) -> Undisturbed:
    """Run alone; what compiles much runs before as well, so that kills fall on its work and not on compiling.

    Raises:
        RuntimeError: if a run fails or leaves a process, or if the second writes something else than the first.
    """
    if work.kernels:
        return alone(work, place)
    first, second = (alone(work, place / name) for name in ("first", "second"))
    if told := whole.differing(second.contents, first.contents):
        raise RuntimeError(f"{work.what}, left alone twice, does not write the same: {'; '.join(told)}")
    return second


def killed(work: Work, place: Path, wanted: Undisturbed, victims: Iterator[str], rng: random.Random) -> list[Kill]:
    """One work in an empty folder, killed again and again until a start comes to its end.

    Every second kill, where there are no kernels, falls within two milliseconds of a change of a file.

    Args:
        work: what is done.
        place: an empty folder; removed afterwards.
        wanted: the like, left alone.
        victims: one for each kill.
        rng: draws the moments, up to a quarter more than the whole time, and the changes.
    """
    folder, log, kills = place / "work", place / "log.txt", []
    folder.mkdir(parents=True)
    work.prepare(folder)
    while True:
        begun = bool(kills) and work.begun(folder)
        moment, change = PATIENCE, None
        if len(kills) < 30 and (work.kernels or rng.random() < 0.5):
            moment = rng.uniform(0, 1.25 * wanted.seconds)
        elif len(kills) < 30:
            change = rng.randrange(wanted.changes * 5 // 4)
        run = lambda: work.run(folder)
        child = processes.start(run, log, settings(folder), change, rng.uniform(0, 0.002))
        if child.wait(moment) and child.code != -signal.SIGALRM:
            break
        kills.append(Kill(next(victims)))
        if child.code is None:
            _strike(kills[-1], child, folder)
        kills[-1].wrong += work.half_written(folder)
    if kills:
        kills[-1].wrong += _end(work, child, folder, wanted, begun)
    shutil.rmtree(place)
    return kills


def _strike(kill: Kill, child: processes.Child, folder: Path) -> None:
    """Kill what the kill says; a run whose kernel is gone has to end by itself and to say why."""
    running = [p for p in processes.kernels(settings(folder)) if p.pid != child.pid]
    if kill.victim == "kernel":
        while not running and not child.ended():
            time.sleep(0.01)
            running = processes.kernels(settings(folder))
    if kill.victim != "parent":
        for process in running:
            process.kill()
    if kill.victim != "kernel":
        child.kill()
    elif not child.wait(PATIENCE):
        child.kill()
        kill.wrong.append("the run hangs when its kernel is gone")
    elif child.code == 0:
        kill.victim = "parent"  # the kernel had done its work: nothing was lost
    elif "Traceback" in child.said() or not re.search(r"0\d_\w+[^\0]{0,300}([Kk]ernel|died)", child.said()):
        kill.wrong.append("the run does not say that its kernel died and in which notebook")
    else:
        kill.told = True
    if left := processes.still_there(settings(folder), AFTER):
        kill.wrong.append(f"{len(left)} processes were left running")


def _end(work: Work, child: processes.Child, folder: Path, wanted: Undisturbed, begun: bool) -> list[str]:
    """What is wrong with the end of a work that was killed on its way."""
    if child.code:
        return [f"the next start ends with status {child.code}: {child.said()[-2000:]}"]
    try:
        wrong = whole.differing(work.contents(folder), wanted.contents)
    except ValueError as error:
        wrong = [str(error)]
    if begun and not re.search(work.goes_on, child.said()):
        wrong.append("the next start does not say what it found")
    if left := processes.still_there(settings(folder), AFTER):
        wrong.append(f"{len(left)} processes were left running")
    return wrong


def times(
    count: int, work: Work, place: Path, wanted: Undisturbed, victims: tuple[str, ...] = ("parent",), seed: int = 0
) -> list[Kill]:
    """At least so many kills."""
    rng, kills, turns = random.Random(seed), [], itertools.cycle(victims)
    while len(kills) < count:
        kills += killed(work, place / f"from-{len(kills)}", wanted, turns, rng)
        print(
            f"{work.what}: {len(kills)} kills, {sum(bool(k.wrong) for k in kills)} of them not taken well", flush=True
        )
    return kills


def row(what: str, kills: list[Kill]) -> dict:
    """A line of the tally. Right: nothing lost, half-written or left running, and the end as if left alone."""
    wrong = [kill for kill in kills if kill.wrong]
    told = sum(kill.told for kill in kills if not kill.wrong)
    return {
        "what": what,
        "tried": len(kills),
        "right": len(kills) - len(wrong) - told,
        "clear_error": told,
        "wrong": len(wrong),
        "note": tally.reasons([reason for kill in wrong for reason in kill.wrong]),
    }
