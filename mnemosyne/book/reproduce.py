"""Run the notebooks through papermill, and close with a table of claims."""

import ast
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from mnemosyne.book import chapter, claims, folders, kernels, keys, results, whole
from mnemosyne.book.progress import Progress
from mnemosyne.book.scale import scale_named
from mnemosyne.optimizer import zoo
from mnemosyne.provenance import versions
from mnemosyne.store import StoreError

ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0")


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook."""

    notebook: str
    status: str  # "ran", "cached", "failed" or "not run"
    seconds: float  # that its computation took, when it ran
    error: str = ""


def reproduce(
    *,
    scale: str = "quick",
    seed: int = 0,
    only: tuple[str, ...] = (),
    force: bool = False,
    keep_going: bool = False,
    jobs: int = 1,
) -> int:
    """Regenerate figures and tables by running the notebooks.

    A notebook whose code, package, parameters, versions and outputs are as they were is not run again. Within one that
    is run, what was computed before is read, see `chapter.Run`.

    Args:
        scale: quick, laptop or paper.
        seed: offsets every random key.
        only: notebooks to run, by number ("03") or name; all by default.
        force: run also what is up to date, and compute anew what was kept.
        keep_going: start others after a notebook that failed.
        jobs: how many run at a time, each in a process of its own. Two keep a CPU busy while one compiles; an
            accelerator serves one.

    Returns:
        0 if every notebook ran or was up to date, 1 otherwise.
    """
    if jobs < 1:
        raise ValueError(f"jobs is how many notebooks run at a time, at least 1, got {jobs}")
    scale_named(scale)
    chosen, folder = select(only), folders.runs(scale, seed)
    folders.writable(folder / "notebooks")
    folders.writable(folders.cache())
    with alone(scale, seed, "reproduce"), kernels.environment(force):
        for path in (*folders.sweep(folder), *folders.sweep(folders.cache() / "kept")):
            print(f"{path} was left unfinished by a process that was killed; it is deleted")
        outcomes = _run_all(chosen, scale, seed, force, keep_going, jobs)
    print("\n" + closing_table(outcomes, scale, seed) + "\n")
    print(f"figures, tables, claims and executed notebooks: {folder}")
    return int(any(o.status in ("failed", "not run") for o in outcomes))


@contextmanager
def alone(scale: str, seed: int, doing: str) -> Iterator[None]:
    """Wait until no other process runs or publishes this scale and seed, of this checkout or into this folder."""
    name = f"{doing} --scale {scale} --seed {seed}"
    here = folders.cache() / "locks" / f"{scale}-seed-{seed}"
    with folders.alone(here, name), folders.alone(folders.runs(scale, seed) / ".lock", name):
        yield


def _run_all(chosen: list[str], scale: str, seed: int, force: bool, keep_going: bool, jobs: int) -> list[Outcome]:
    """Run notebooks, several at a time; whatever ends this ends their kernels."""
    stop, progress, running = threading.Event(), Progress(len(chosen), jobs), kernels.Kernels()

    def one(name: str, before: tuple[Future, ...]) -> Outcome:
        wait(before)
        if stop.is_set():
            outcome = Outcome(name, "not run", 0.0)
        else:
            outcome = run_one(name, scale, seed, running, partial(progress.at, name), force=force)
        if outcome.status == "failed" and not keep_going:
            stop.set()
        took = outcome.seconds if outcome.status == "ran" else None
        progress.end(name, f"{outcome.status}, {outcome.seconds:.0f} s{outcome.error}", took)
        return outcome

    started: list[Future] = []
    with kernels.ended_by_signals(), ThreadPoolExecutor(jobs) as pool:
        try:
            for name in chosen:
                started.append(pool.submit(one, name, tuple(started) if reads_tables(name) else ()))
            progress.follow(started)
        except BaseException as error:
            stop.set()
            progress.ended = True
            running.end()
            if not isinstance(error, BrokenPipeError):
                print("stopped: what was computed is kept, the same command goes on from there", file=sys.stderr)
            raise
    return [s.result() for s in started]


def select(only: tuple[str, ...]) -> list[str]:
    """The notebooks asked for, in order; a ValueError names one that is not there."""
    names = results.notebooks()
    unknown = [o for o in only if o not in names and o not in {n.split("_")[0] for n in names}]
    if unknown:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(names)}")
    return [n for n in names if not only or n in only or n.split("_")[0] in only]


def run_one(
    name: str, scale: str, seed: int, running: kernels.Kernels, at=lambda where: None, *, force: bool = False
) -> Outcome:
    """Run one notebook unless it is up to date; `at` is told where it is. Whatever goes wrong is its outcome."""
    stamp, began = stamp_of(name, scale, seed), time.perf_counter()
    try:
        key = fingerprint_of(name, scale, seed)
        if not force and up_to_date(name, scale, seed):
            return Outcome(name, "cached", _stamped(name, scale, seed)["seconds"])
        at("starts")
        stamp.unlink(missing_ok=True)
        results.forget(scale, name, seed)
        began, copy = time.perf_counter(), executed(name, scale, seed)
        kernels.execute(source_of(name), copy, {"scale": scale, "seed": seed}, running, at)
        seconds = round(time.perf_counter() - began, 1)
        folders.write(stamp, json.dumps({"key": key, "seconds": seconds, "page": whole.digest(copy)}))
        return Outcome(name, "ran", seconds)
    except (kernels.Failed, ValueError, OSError, StoreError) as error:
        return Outcome(name, "failed", time.perf_counter() - began, f"\n      {error}")
    except Exception as error:  # nothing that one notebook meets keeps the others from being told of
        told = f"\n      {type(error).__name__}: {error}"
        return Outcome(name, "failed", time.perf_counter() - began, told)


def source_of(name: str) -> Path:
    """The notebook as it is written."""
    return folders.root() / "notebooks" / f"{name}.ipynb"


def executed(name: str, scale: str, seed: int) -> Path:
    """The notebook as a run has executed it."""
    return folders.runs(scale, seed) / "notebooks" / f"{name}.ipynb"


def stamp_of(name: str, scale: str, seed: int) -> Path:
    """A file that says of what a run that ended was made."""
    return executed(name, scale, seed).with_suffix(".json")


def _stamped(name: str, scale: str, seed: int) -> dict | None:
    return results.noted(stamp_of(name, scale, seed), {"key": str, "seconds": float, "page": str})


def up_to_date(name: str, scale: str, seed: int) -> bool:
    """Whether a run of this notebook, as it is now, has ended, and all that it wrote is there as it was written.

    What is gone or has changed since is told.
    """
    stamp, written = _stamped(name, scale, seed), results.written(scale, name, seed)
    if stamp is None or not written:
        return False
    made = {executed(name, scale, seed): stamp["page"]}
    made |= {folders.runs(scale, seed) / path: digest for path, digest in written.items()}
    for path, digest in made.items():
        if (found := digest_of(path)) != digest:
            print(f"{path} is {'not as it was written' if found else 'gone'}; {name} counts as not run", flush=True)
            return False
    return stamp["key"] == fingerprint_of(name, scale, seed)


def digest_of(path: Path) -> str:
    """The digest of a file; empty where there is none."""
    return whole.digest(path) if path.exists() else ""


def fingerprint_of(name: str, scale: str, seed: int) -> str:
    """A run's making: code, claims, parameters, tables it reads, package, style, weights, versions."""
    code = [ast.dump(keys.syntax(cell)) for cell in code_of(name)]
    weights = [zoo.digest(known) for known in zoo.available()]
    style = [chapter.STYLE.read_text(encoding="utf-8")]
    # Files instead of `jax.devices()`: a TPU serves one process, which has to be the notebook's.
    computing = [str(os.environ.get("JAX_PLATFORMS")), *(path for path in ACCELERATORS if Path(path).exists())]
    read = [digest_of(path) for path in tables_before(name, scale, seed)] if reads_tables(name) else []
    rules = claims_of(name)
    parts = [*code, scale, str(seed), keys.package(), *weights, *style, *read, *rules, *computing, versions()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def tables_before(name: str, scale: str, seed: int) -> list[Path]:
    """The tables that runs of notebooks before this one have written."""
    folder = folders.runs(scale, seed)
    before = [n for n in results.notebooks() if n < name]
    return [folder / p for n in before for p in results.written(scale, n, seed) if p.endswith(".csv")]


def claims_of(name: str) -> list[str]:
    """The claims that a notebook makes, as the file of claims states them."""
    known = claims.stated()
    return [str(known.get(id)) for id in claims.made(code_of(name))]


def code_of(name: str) -> list[str]:
    """The code cells of a notebook."""
    return [c.source for c in whole.notebook(source_of(name)).cells if c.cell_type == "code"]


def reads_tables(name: str) -> bool:
    """Whether a notebook reads the tables of others, so that it must run after them."""
    try:
        return any("read_table(" in cell for cell in code_of(name))
    except whole.Damaged:  # its own turn will tell
        return False


def closing_table(outcomes: list[Outcome], scale: str, seed: int = 0) -> str:
    """Claims of the notebooks that were asked for: claim, paper, here, verdict, and the published one; seconds."""
    rows = []
    for o in outcomes:
        ended = o.status in ("ran", "cached")
        found = _told(lambda name=o.notebook: results.read_claims(scale, name, seed)) if ended else []
        known = _told(lambda name=o.notebook: results.published_claims("laptop", name))
        published = {c["id"]: c["verdict"] for c in known}
        for claim in found or [{"id": "–", "paper": "", "ours": "", "verdict": o.status}]:
            rows.append(
                {
                    "notebook": o.notebook,
                    "claim": claim["id"],
                    "paper": shorten(claim["paper"]),
                    "here": shorten(claim["ours"]),
                    f"at {scale}": claim["verdict"],
                    "published, laptop": published.get(claim["id"], "–"),
                    "seconds": f"{o.seconds:.0f}",
                }
            )
    table = pd.DataFrame(rows).astype(str)
    if scale == "laptop":
        table = table.drop(columns="published, laptop")
    widths = {c: max([len(c), *table[c].str.len()]) for c in table}
    lines = ["  ".join(c.ljust(widths[c]) for c in table)]
    lines.append("  ".join("─" * widths[c] for c in table))
    lines += ["  ".join(row[c].ljust(widths[c]) for c in table) for _, row in table.iterrows()]
    return "\n".join(line.rstrip() for line in lines)


def _told(read: Callable[[], list[dict]]) -> list[dict]:
    """Claims, or none and a line that says why."""
    try:
        return read()
    except whole.Damaged as error:
        print(error)
        return []


def shorten(text: str, limit: int = 48) -> str:
    """Cut a text at a word, with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + "…"
