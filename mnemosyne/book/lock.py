"""One run at a time: what another process is at work on is waited for."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock; while another process has it, say so and wait.

    The lock is the system's, and ends with its process, however that ends. The file stays, and means nothing.

    Args:
        path: of the lock's file.
        doing: what is done within, for those who wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(f"another process is at work here: {file.read().strip() or path}; waiting for it to end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()}, {doing}\n")
        file.flush()
        yield
