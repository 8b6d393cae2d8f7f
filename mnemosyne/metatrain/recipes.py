"""From a name to shipped weights: meta-train, choose a snapshot on validation tasks, write the card."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from mnemosyne import store
from mnemosyne.evaluate import Contender, train
from mnemosyne.metatrain.checks import check_chunks, check_positive, check_seed, check_several
from mnemosyne.metatrain.loop import identity, run
from mnemosyne.metatrain.pes import PES, PESConfig
from mnemosyne.metatrain.run_folder import SNAPSHOTS, iteration_of, opened
from mnemosyne.metatrain.search import Search, SearchConfig
from mnemosyne.metatrain.students import by_coordinate, whole
from mnemosyne.metatrain.truncated import MetaConfig, Truncated
from mnemosyne.optimizer.pace import pace_over
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.zoo import digest, load_weights, path_of, save_weights
from mnemosyne.provenance import device, versions
from mnemosyne.tasks import data, sets
from mnemosyne.tasks.data.text import load_text
from mnemosyne.types import Learned, Task, Theta


class Recipe(NamedTuple):
    """How the weights of one name are made."""

    trainer: Any  # a `Truncated`, a `PES` or a `Search`
    complete: Callable[[Theta], Theta]  # what is trained → all weights of the architecture
    validation: list[Task]  # what snapshots are compared on
    about: tuple[str, ...]  # lines of the card: data, tasks, differences from the paper
    options: tuple[str, ...] = ()  # of the command, besides those of the trainer and the selection


@dataclass(frozen=True)
class Selection:
    """How a snapshot is chosen: the lowest mean of log training loss over validation tasks and marks."""

    marks: tuple[int, ...] = (100, 300)  # training steps at which losses count
    seeds: tuple[int, ...] = (0,)
    snapshots: int = 8  # the last so many

    def __post_init__(self):
        check_positive(self, "snapshots")
        check_several(self, "marks")
        if not self.seeds:
            raise ValueError("seeds must hold one at least")
        for seed in self.seeds:
            check_seed(seed, "each of seeds")


VARIED = Selection(marks=(100, 200, 500, 1000), seeds=(0, 1))
"""How a snapshot of a search or of an evolution is chosen."""

TASKS = dict.fromkeys(("tensor", "tensor_averaged"), sets.TENSOR_TRAIN)
"""Who learns on other networks than `sets.META_TRAIN`."""


MNIST = (28, 1)
"""Pixels on a side and channels of the images that the networks of `sets.META_TRAIN` are for."""


def by_truncation(name: str, meta: MetaConfig, dataset: str = "mnist") -> Recipe:
    """The paper's way (App. B.1): small networks on MNIST, horizons of 100 steps, imitation of Adam.

    Args:
        name: a key of `registry.OPTIMIZERS`.
        meta: what meta-training does.
        dataset: of images. Others than MNIST's are interpolated to its size, which the networks are for.

    Raises:
        ValueError: if the iterations are not whole chunks.
        DataError: if the data set is unknown, absent or damaged.
    """
    check_chunks(Truncated, meta)
    images = data.resize(data.load(dataset), *MNIST)
    members, entry = TASKS.get(name, sets.META_TRAIN), OPTIMIZERS[name]
    rule = entry.coordinatewise
    student = by_coordinate(*rule, meta.coordinates) if rule else whole(entry.learned, meta.horizon)
    return Recipe(
        trainer=Truncated(student, tuple(sets.build(members, images)), meta),
        complete=lambda theta: theta,
        validation=sets.build(sets.META_VALIDATION, images),
        about=(
            f"- **Data**: {images.name}, training split without its {len(images.validation.labels):,} validation "
            "images; batches of 64.",
            f"- **Meta-training tasks**: {_list(members)}.",
            f"- **Validation tasks**: {_list(sets.META_VALIDATION)}. No network of Fig. 3 or Fig. 10 took part.",
            f"- **Differences from the paper**: {entry.differs}; tasks weighed by what the expert's updates are "
            "worth to each; expert rate and meta-rate as below (the paper: 3e-2 and 3e-4).",
        ),
        options=_options(dataset=(dataset, "mnist")),
    )


class Searched(NamedTuple):
    """What is searched for under a name."""

    law: Learned
    complete: Callable[[Theta], Theta]  # the law → all weights
    about: tuple[str, ...] = ()  # lines of the card


def pace_of_paced() -> Searched:
    """A pace for the shipped direction `normalised`, searched for with Adam's direction in its place for speed."""
    theta, _ = load_weights(path_of("normalised"))
    return Searched(
        pace_over(optax.adam(1e-2)),
        lambda law: {"direction": theta, "pace": law},
        (
            f"- **Direction**: the weights of `normalised`, sha256 {digest('normalised')}. The law was searched for "
            "over Adam's direction at rate 1e-2, which `normalised` was trained to imitate, at a fifth of the cost.",
        ),
    )


SEARCHED_ON = {"varied": sets.varied_train, "hard": sets.hard_train}
"""By name: (images, text) → what laws are searched for on."""


def law_of_slim() -> Searched:
    """All of `slim`, from round numbers that earlier searches had found."""
    started = "- **Start**: round numbers that earlier searches had found, over runs of 3,200 steps; see `slim.slim`."
    return Searched(OPTIMIZERS["slim"].learned, lambda theta: theta, (started,))


SEARCHED = {"paced": pace_of_paced, "slim": law_of_slim}
"""By name: what is searched for, made when it is asked for."""


def by_search(
    name: str, config: SearchConfig, images: str = "mnist", text: str = "wikitext2", tasks: str = "varied"
) -> Recipe:
    """A law of a few numbers, searched for over whole runs.

    Args:
        name: a key of `SEARCHED`.
        config: what the search does.
        images: a data set for the networks that see images.
        text: a data set for those that read.
        tasks: a key of `SEARCHED_ON`.

    Raises:
        ValueError: if the iterations are not whole chunks.
        DataError: if a data set is unknown, absent or damaged.
    """
    check_chunks(Search, config)
    pictures, characters = data.load(images), load_text(text)
    learned_on, validation = (make(pictures, characters) for make in (SEARCHED_ON[tasks], sets.varied_validation))
    law, complete, about = SEARCHED[name]()
    return Recipe(
        trainer=Search(law, tuple(learned_on), config),
        complete=complete,
        validation=validation,
        about=(
            f"- **Data**: training splits of {images}, pooled to 7 × 7 pixels (all of them for the ViTs), and {text}.",
            f"- **Meta-training tasks**: {'; '.join(t.name for t in learned_on)}.",
            f"- **Validation tasks**: {'; '.join(t.name for t in validation)}. No task of `sets.meta_test`, no "
            "network of Fig. 3 or Fig. 10 took part.",
            *about,
            f"- **Differences from the paper**: {OPTIMIZERS[name].differs}.",
        ),
        options=_options(images=(images, "mnist"), text=(text, "wikitext2"), tasks=(tasks, "varied")),
    )


def by_evolution(
    name: str, config: PESConfig, images: tuple[str, ...] = ("mnist", "cifar10_15k"), text: str = "wikitext2"
) -> Recipe:
    """Persistent evolution on small MLPs, as Metz et al. 2022 and Celo2 do it on larger ones and for longer.

    Args:
        name: a key of `registry.OPTIMIZERS`.
        config: what evolution does.
        images: data sets to learn on; those of validation are of the first.
        text: of validation tasks.

    Raises:
        ValueError: if the iterations are not whole chunks.
        DataError: if a data set is unknown, absent or damaged.
    """
    check_chunks(PES, config)
    tasks = sets.evolved_train([data.load(of) for of in images])
    validation = sets.varied_validation(data.load(images[0]), load_text(text))
    return Recipe(
        trainer=PES(OPTIMIZERS[name].learned, tuple(tasks), config),
        complete=lambda theta: theta,
        validation=validation,
        about=(
            f"- **Data**: training splits of {' and '.join(images)}, in grey; text of validation tasks: {text}.",
            f"- **Meta-training tasks**: {'; '.join(t.name for t in tasks)}.",
            f"- **Validation tasks**: {'; '.join(t.name for t in validation)}. No task of `sets.meta_test`, no "
            "network of Fig. 3 or Fig. 10 took part.",
            f"- **Differences from the paper**: {OPTIMIZERS[name].differs}; meta-trained on small networks "
            "for minutes, not on the paper's for days.",
        ),
        options=_options(images=(" ".join(images), "mnist cifar10_15k"), text=(text, "wikitext2")),
    )


def make_weights(
    name: str, recipe: Recipe, out: Path, selection: Selection, report: Callable[[dict], None] = lambda row: None
) -> Path:
    """Meta-train and write `<name>.safetensors`, its card `<name>.md` and its log `<name>.csv` into `out`.

    Everything that happens is kept in `out`, and a run that was stopped goes on where it was. Each file is whole or not
    there.

    Args:
        name: a key of `registry.OPTIMIZERS`.
        recipe: how its weights are made.
        out: the run's folder.
        selection: how a snapshot is chosen afterwards.
        report: called with each row of the log.

    Returns:
        The weights file.

    Raises:
        ValueError: if `out` holds another run.
        store.StoreError: if another process meta-trains into `out`, or a file is damaged or cannot be written.
    """
    path = out / f"{name}.safetensors"
    with opened(out, identity(recipe.trainer)) as folder:
        _, log = run(recipe.trainer, folder, report)
        tried, thetas = select(name, recipe, out, selection)
        best = tried.loc[tried.score.idxmin()]
        save_weights(path, thetas[best.name], name, iteration=str(best.iteration))
        store.write(path.with_suffix(".csv"), pd.DataFrame(log).to_csv(index=False, float_format="%.6g"))
        store.write(path.with_suffix(".md"), write_card(name, recipe, selection, log, tried))
    return path


def select(name: str, recipe: Recipe, out: Path, selection: Selection) -> tuple[pd.DataFrame, list[Theta]]:
    """Score a run's last snapshots on the validation tasks: rows (snapshot, iteration, score, <task> …), and all θ."""
    paths = sorted(out.glob(SNAPSHOTS), key=iteration_of)[-selection.snapshots :]
    like = jax.eval_shape(lambda: recipe.trainer.start().theta)
    try:
        thetas = [recipe.complete(store.load_tree(path, like)) for path in paths]
    except store.StoreError as error:
        remedy = f"Delete it to choose among the others, or {out} to start again."
        raise store.StoreError(f"{error}\nA snapshot cannot be compared. {remedy}") from error
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *thetas)
    # All snapshots in one program: the "rate" is a snapshot's number.
    contender = Contender(name, OPTIMIZERS[name].learned.make, tuple(range(len(paths))), stacked)
    every = int(np.gcd.reduce(selection.marks))
    scores = {}
    for task in recipe.validation:
        runs = train(task, contender, seeds=selection.seeds, steps=max(selection.marks), every=every)
        at = runs[runs.step.isin(selection.marks)]
        scores[task.name] = at.groupby("rate").train_loss.agg(lambda v: np.log(v.to_numpy()).mean())  # NaN stays NaN
    tried = pd.DataFrame(scores).fillna(np.inf)
    tried.insert(0, "score", tried.mean(axis=1))
    tried.insert(0, "iteration", list(map(iteration_of, paths)))
    tried.insert(0, "snapshot", [path.name for path in paths])
    store.write(out / "selection.csv", tried.to_csv(index=False))
    return tried, thetas


def write_card(name: str, recipe: Recipe, selection: Selection, log: list[dict], tried: pd.DataFrame) -> str:
    """The card: what these weights are and how they came, in Markdown."""
    config = recipe.trainer.config
    best = tried.loc[tried.score.idxmin()]
    curve = pd.DataFrame(log).drop(columns="seconds").iloc[np.unique(np.linspace(0, len(log) - 1, 16).astype(int))]
    lines = [
        f"# {name}",
        "",
        f"- **Command**: `{command(name, recipe, selection)}`",
        *recipe.about,
        f"- **Meta-training**: {type(recipe.trainer).__name__}, `{json.dumps(asdict(config))}`",
        f"- **Snapshot**: iteration {int(best.iteration)}, chosen among the last {len(tried)} by mean log training "
        f"loss at steps {', '.join(map(str, selection.marks))} on the validation tasks, seeds {list(selection.seeds)}.",
        f"- **Time**: {sum(row['seconds'] for row in log) / 60:.0f} minutes on {device()}.",
        f"- **Versions**: {versions()}.",
        f"- **Seed**: {config.seed}. One meta-seed; another may do better or worse.",
        "- **Licence**: Apache-2.0, as the package.",
        "",
        "## Meta-training curve",
        "",
        f"Means over {recipe.trainer.chunk} iterations.",
        "",
        *_table(curve),
        "",
        "## Choice of the snapshot",
        "",
        "Mean log training loss on the validation tasks.",
        "",
        *_table(tried[["iteration", "score"]]),
        "",
    ]
    return "\n".join(lines)


STANDARDS = {
    MetaConfig: ("meta-train {}", MetaConfig(), Selection()),
    SearchConfig: ("search {}", SearchConfig(), VARIED),
    PESConfig: ("evolve {}", PESConfig(), VARIED),
}
"""By the kind of configuration: the command, and what it takes where nothing is said."""


def command(name: str, recipe: Recipe, selection: Selection) -> str:
    """The shell command that makes these weights: flags for what is not a default."""
    config = recipe.trainer.config
    words, standard, usual = STANDARDS[type(config)]
    given = [*flags(config, standard), *flags(selection, usual, "selection.")]
    return " ".join([f"python -m mnemosyne {words.format(name)}", *recipe.options, *given])


def flags(chosen: Any, standard: Any, prefix: str = "") -> list[str]:
    """Command-line flags for the fields of a configuration that differ from a standard one."""
    text = lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else str(v)
    pairs = [(k, v) for k, v in asdict(chosen).items() if v != asdict(standard)[k]]
    return [f"--{prefix}{k.replace('_', '-')} {text(v)}" for k, v in pairs]


def _options(**chosen: tuple[str, str]) -> tuple[str, ...]:
    """Flags of the command for what is not a default: name → (value, default)."""
    return tuple(f"--{name} {value}" for name, (value, default) in chosen.items() if value != default)


def _table(rows: pd.DataFrame) -> list[str]:
    """Lines of a Markdown table."""
    head = f"| {' | '.join(rows.columns)} |"
    return [head, "|---" * len(rows.columns) + "|"] + [
        f"| {' | '.join(f'{v:.4g}' for v in row)} |" for row in rows.itertuples(index=False)
    ]


def _list(members) -> str:
    return "; ".join(f"{spec}{f' on images pooled by {f}' if f > 1 else ''}" for spec, f in members)
