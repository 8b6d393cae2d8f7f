"""How far a run of many notebooks is, as a line that says what is done, what runs and what is left."""

import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

EVERY = 10.0
"""Seconds between lines where output goes to a file; on a terminal one line is written over and over."""


@dataclass
class Progress:
    """Notebooks and how far each is."""

    total: int
    jobs: int
    running: dict[str, str] = field(default_factory=dict)  # name → "cell 3/18"
    began: dict[str, float] = field(default_factory=dict)
    spent: list[float] = field(default_factory=list)  # seconds of those that are done
    done: int = 0
    ended: bool = False  # nothing is printed any more

    def at(self, name: str, where: str) -> None:
        """Note where a notebook is."""
        self.began.setdefault(name, time.perf_counter())
        self.running[name] = where

    def end(self, name: str, text: str, seconds: float | None = None) -> None:
        """Note that a notebook has ended, and print what became of it."""
        self.running.pop(name, None)
        self.done += 1
        if seconds is not None:
            self.spent.append(seconds)
        self._print(f"{self.done:3d}/{self.total}  {name:20s} {text}\n")

    def line(self) -> str:
        """'5 of 21 done, 07_mlps cell 6/18 (42 s), about 4 min left'."""
        now = time.perf_counter()
        parts = [f"{self.done} of {self.total} done"]
        parts += [f"{name} {where} ({now - self.began[name]:.0f} s)" for name, where in sorted(self.running.items())]
        if len(self.spent) >= 3:
            left = sum(self.spent) / len(self.spent) * (self.total - self.done) / self.jobs
            parts.append(f"about {max(1, round(left / 60))} min left")
        return ", ".join(parts)

    def follow(self, notebooks: Iterable[Future]) -> None:
        """Print the line every few seconds until all are done; what one of them raises is raised."""
        left, terminal = set(notebooks), sys.stdout.isatty()
        while left:
            done, left = wait(left, 1.0 if terminal else EVERY, return_when=FIRST_COMPLETED)
            for notebook in done:
                notebook.result()
            if not done and self.running:
                self._print(f"\r\033[K{self.line()}" if terminal else f"         {self.line()}\n")

    def _print(self, text: str) -> None:
        if self.ended:
            return
        sys.stdout.write(f"\r\033[K{text}" if sys.stdout.isatty() and not text.startswith("\r") else text)
        sys.stdout.flush()
