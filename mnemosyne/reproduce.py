"""Run the notebooks through papermill, and close with a table of claims."""

import base64
import hashlib
import io
import json
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from mnemosyne import results, zoo
from mnemosyne.scale import scale_named

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
    in_place: bool = False,
    jobs: int = 1,
) -> int:
    """Regenerate figures and tables by running the notebooks.

    Args:
        scale: quick, laptop or paper.
        seed: offsets every random key.
        only: notebooks to run, by number ("03") or name; all by default.
        force: run also what is up to date.
        keep_going: start others after a notebook that failed.
        in_place: write the executed notebooks back, as the repository keeps them (quick, seed 0).
        jobs: how many run at a time, each in a process of its own. Two keep a CPU busy while one compiles; an
            accelerator serves one.

    Returns:
        0 if every notebook ran or was up to date, 1 otherwise.
    """
    if jobs < 1:
        raise ValueError(f"jobs is how many notebooks run at a time, at least 1, got {jobs}")
    scale_named(scale)
    chosen = select(only)
    if in_place and (scale, seed) != ("quick", 0):
        raise ValueError("the repository keeps notebooks run at scale quick with seed 0; drop --in-place")
    executed = results.output() / "data" / "cache" / "executed" / scale
    results.writable(executed)
    os.environ["MNEMOSYNE_BATCH"] = "1"  # no widgets: see explore.sliders
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(results.root() / "data" / "cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    stop = threading.Event()

    def one(name: str, before: tuple[Future, ...]) -> Outcome:
        wait(before)
        if stop.is_set():
            return Outcome(name, "not run", 0.0)
        print(f"[{name}] starts", flush=True)
        outcome = run_one(name, scale, seed, executed, force=force or in_place, in_place=in_place)
        print(f"[{name}] {outcome.status}, {outcome.seconds:.0f} s{outcome.error}", flush=True)
        if outcome.status == "failed" and not keep_going:
            stop.set()
        return outcome

    started: list[Future] = []
    with ThreadPoolExecutor(jobs) as pool:
        for name in chosen:
            started.append(pool.submit(one, name, tuple(started) if reads_tables(code_of(name)) else ()))
    outcomes = [s.result() for s in started]
    print("\n" + closing_table(outcomes, scale) + "\n")
    print(f"figures: figures/{scale}/   tables and claims: data/results/{scale}/")
    return int(any(o.status in ("failed", "not run") for o in outcomes))


def select(only: tuple[str, ...]) -> list[str]:
    """The notebooks asked for, in order; a ValueError names one that is not there."""
    names = results.notebooks()
    unknown = [o for o in only if o not in names and o not in {n.split("_")[0] for n in names}]
    if unknown:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(names)}")
    return [n for n in names if not only or n in only or n.split("_")[0] in only]


def run_one(name: str, scale: str, seed: int, executed: Path, *, force: bool, in_place: bool) -> Outcome:
    """Run one notebook unless it is up to date."""
    source = results.root() / "notebooks" / f"{name}.ipynb"
    stamp = executed / f"{name}.json"
    key = fingerprint(name, scale, seed)
    known = json.loads(stamp.read_text()) if stamp.exists() else {}
    if not force and known.get("key") == key and results.read_claims(scale, name):
        return Outcome(name, "cached", known["seconds"])
    began = time.perf_counter()
    copy = executed / f"{name}.ipynb"
    try:
        papermill.execute_notebook(
            str(source),
            str(copy),
            parameters={} if in_place else {"scale": scale, "seed": seed},
            engine_name="lines",
            progress_bar=False,
            cwd=str(source.parent),
            kernel_name="python3",
            label=name,
        )
    except PapermillExecutionError as error:
        where = f"\n      cell [{error.exec_count}] of {copy}: {error.ename}: {error.evalue}"
        return Outcome(name, "failed", time.perf_counter() - began, where)
    seconds = round(time.perf_counter() - began, 1)
    stamp.write_text(json.dumps({"key": key, "seconds": seconds}))
    if in_place:
        source.write_text(nbformat.writes(tidy(nbformat.read(copy, as_version=4))) + "\n")
    return Outcome(name, "ran", seconds)


def fingerprint(name: str, scale: str, seed: int) -> str:
    """What a notebook's results depend on: its code, parameters, tables it reads, package, weights, what computes."""
    code = code_of(name)
    weights = [zoo.digest(known) for known in zoo.available()]
    tables = results.tables_before(scale, name) if reads_tables(code) else []
    read = [hashlib.sha256(path.read_bytes()).hexdigest() for path in tables]
    # Files instead of `jax.devices()`: a TPU serves one process, which has to be the notebook's.
    computing = [os.environ.get("JAX_PLATFORMS"), *(path for path in ACCELERATORS if Path(path).exists())]
    text = json.dumps([code, scale, seed, results.source_hash(), weights, read, computing])
    return hashlib.sha256(text.encode()).hexdigest()


def code_of(name: str) -> list[str]:
    """The code cells of a notebook."""
    cells = nbformat.read(results.root() / "notebooks" / f"{name}.ipynb", as_version=4).cells
    return [c.source for c in cells if c.cell_type == "code"]


def reads_tables(code: list[str]) -> bool:
    """Whether a notebook reads the tables of others, so that it must run after them."""
    return any("read_table(" in cell for cell in code)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out what says when and where a notebook ran rather than what it showed."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = in_few_colors(output["data"]["image/png"])
    return notebook


def in_few_colors(png: str) -> str:
    """Re-encode a base64 PNG with a palette of 128 colours: a third of the size and, for plots, the same picture."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    image.quantize(128).save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def closing_table(outcomes: list[Outcome], scale: str) -> str:
    """Claims of the notebooks that were asked for: claim, paper, here, verdict, seconds."""
    rows = []
    for o in outcomes:
        claims = results.read_claims(scale, o.notebook) if o.status in ("ran", "cached") else []
        for claim in claims or [{"id": "–", "paper": "", "ours": "", "verdict": o.status}]:
            rows.append(
                {
                    "notebook": o.notebook,
                    "claim": claim["id"],
                    "paper": shorten(claim["paper"]),
                    "here": shorten(claim["ours"]),
                    "verdict": claim["verdict"],
                    "seconds": f"{o.seconds:.0f}",
                }
            )
    columns = ["notebook", "claim", "paper", "here", "verdict", "seconds"]
    table = pd.DataFrame(rows, columns=columns).astype(str)
    widths = {c: max([len(c), *table[c].str.len()]) for c in columns}
    lines = ["  ".join(c.ljust(widths[c]) for c in columns)]
    lines.append("  ".join("─" * widths[c] for c in columns))
    lines += ["  ".join(row[c].ljust(widths[c]) for c in columns) for _, row in table.iterrows()]
    return "\n".join(line.rstrip() for line in lines)


def shorten(text: str, limit: int = 58) -> str:
    """Cut a text at a word, with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + "…"


class LineEngine(NBClientEngine):
    """papermill's engine with one line per cell instead of a bar, which freezes in a log."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, label="", **kwargs):
        cells, cell_start, began = nb_man.nb.cells, nb_man.cell_start, time.perf_counter()

        def announce(cell, cell_index=None, **more):
            if cell.cell_type == "code" and cell.source.strip():
                first = next(line for line in cell.source.splitlines() if line.strip())
                spent = time.perf_counter() - began
                print(f"[{label}] {spent:4.0f} s  cell {cell_index + 1}/{len(cells)}  {first[:70]}", flush=True)
            return cell_start(cell, cell_index, **more)

        nb_man.cell_start = announce
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register("lines", LineEngine)
