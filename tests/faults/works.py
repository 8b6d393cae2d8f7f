"""What is disturbed: meta-training, notebooks, publishing, each small enough to be run hundreds of times."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import nbformat
from jaxtyping import Array

from mnemosyne import __main__ as cli
from mnemosyne.book import commands
from mnemosyne.metatrain.loop import meta_train
from mnemosyne.tasks import sets
from mnemosyne.tasks.classification import MLPSpec
from tests.faults import whole

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Work:
    """Something that runs to an end, and goes on after a kill."""

    what: str
    prepare: Callable[[Path], object]  # make what it needs in an empty folder
    run: Callable[[Path], None]  # as the command line does, in a process of its own
    written: tuple[str, ...]  # folders that it writes
    left: str  # a pattern of files that a run goes on from
    goes_on: str  # a pattern of what it then says
    kernels: bool = False  # whether it starts processes

    def contents(self, folder: Path) -> dict[str, bytes]:
        """What it has written, without times; a ValueError if a file is not whole."""
        parts = {part: whole.contents(folder / part) for part in self.written}
        return {f"{part}/{name}": content for part, files in parts.items() for name, content in files.items()}

    def half_written(self, folder: Path) -> list[str]:
        """Files that are not whole."""
        return [told for part in self.written for told in whole.half_written(folder / part)]

    def begun(self, folder: Path) -> bool:
        """Whether an earlier run has left something to go on from."""
        return any(path.is_file() for part in self.written for path in (folder / part).rglob(self.left))


def settings(folder: Path) -> dict[str, str]:
    """Environment variables of a run in a folder, by which the processes it starts are found again."""
    return {
        "MNEMOSYNE_ROOT": str(folder),
        "MNEMOSYNE_OUTPUT": "",
        "MNEMOSYNE_FORCE": "",
        "PYTHONPATH": str(REPOSITORY),
        "MPLBACKEND": "agg",
    }


# The outer loop alone ------------------------------------------------------------------------------------------------


class Counted(NamedTuple):
    """What the trainer below goes on from."""

    theta: dict[str, Array]
    sums: Array  # [2000], large, as the memories of optimizees are
    iteration: Array


@dataclass(frozen=True)
class Config:
    iterations: int = 300


class Trainer(NamedTuple):
    """A trainer whose iteration costs nothing, so that nearly all of its time goes into files."""

    config: Config
    tasks: tuple = ()

    chunk = 2
    save_every = 10

    def start(self) -> Counted:
        return Counted({"w": jnp.zeros(100)}, jnp.ones(2000), jnp.zeros((), jnp.int32))

    def iterate(self, carry: Counted, data: tuple) -> tuple[Counted, dict[str, Array]]:
        sums = 0.99 * carry.sums + jnp.sin(jnp.arange(2000.0) * carry.iteration)
        theta = {"w": carry.theta["w"] - 0.01 * sums[:100]}
        return Counted(theta, sums, carry.iteration + 1), {"loss": jnp.mean(theta["w"] ** 2)}


def _loop(folder: Path) -> None:
    """As the command runs it, so that errors are shown as the command shows them."""

    def run() -> int:
        meta_train(Trainer(Config()), folder=folder / "run", report=commands.line)
        return 0

    commands.COMMANDS["meta-train"] = run
    cli.main(["meta-train"])


# Meta-training by the command ----------------------------------------------------------------------------------------


def _meta_train(folder: Path) -> None:
    sets.META_TRAIN = ((MLPSpec((4,), "relu"), 2),)
    sets.META_VALIDATION = ((MLPSpec((5,), "relu"), 2),)
    sizes = {"dataset": "digits", "iterations": 400, "horizon": 40, "coordinates": 8, "warmup": 5}
    args = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    cli.main(["meta-train", "lstm", *args, "--selection.marks", "20", "--out", str(folder / "run")])


# Notebooks -----------------------------------------------------------------------------------------------------------

CLAIMS = """[small]
paper = "mnemosyne"
says = "rows are kept"
rule = "every row is there"
judge = "whole"
anywhere = true
"""

# No cell shows how long it took.
NOTEBOOKS = {
    "01_small": (
        "import time\n\nimport matplotlib.pyplot as plt\nimport pandas as pd\n\n"
        "from mnemosyne.book import open_run\nfrom mnemosyne.tasks import suite\n\n"
        'run = open_run("01_small", scale, seed)',
        "def rows_of(part):\n    time.sleep(0.1)\n"
        '    return pd.DataFrame({"part": part, "x": range(200), "y": [x**0.5 * part for x in range(200)]})',
        "parts = [run.keep(rows_of, part) for part in range(8)]",
        'params, found = run.pretrain(suite.regression(3, (4,), "relu"), 20)',
        'rows = run.table("small", pd.concat(parts))',
        'fig, ax = plt.subplots(figsize=(4, 3))\nax.plot(rows.x, rows.y)\nrun.figure("small", fig)',
        'run.claim("small", held=len(rows) == 1600, ours=f"{len(rows)} rows")\nrun.claims()',
        "run.close();",
    ),
    "02_after": (
        'from mnemosyne.book import open_run, read_table\n\nrun = open_run("02_after", scale, seed)',
        'rows = read_table(scale, "small", seed)\nshown = run.table("after", rows.groupby("part").mean())',
        "run.close();",
    ),
}


def checkout(folder: Path) -> None:
    """A checkout of two notebooks, of which the second reads the table of the first."""
    for name in ("notebooks", "mnemosyne", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "claims.toml").write_text(CLAIMS, encoding="utf-8")
    for name, sources in NOTEBOOKS.items():
        cells = [nbformat.v4.new_code_cell(source) for source in ('scale = "quick"\nseed = 0', *sources)]
        for number, cell in enumerate(cells):
            cell["id"] = f"cell-{number}"
        cells[0].metadata["tags"] = ["parameters"]
        about = {"language_info": {"name": "python"}}
        (folder / "notebooks" / f"{name}.ipynb").write_text(
            nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=about)) + "\n",
            encoding="utf-8",
        )


def _reproduce(folder: Path) -> None:
    """At the scale that is published."""
    os.chdir(folder)
    cli.main(["reproduce", "--scale", "laptop"])


# Publishing ----------------------------------------------------------------------------------------------------------


def publishing(finished: Path) -> Work:
    """Publishing of a checkout in which the notebooks have run at the scale that is published."""
    return Work(
        "publish",
        lambda folder: shutil.copytree(finished, folder, dirs_exist_ok=True),
        _publish,
        ("data/results", "data/rows", "figures", "notebooks"),
        "*",
        "publish",
    )


def _publish(folder: Path) -> None:
    os.chdir(folder)
    cli.main(["publish", "--scale", "laptop"])


LOOP = Work("outer loop", lambda folder: None, _loop, ("run",), "checkpoint.safetensors", "goes on from iteration")
META_TRAIN = Work(
    "meta-train", lambda folder: None, _meta_train, ("run",), "checkpoint.safetensors", "goes on from iteration"
)
REPRODUCE = Work("reproduce", checkout, _reproduce, ("runs", "data/cache/kept"), "*", "cached|ran", kernels=True)
