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
        return self.log.read_text(errors="replace")


def start(work: Callable[[], None], log: Path, settings: dict[str, str]) -> Child:
    """Begin a run.

    Args:
        work: what it does; ends as the command line does, by SystemExit.
        log: where its output goes.
        settings: environment variables that it sees, as do the processes it starts.
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
        code = _status(work)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
