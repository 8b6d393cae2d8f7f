"""A notebook's run: what it computes is kept, and it writes tables, figures and claims.

run = open_run("07_mlps", scale, seed)      # rejects an unknown scale, makes the folders
params, _ = run.pretrain(vit.task, 3_000)    # kept on disk, as are
rows = run.train(task, contender, 500)       # these: a killed run goes on from here
drawn = run.keep(study.variances, maps, s)   # and these
table = run.table("fig10", rows)             # runs/<scale>/tables/fig10.csv, read back
run.figure("fig10", fig)                     # runs/<scale>/figures/fig10.png and .pdf
run.claim("fig10", held=lower, ours="…")     # judged by the rule in data/claims.toml
run.claims()                                 # runs/<scale>/tables/07_mlps.claims.json
"""

import functools
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from mnemosyne import store
from mnemosyne.book import claims, folders
from mnemosyne.book.claims import Claim
from mnemosyne.book.kept import Kept, find
from mnemosyne.book.keys import Deferred, code, combined, may_reach, program, shapes, value
from mnemosyne.book.results import note_of, notebooks
from mnemosyne.book.scale import Scale, resized, scale_named
from mnemosyne.book.whole import digest
from mnemosyne.evaluate import Contender, course, train
from mnemosyne.metatrain.loop import meta_train
from mnemosyne.optimizer import zoo
from mnemosyne.provenance import device, versions
from mnemosyne.tasks.standins import pretrain, pretraining
from mnemosyne.types import Params, Task, Theta

STYLE = Path(__file__).parent / "paper.mplstyle"
WIDTH, SMALLEST = 5.5, 7.0
"""A page's, in inches; a text's, in points."""

_UNDATED = {"metadata": {"CreationDate": None}}


@dataclass(frozen=True)
class Run:
    """One notebook at one scale with one seed."""

    notebook: str
    scale: Scale
    seed: int
    started: float
    kept: Kept
    written: dict[str, str]  # path under the run's folder → hash of what this run has written there
    claimed: dict[str, Claim]  # by id, in the order they were made
    changed: dict[str, int]  # sizes that differ from the scale's own; what they give is not published

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the independent runs; those of two notebook seeds never overlap."""
        return tuple(range(1000 * self.seed, 1000 * self.seed + self.scale.seeds))

    @property
    def folder(self) -> Path:
        return folders.runs(self.scale.name, self.seed)

    def few(self, items: Sequence, count: int) -> list:
        """All items; at a scale that only shows that everything runs, the first few."""
        return list(items) if self.scale.judges else list(items[:count])

    def keep(self, compute: Callable, *args: Any, **kwargs: Any) -> Any:
        """A table, or several, that a function of the package computes, once.

        A second call, in this process or a later one, reads what the first wrote. The key is the function's code with
        all of the package that it reaches, its arguments by value, the shipped weights if it may read them, and
        versions.
        """
        weights = zoo.shipped() if may_reach(compute, zoo.folder) else []
        what = code(compute), value(args), value(kwargs), *map(zoo.digest, weights)
        key = combined("keep", *what, jax.__version__, np.__version__)
        return self.kept.get(key, lambda: compute(*args, **kwargs))

    def train(self, task: Task, contender: Contender, steps: int) -> pd.DataFrame:
        """`evaluate.train` at this scale and with this run's seeds, once.

        A second call reads what the first wrote, so a killed run goes on from there. The key is a run's programs as JAX
        traces them, with their constants; the data, settings and seeds; and JAX's version. Names of task and contender
        are no part of it.
        """
        return self.trained(task, contender, steps).value

    def trained(self, task: Task, contender: Contender, steps: int, seeds: Sequence[int] | None = None) -> Deferred:
        """The same, trained or read when its value is asked for; with all of this run's seeds, or with those given."""
        every, each, seeds = self.scale.every, contender.each, self.seeds if seeds is None else tuple(seeds)
        setting = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes(each))
        stages, rng = course(task, contender, steps, every), jax.random.key(0)
        params = jax.eval_shape(stages.init, rng)
        carry = params, jax.eval_shape(stages.begin, setting, params)
        given = (0,), (rng,), (setting, params), (setting, rng, 0, carry, task.data), (params, task.data)
        traced = [program(stage, *args) for stage, args in zip(stages, given, strict=True)]
        key = combined("train", *traced, *map(value, (steps, task.data, each, seeds)), jax.__version__)
        known = lambda: jax.tree.map(lambda x: x.value if isinstance(x, Deferred) else x, contender.settings)
        compute = lambda: train(task, contender._replace(settings=known()), seeds=seeds, steps=steps, every=every)
        named = {"task": task.name, "optimizer": contender.name}
        return Deferred(combined(key, *named.values()), None, lambda: self.kept.get(key, compute).assign(**named))

    def summary(self, summarise: Callable[..., Any], parts: Sequence[Deferred], **options: Any) -> Any:
        """`summarise(values of the parts, **options)`, kept by their keys: found again without the parts."""
        key = combined("summary", code(summarise), value(options), *(p.key for p in parts))
        return self.kept.get(key, lambda: summarise([p.value for p in parts], **options))

    def pretrain(self, task: Task, steps: int) -> tuple[Params, dict[str, float]]:
        """`standins.pretrain` with this run's seed, once: (parameters, metrics). The key is as that of `train`."""
        traced = program(pretraining(task, steps), jax.random.key(0), task.data)
        key = combined("pretrain", traced, value(task.data), value(self.seed), jax.__version__)
        like = jax.eval_shape(task.init, jax.random.key(0))
        return self.kept.arrays(key, like, lambda: pretrain(task, steps, self.seed))

    def meta_train(self, trainer: Any) -> tuple[Deferred, Deferred]:
        """`metatrain.meta_train`, once: (θ, log), each read or computed when its value is asked for.

        A second call reads what the first wrote, and a killed one goes on from its last checkpoint. Of two at a time
        one waits for the other. The key is the programs of the start and of an iteration as JAX traces them, the tasks'
        data, and JAX's version.
        """
        data, like = tuple(t.data for t in trainer.tasks), jax.eval_shape(trainer.start)
        programs = program(trainer.start), program(trainer.iterate, like, data)
        key = combined("meta-train", *programs, value(data), value(trainer.config.iterations), jax.__version__)
        folder, of_theta = folders.cache() / "meta-training" / key[:24], combined("theta", key)

        def computed() -> tuple[Theta, list[dict]]:
            if self.kept.force:
                shutil.rmtree(folder, ignore_errors=True)
            theta, log = meta_train(trainer, folder=folder)
            keep = Kept(force=True, used=self.kept.used)
            keep.arrays(of_theta, like.theta, lambda: (theta, {}))
            keep.get(key, lambda: log)
            shutil.rmtree(folder)  # its checkpoint holds every optimizee's memories: a hundred times θ
            return theta, log

        @functools.cache
        def trained() -> tuple[Theta, list[dict]]:
            others, lock = [], folders.cache() / "locks" / f"{folder.name}.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with store.locked(lock, lambda who: others.append(_waiting(who))):
                if others and find(key):
                    kept = Kept(used=self.kept.used)
                    theta, _ = kept.arrays(of_theta, like.theta, lambda: (computed()[0], {}))
                    return theta, kept.get(key, lambda: computed()[1])
                return computed()

        theta = lambda: self.kept.arrays(of_theta, like.theta, lambda: (trained()[0], {}))[0]
        log = lambda: self.kept.get(key, lambda: trained()[1])
        return Deferred(of_theta, like.theta, theta), Deferred(key, None, log)

    def table(self, id: str, rows: pd.DataFrame) -> pd.DataFrame:
        """Write rows to `<id>.csv` with a note of how they came, and return them as read back."""
        self._write(
            f"tables/{id}.csv", rows.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode("utf-8")
        )
        about = {
            "notebook": self.notebook,
            "command": self._command(),
            "scale": asdict(self.scale),
            "seed": self.seed,
            "versions": versions(),
            "device": device(),
            "computed": self.kept.sources(),
        }
        self._write(f"tables/{id}.meta.json", _json(about))
        return pd.read_csv(self.folder / "tables" / f"{id}.csv")

    def figure(self, id: str, fig: Figure) -> None:
        """Save a figure as PNG and, byte for byte the same each time, PDF; a ValueError if it is not `legible`."""
        legible(id, fig)
        for kind, options in {"png": {"dpi": 160, "metadata": {"Software": None}}, "pdf": _UNDATED}.items():
            drawn = io.BytesIO()
            fig.savefig(drawn, format=kind, **options)
            self._write(f"figures/{id}.{kind}", drawn.getvalue())

    def claim(self, id: str, *, ours: str, **more: Any) -> pd.DataFrame:
        """Judge a claim of `data/claims.toml` by its rule, and return it as a table.

        Args:
            id: the claim's.
            ours: what we measured, in words.
            more: the statements that the claim's judge takes, as `held` and `part`, and fields of `claims.Measured`.
        """
        known = {name: more.pop(name) for name in claims.Measured.__dataclass_fields__ if name in more}
        measured = claims.Measured(ours=ours, **known)
        self.claimed[id] = claims.judged(claims.find(id), measured, self.scale.judges, **more)
        return _shown([self.claimed[id]])

    def claims(self) -> pd.DataFrame:
        """Write the claims made to `<notebook>.claims.json` and return them as a table."""
        made = list(self.claimed.values())
        self._write(f"tables/{self.notebook}.claims.json", _json([asdict(c) for c in made]))
        return _shown(made)

    def close(self) -> pd.DataFrame:
        """How this run came: versions, device, seconds; and what it was handed of runs, and where these were computed.

        It also notes what it wrote, and which kept entries it used, so that they can be published with it.
        """
        note = {"written": self.written, "used": sorted(self.kept.used)}
        folders.write(note_of(self.scale.name, self.notebook, self.seed), _json(note))
        seconds = f"{time.perf_counter() - self.started:.0f}"
        about = {"scale": self.scale.name, "data": self.scale.data, "seed": str(self.seed)}
        about |= {"versions": versions(), "device": device(), "seconds": seconds}
        for i, source in enumerate(self.kept.sources()):
            told = ", ".join(v for k, v in source.items() if k != "entries")
            about[f"rows of {source['entries']} runs" + " " * i] = told
        return pd.DataFrame(about.items(), columns=["", "this run"])

    def _command(self) -> str:
        base, number = self.scale.name.split("-")[0], self.notebook.split("_")[0]
        if not self.changed:
            return f"make figures SCALE={base} ONLY={number}"
        told = ", ".join(f"{name} = {size}" for name, size in self.changed.items())
        return f"{self.notebook} at scale {base} with {told}; not what is published"

    def _write(self, path: str, content: bytes) -> None:
        folders.write(self.folder / path, content)
        self.written[path] = digest(self.folder / path)


def legible(id: str, fig: Figure) -> None:
    """Refuse a figure that a page of 5.5 in would have to shrink, that has text under 7 pt, or a title that is cut.

    Raises:
        ValueError: and says how wide it is, or which texts are small, or which do not fit.
    """
    width = fig.get_figwidth()
    if width > WIDTH:
        raise ValueError(f"figure {id!r} is {width:g} in wide and a page has {WIDTH:g}: draw fewer columns, one taller")
    seen = (t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip())
    small = {t.get_text(): t.get_fontsize() for t in seen if t.get_fontsize() < SMALLEST}
    if small:
        told = ", ".join(f"{text!r} ({size:g})" for text, size in small.items())
        raise ValueError(f"figure {id!r} has text under {SMALLEST:g} pt: {told}")
    renderer = fig.canvas.get_renderer()  # not the one that drew it last, which may have been a PDF's
    cut = [t.get_text() for t in fig.texts if t.get_window_extent(renderer).width > fig.bbox.width]
    if cut:
        raise ValueError(f"figure {id!r} is narrower than {cut[0]!r}: write it in two lines")


def open_run(
    notebook: str, scale: str = "quick", seed: int = 0, own: Mapping[str, int] | None = None, **sizes: int
) -> Run:
    """Open a notebook's run.

    Args:
        notebook: its name without the ending, as "07_mlps".
        scale: a key of `scale.SCALES`.
        seed: offsets every random key.
        own: sizes that the notebook alone has; 0 is for its usual one.
        sizes: of the scale, by their names in `Scale`, that are to differ; 0 leaves one as it is. A run with changed
            sizes writes to a folder of its own, and is not published.

    Raises:
        ValueError: an unknown scale, a seed that is not a whole number ≥ 0, a notebook that is not there, a size that
            no scale has or that is not a whole number.
        PermissionError: if results cannot be written.
    """
    base = scale_named(scale)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be a whole number ≥ 0, got {seed!r}")
    if not (folders.root() / "notebooks" / f"{notebook}.ipynb").exists():
        raise ValueError(f"no notebook {notebook!r}; there are {', '.join(notebooks())}")
    force = bool(os.environ.get("MNEMOSYNE_FORCE"))
    chosen, changed = resized(base, sizes, own or {})
    run = Run(notebook, chosen, seed, time.perf_counter(), Kept(force), {}, {}, changed)
    for kind in ("tables", "figures"):
        folders.writable(run.folder / kind)
    plt.style.use(STYLE)
    pd.set_option("display.max_colwidth", None)
    print(f"{notebook} at scale {chosen.name}: {chosen.data}, {chosen.seeds} seeds from {run.seeds[0]}")
    return run


def _waiting(who: str) -> None:
    print(f"{who} meta-trains the same; waiting for it to end", flush=True)


def _shown(made: Sequence[Claim]) -> pd.DataFrame:
    """Claims as a reader sees them."""
    columns = ["verdict", "paper", "rule", "ours", "interval", "seeds", "note"]
    return pd.DataFrame([asdict(c) for c in made], columns=["id", *columns]).set_index("id")


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
