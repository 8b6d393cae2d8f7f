"""Run the notebooks through papermill, and close with a table of claims."""

import ast
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from mnemosyne.book import chapter, claims, folders, keys
from mnemosyne.book.progress import Progress
from mnemosyne.book.scale import scale_named
from mnemosyne.optimizer import zoo
from mnemosyne.provenance import versions

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
    chosen = select(only)
    folders.writable(folders.runs(scale, seed) / "notebooks")
    stop, progress = threading.Event(), Progress(len(chosen), jobs)

    def one(name: str, before: tuple[Future, ...]) -> Outcome:
        wait(before)
        told = partial(progress.at, name)
        outcome = Outcome(name, "not run", 0.0) if stop.is_set() else run_one(name, scale, seed, told, force=force)
        took = outcome.seconds if outcome.status == "ran" else None
        progress.end(name, f"{outcome.status}, {outcome.seconds:.0f} s{outcome.error}", took)
        if outcome.status == "failed" and not keep_going:
            stop.set()
        return outcome

    started: list[Future] = []
    with kernels_told(force), progress, ThreadPoolExecutor(jobs) as pool:
        for name in chosen:
            started.append(pool.submit(one, name, tuple(started) if reads_tables(name) else ()))
        outcomes = [s.result() for s in started]
    print("\n" + closing_table(outcomes, scale, seed) + "\n")
    print(f"figures, tables, claims and executed notebooks: {folders.runs(scale, seed)}")
    return int(any(o.status in ("failed", "not run") for o in outcomes))


@contextmanager
def kernels_told(force: bool) -> Iterator[None]:
    """Kernels that start within are told how to run by environment variables, which end with it."""
    before = dict(os.environ)
    defaults = {
        "JAX_COMPILATION_CACHE_DIR": str(folders.cache() / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    told = {"MNEMOSYNE_BATCH": "1", "MNEMOSYNE_FORCE": "1" if force else ""}  # the first: see explore.sliders
    os.environ.update(defaults | before | told)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def select(only: tuple[str, ...]) -> list[str]:
    """The notebooks asked for, in order; a ValueError names one that is not there."""
    names = chapter.notebooks()
    unknown = [o for o in only if o not in names and o not in {n.split("_")[0] for n in names}]
    if unknown:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(names)}")
    return [n for n in names if not only or n in only or n.split("_")[0] in only]


def run_one(name: str, scale: str, seed: int, at=lambda where: None, *, force: bool = False) -> Outcome:
    """Run one notebook unless it is up to date.

    Args:
        name: the notebook.
        scale: see `reproduce`.
        seed: see `reproduce`.
        at: told where it is, as "cell 3/18".
        force: run it even so.
    """
    stamp, key = stamp_of(name, scale, seed), fingerprint_of(name, scale, seed)
    if not force and up_to_date(name, scale, seed):
        return Outcome(name, "cached", json.loads(stamp.read_text(encoding="utf-8"))["seconds"])
    at("starts")
    stamp.unlink(missing_ok=True)
    chapter.forget(scale, name, seed)
    began, source, copy = time.perf_counter(), source_of(name), executed(name, scale, seed)
    try:
        papermill.execute_notebook(
            str(source),
            str(copy),
            parameters={"scale": scale, "seed": seed},
            engine_name="told",
            progress_bar=False,
            cwd=str(source.parent),
            kernel_name="python3",
            at=at,
            # Plain sockets are no news, errors are raised; figures are on the page whatever MPLBACKEND says.
            extra_arguments=["--log-level=50", "--matplotlib=inline"],
        )
    except PapermillExecutionError as error:
        where = f"\n      cell [{error.exec_count}] of {copy}: {error.ename}: {error.evalue}"
        return Outcome(name, "failed", time.perf_counter() - began, where)
    seconds = round(time.perf_counter() - began, 1)
    folders.write(stamp, json.dumps({"key": key, "seconds": seconds}))
    return Outcome(name, "ran", seconds)


def source_of(name: str) -> Path:
    """The notebook as it is written."""
    return folders.root() / "notebooks" / f"{name}.ipynb"


def executed(name: str, scale: str, seed: int) -> Path:
    """The notebook as a run has executed it."""
    return folders.runs(scale, seed) / "notebooks" / f"{name}.ipynb"


def stamp_of(name: str, scale: str, seed: int) -> Path:
    """A file that says of what a run that ended was made."""
    return executed(name, scale, seed).with_suffix(".json")


def up_to_date(name: str, scale: str, seed: int) -> bool:
    """Whether a run of this notebook, as it is now, has ended, and all that it wrote is there as it was written."""
    stamp, folder = stamp_of(name, scale, seed), folders.runs(scale, seed)
    if not (stamp.exists() and executed(name, scale, seed).exists()):
        return False
    written = chapter.written(scale, name, seed)
    there = all((folder / p).exists() and chapter.digest(folder / p) == d for p, d in written.items())
    return (
        bool(written)
        and there
        and json.loads(stamp.read_text(encoding="utf-8"))["key"] == fingerprint_of(name, scale, seed)
    )


def fingerprint_of(name: str, scale: str, seed: int) -> str:
    """A run's making: code, claims, parameters, tables it reads, package, style, weights, versions."""
    code = [ast.dump(keys.syntax(cell)) for cell in code_of(name)]
    weights = [zoo.digest(known) for known in zoo.available()]
    style = [chapter.STYLE.read_text(encoding="utf-8")]
    # Files instead of `jax.devices()`: a TPU serves one process, which has to be the notebook's.
    computing = [str(os.environ.get("JAX_PLATFORMS")), *(path for path in ACCELERATORS if Path(path).exists())]
    read = [chapter.digest(path) for path in tables_before(name, scale, seed)] if reads_tables(name) else []
    rules = claims_of(name)
    parts = [*code, scale, str(seed), keys.package(), *weights, *style, *read, *rules, *computing, versions()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def tables_before(name: str, scale: str, seed: int) -> list[Path]:
    """The tables that runs of notebooks before this one have written."""
    folder = folders.runs(scale, seed)
    before = [n for n in chapter.notebooks() if n < name]
    return [folder / p for n in before for p in chapter.written(scale, n, seed) if p.endswith(".csv")]


def claims_of(name: str) -> list[str]:
    """The claims that a notebook makes, as the file of claims states them."""
    known = claims.stated()
    return [str(known.get(id)) for id in claims.made(code_of(name))]


def code_of(name: str) -> list[str]:
    """The code cells of a notebook."""
    cells = nbformat.read(source_of(name), as_version=4).cells
    return [c.source for c in cells if c.cell_type == "code"]


def reads_tables(name: str) -> bool:
    """Whether a notebook reads the tables of others, so that it must run after them."""
    return any("read_table(" in cell for cell in code_of(name))


def closing_table(outcomes: list[Outcome], scale: str, seed: int = 0) -> str:
    """Claims of the notebooks that were asked for: claim, paper, here, verdict, and the published one; seconds."""
    rows = []
    for o in outcomes:
        found = chapter.read_claims(scale, o.notebook, seed) if o.status in ("ran", "cached") else []
        published = {c["id"]: c["verdict"] for c in chapter.published_claims("laptop", o.notebook)}
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


def shorten(text: str, limit: int = 48) -> str:
    """Cut a text at a word, with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + "…"


class ToldEngine(NBClientEngine):
    """papermill's engine, which tells where it is instead of drawing a bar."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, at=lambda where: None, **kwargs):
        cells, cell_start = nb_man.nb.cells, nb_man.cell_start

        def told(cell, cell_index=None, **more):
            at(f"cell {cell_index + 1}/{len(cells)}")
            return cell_start(cell, cell_index, **more)

        nb_man.cell_start = told
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register("told", ToldEngine)
