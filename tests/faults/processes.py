"""Runs of the command line in processes of their own, which may be killed at any moment, and what they leave running.

A run is forked from this process, which has imported everything and started nothing: it is at work within a second.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Child:
    """A run that was started."""

    pid: int
    log: Path  # what it printed
    code: int | None = None  # exit status, once it has ended; negative for a signal

    def ended(self) -> bool:
        """Whether it has ended, without waiting."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, seconds: float) -> bool:
        """Wait for its end, so long at most: whether it came."""
        until = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.005)
        return self.ended()

    def kill(self) -> None:
        """Kill -9, and see it dead."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.wait(60)

    def said(self) -> str:
        """What it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(
    work: Callable[[], None], log: Path, settings: dict[str, str], change: int | None = None, delay: float = 0.0
) -> Child:
    """Begin a run.

    Args:
        work: what it does; ends as the command line does, by SystemExit.
        log: where its output goes. Beside it, `changes_of` finds how often the run has changed a file.
        settings: environment variables that it sees, as do the processes it starts.
        change: of a file, at whose beginning the run is to die, counted from 0; None for no such end.
        delay: seconds from that beginning to the death.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(settings)
        count = _count_changes(change, delay)
        code = _status(work)
        log.with_suffix(".changes").write_text(str(count[0]), encoding="utf-8")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def changes_of(child: Child) -> int:
    """How often a run that has ended has opened a file to write, moved or deleted one."""
    return int(child.log.with_suffix(".changes").read_text(encoding="utf-8"))


def _count_changes(last: int | None, delay: float) -> list[int]:
    """Count this process's changes of files in a list of one number; let the process die so long after the last one.

    It dies by an alarm that nobody handles, at whatever it is then doing.
    """
    count = [0]

    def seen(event: str, args: tuple) -> None:
        changed = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate")
        if changed or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            if count[0] == last:
                signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))
            count[0] += 1

    sys.addaudithook(seen)
    return count


def _status(work: Callable[[], None]) -> int:
    """The status that the interpreter would end with."""
    try:
        work()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def kernels(settings: dict[str, str]) -> list[psutil.Process]:
    """Processes that runs with these settings have started and that are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            seen = process.environ()
            if settings.items() <= seen.items() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            pass
    return found


def still_there(settings: dict[str, str], seconds: float) -> list[int]:
    """Processes that outlive the run that started them by so many seconds; they are ended here."""
    until = time.monotonic() + seconds
    while (left := kernels(settings)) and time.monotonic() < until:
        time.sleep(0.1)
    for process in left:
        process.kill()
    return [process.pid for process in left]
