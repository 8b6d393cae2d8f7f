"""The only reader and writer of results: tables, figures and claims of a notebook's run.

run = open_run("07_mlps", scale, seed)      # rejects an unknown scale, makes the folders
params, _ = run.pretrain(vit.task, 3_000)    # kept on disk, as are
rows = run.train(task, contender, 500)       # these: a killed run goes on from here
table = run.table("fig10", rows)             # data/results/<scale>/fig10.csv, read back
run.figure("fig10", fig)                     # figures/<scale>/fig10.png and .pdf
run.claims([...])                            # data/results/<scale>/07_mlps.claims.json
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import pandas as pd

from mnemosyne import store
from mnemosyne.evaluate import Contender, train
from mnemosyne.metatrain import meta_train, read_log
from mnemosyne.provenance import device, versions
from mnemosyne.scale import Scale, scale_named
from mnemosyne.tasks.standins import pretrain
from mnemosyne.types import Params, Task, Theta
from mnemosyne.verdicts import VERDICTS

PRESENTATION = {"__init__.py", "__main__.py", "bench.py", "plotting.py", "provenance.py", "reproduce.py", "results.py"}
"""Modules that compute no number of a notebook, so that a change of theirs makes none stale."""

STUDIES = {"study_ablation.py", "study_capacity.py", "study_features.py", "study_finetune.py", "study_rivals.py"}
THEORY = {*STUDIES, "explore.py", "inside.py", "theory.py", "trials.py"}

META = {"choices.py", "metatrain.py", "several.py", "students.py", "truncated.py"}
OTHER_META = {"evolution.py", "recipes.py", "search.py"}

NOT_IN_META_TRAINING = {*PRESENTATION, *THEORY, *OTHER_META, "baselines.py", "scale.py", "store.py", "zoo.py"}
"""Nor do these when a choice of an ablation is meta-trained on tasks that are given."""

NOT_IN_TRAINING = {*NOT_IN_META_TRAINING, *META, "sets.py"}
"""Nor these when a network is trained by an optimizer that is given, with rates that are given."""


def root() -> Path:
    """The checkout: `$MNEMOSYNE_ROOT`, or the nearest folder upwards that holds `notebooks/`.

    Raises:
        FileNotFoundError: outside a checkout, saying how to point at one.
    """
    if os.environ.get("MNEMOSYNE_ROOT"):
        return Path(os.environ["MNEMOSYNE_ROOT"])
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks").is_dir() and (folder / "mnemosyne").is_dir():
            return folder
    raise FileNotFoundError(
        f"no checkout of mnemosyne at or above {Path.cwd()}; run from inside one or set MNEMOSYNE_ROOT to it"
    )


def output() -> Path:
    """Where runs write: `$MNEMOSYNE_OUTPUT`, or the checkout."""
    return Path(os.environ.get("MNEMOSYNE_OUTPUT") or root())


@dataclass(frozen=True)
class Claim:
    """One statement of the paper, and what we found (ids: README)."""

    id: str
    paper: str  # what the paper says
    rule: str  # how the verdict follows from numbers, written before the run
    ours: str  # what we measured
    verdict: str  # one of VERDICTS
    interval: str = ""  # 95%, over seeds
    seeds: int = 1
    note: str = ""
    anywhere: bool = False  # theory, structure or a count, which any scale can judge; others wait for real data

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r} of claim {self.id!r} is none of {VERDICTS}")


@dataclass(frozen=True)
class Run:
    """One notebook at one scale with one seed."""

    notebook: str
    scale: Scale
    seed: int
    started: float

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the independent runs; those of two notebook seeds never overlap."""
        return tuple(range(1000 * self.seed, 1000 * self.seed + self.scale.seeds))

    @property
    def tables(self) -> Path:
        return output() / "data" / "results" / self.scale.name

    @property
    def figures(self) -> Path:
        return output() / "figures" / self.scale.name

    def few(self, items: Sequence, count: int) -> list:
        """All items; at a scale that only shows that everything runs, the first few."""
        return list(items) if self.scale.judges else list(items[:count])

    def keep(self, compute: Callable, *args, **kwargs) -> pd.DataFrame | tuple[pd.DataFrame, ...]:
        """A table, or several, that a function of the package computes, once."""
        return compute(*args, **kwargs)

    def train(self, task: Task, contender: Contender, steps: int) -> pd.DataFrame:
        """`evaluate.train` at this scale and with this run's seeds, once.

        A second call, in this process or a later one, reads what the first wrote, so a killed run goes on from
        there. The key is the task's name, parameters' shapes and loss on one batch, the contender and its weights,
        sizes and seeds, the code that trains, and versions.
        """
        who = [contender.name, contender.weights, contender.rates]
        what = [*_recognised(task), *who, steps, self.scale.every, self.seeds]
        path = root() / "data" / "cache" / "runs" / f"{_key(what, NOT_IN_TRAINING)}.csv"
        if not path.exists():
            rows = train(task, contender, seeds=self.seeds, steps=steps, every=self.scale.every)
            _write(path, rows.to_csv(index=False))
        return pd.read_csv(path)

    def pretrain(self, task: Task, steps: int) -> tuple[Params, dict[str, float]]:
        """`standins.pretrain` with this run's seed, once: (parameters, metrics).

        A second call reads what the first wrote. The key is as that of `train`, without a contender.
        """
        what = [*_recognised(task), steps, self.seed]
        path = root() / "data" / "cache" / "pretrained" / f"{_key(what, NOT_IN_TRAINING)}.safetensors"
        if not path.exists():
            params, measured = pretrain(task, steps, self.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            store.save_tree(path, params, {name: f"{float(value):.6g}" for name, value in measured.items()})
        measured = {name: float(value) for name, value in store.read(path)[1].items()}
        return store.load_tree(path, jax.eval_shape(task.init, jax.random.key(0))), measured

    def meta_train(self, name: str, trainer: Any) -> tuple[Theta, list[dict]]:
        """`metatrain.meta_train`, once: (θ, log).

        A second call reads what the first wrote, and a killed one goes on from its last checkpoint. The key is a
        name, which must tell rules apart whose weights have the same shapes, the weights' shapes, configuration and
        tasks' names, the code that meta-trains, and versions.
        """
        like = jax.eval_shape(trainer.start).theta
        shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), like)
        what = [name, asdict(trainer.config), [t.name for t in trainer.tasks], shapes]
        folder = root() / "data" / "cache" / "meta-training" / _key(what, NOT_IN_META_TRAINING)
        end = folder / f"theta-{trainer.config.iterations:06d}.safetensors"
        checkpoint = folder / "checkpoint.safetensors"
        if checkpoint.exists() or not end.exists():
            meta_train(trainer, folder=folder)
            checkpoint.unlink()  # holds every optimizee's memories: a hundred times θ
        return store.load_tree(end, like), list(read_log(folder))

    def table(self, id: str, rows: pd.DataFrame) -> pd.DataFrame:
        """Write rows to `<id>.csv` with a note of how they came, and return them as read back."""
        path = self.tables / f"{id}.csv"
        _write(path, rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        about = {
            "notebook": self.notebook,
            "command": f"make figures SCALE={self.scale.name} ONLY={self.notebook.split('_')[0]}",
            "scale": asdict(self.scale),
            "seed": self.seed,
            "versions": versions(),
            "device": device(),
        }
        _write(path.with_suffix(".meta.json"), json.dumps(about, indent=1) + "\n")
        return pd.read_csv(path)

    def figure(self, id: str, fig: plt.Figure) -> None:
        """Save a figure as PNG and, byte for byte the same each time, PDF."""
        self.figures.mkdir(parents=True, exist_ok=True)
        fig.savefig(self.figures / f"{id}.png", dpi=160, metadata={"Software": None})
        fig.savefig(self.figures / f"{id}.pdf", metadata={"CreationDate": None})

    def claims(self, claims: list[Claim]) -> pd.DataFrame:
        """Write `<notebook>.claims.json` and return the claims as a table.

        On small data that stand for nothing, an empirical claim is not testable, whatever came out.
        """
        if not self.scale.judges:
            claims = [c if c.anywhere else replace(c, verdict="not testable at this scale") for c in claims]
        rows = [asdict(c) for c in claims]
        _write(self.tables / f"{self.notebook}.claims.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return pd.DataFrame(rows).set_index("id")[["verdict", "paper", "rule", "ours", "interval", "seeds", "note"]]

    def close(self) -> pd.DataFrame:
        """How this run came: versions, device, seconds."""
        seconds = f"{time.perf_counter() - self.started:.0f}"
        about = {"scale": self.scale.name, "data": self.scale.data, "seed": str(self.seed)}
        about |= {"versions": versions(), "device": device(), "seconds": seconds}
        return pd.DataFrame(about.items(), columns=["", "this run"])


def open_run(notebook: str, scale: str = "quick", seed: int = 0) -> Run:
    """Open a notebook's run.

    Args:
        notebook: its name without the ending, as "07_mlps".
        scale: a key of `scale.SCALES`.
        seed: offsets every random key.

    Raises:
        ValueError: an unknown scale, a seed that is not a whole number ≥ 0, a notebook that is not there.
        PermissionError: if results cannot be written.
    """
    chosen = scale_named(scale)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be a whole number ≥ 0, got {seed!r}")
    if not (root() / "notebooks" / f"{notebook}.ipynb").exists():
        raise ValueError(f"no notebook {notebook!r}; there are {', '.join(notebooks())}")
    run = Run(notebook, chosen, seed, time.perf_counter())
    for folder in (run.tables, run.figures):
        writable(folder)
    plt.style.use(Path(__file__).parent / "paper.mplstyle")
    pd.set_option("display.max_colwidth", None)
    return run


def notebooks() -> list[str]:
    """Names of all notebooks, in the order they run."""
    return sorted(p.stem for p in (root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def read_claims(scale: str, notebook: str) -> list[dict]:
    """The claims a notebook wrote at a scale; empty if it has not run."""
    path = _result(scale, f"{notebook}.claims.json")
    return json.loads(path.read_text()) if path.exists() else []


def tables_before(scale: str, notebook: str) -> list[Path]:
    """The tables that notebooks before this one have written, by their notes."""
    names = {p.name for base in (root(), output()) for p in (base / "data" / "results" / scale).glob("*.meta.json")}
    notes = [_result(scale, name) for name in sorted(names)]
    written = [n for n in notes if json.loads(n.read_text())["notebook"] < notebook]
    return [n.with_name(n.name.replace(".meta.json", ".csv")) for n in written]


def read_table(scale: str, id: str) -> pd.DataFrame | None:
    """A fresh or committed table, or None if that scale has not been run."""
    path = _result(scale, f"{id}.csv")
    return pd.read_csv(path) if path.exists() else None


def _result(scale: str, file: str) -> Path:
    """Where a result is: among this output's, or else the checkout's."""
    fresh, committed = (base / "data" / "results" / scale / file for base in (output(), root()))
    return fresh if fresh.exists() else committed


def source_hash(apart_from: set[str] = PRESENTATION) -> str:
    """A hash of the package's code but some modules, and of Python and versions."""
    digest = hashlib.sha256(f"{sys.version} {versions()}".encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if path.name not in apart_from:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(what: list, apart_from: set[str]) -> str:
    """Name something kept after all that it depends on: these values, the code but some modules, the backend."""
    text = f"{what} {jax.default_backend()} {source_hash(apart_from)}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _recognised(task: Task) -> list:
    """What tells a task from another: its name, its parameters' shapes, its loss on one batch."""
    shapes = jax.tree.map(lambda p: (p.shape, str(p.dtype)), jax.eval_shape(task.init, jax.random.key(0)))
    loss = jax.jit(lambda data, key: task.loss(task.init(key), task.batch(data, key)))(task.data, jax.random.key(0))
    return [task.name, shapes, f"{float(loss):.4g}"]


def writable(folder: Path) -> None:
    """Make a folder and check that files can be written there; a PermissionError names it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write results to {folder}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(text)
    partial.replace(path)
