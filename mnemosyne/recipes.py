"""From a name to shipped weights: meta-train, choose a snapshot on validation tasks, write the card."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from mnemosyne import store
from mnemosyne.coordinate import COORDINATE, LIGHT, Config, coordinate_rule
from mnemosyne.evaluate import Contender, train
from mnemosyne.metatrain import MetaConfig, meta_train
from mnemosyne.optimizer import mnemosyne
from mnemosyne.provenance import device, versions
from mnemosyne.tasks import data, sets
from mnemosyne.zoo import save_weights

RULES: dict[str, Config] = {"coordinate": COORDINATE, "light": LIGHT}


@dataclass(frozen=True)
class Selection:
    """How a snapshot is chosen: the lowest mean of log training loss over validation tasks and marks."""

    marks: tuple[int, ...] = (100, 300)  # training steps at which losses count
    seeds: tuple[int, ...] = (0,)
    snapshots: int = 8  # the last so many, 100 iterations apart


def make_weights(
    name: str,
    out: Path,
    *,
    meta: MetaConfig,
    selection: Selection,
    dataset: str = "mnist",
    report: Callable[[dict], None] = lambda row: None,
) -> Path:
    """Meta-train the rule `name` and write `<name>.safetensors`, its card `<name>.md` and its log `<name>.csv`
    into `out`.

    Everything that happens is kept in `out`, and a run that was stopped goes on where it was.

    Args:
        name: a key of `RULES`.
        out: the run's folder.
        meta: what meta-training does.
        selection: how a snapshot is chosen afterwards.
        dataset: images of meta-training and of the choice.
        report: called with each row of the log.

    Returns:
        The weights file.
    """
    images = data.load(dataset)
    rule = coordinate_rule(RULES[name])
    _, log = meta_train(rule, sets.build(sets.META_TRAIN, images), meta, folder=out, report=report)
    tried = select(name, out, images, selection)
    best = tried.loc[tried.score.idxmin()]
    theta = store.load_tree(out / best.snapshot, jax.eval_shape(rule.init, jax.random.key(0)))
    path = out / f"{name}.safetensors"
    save_weights(path, theta, RULES[name], iteration=str(best.iteration), dataset=dataset)
    pd.DataFrame(log).to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
    path.with_suffix(".md").write_text(write_card(name, meta, selection, dataset, log, tried))
    return path


def select(name: str, out: Path, images: data.Dataset, selection: Selection) -> pd.DataFrame:
    """Score a run's last snapshots on the validation tasks: rows (snapshot, iteration, score, <task> …)."""
    config = RULES[name]
    like = jax.eval_shape(coordinate_rule(config).init, jax.random.key(0))
    paths = sorted(out.glob("theta-*.safetensors"))[-selection.snapshots :]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *(store.load_tree(path, like) for path in paths))
    # All snapshots in one program: the "rate" is a snapshot's number.
    contender = Contender(
        name, lambda i: mnemosyne(jax.tree.map(lambda a: a[i], stacked), config), tuple(range(len(paths)))
    )
    every = int(np.gcd.reduce(selection.marks))
    scores = {}
    for task in sets.build(sets.META_VALIDATION, images):
        runs = train(task, contender, seeds=selection.seeds, steps=max(selection.marks), every=every)
        at = runs[runs.step.isin(selection.marks)]
        scores[task.name] = at.groupby("rate").train_loss.agg(lambda v: np.log(v.to_numpy()).mean())  # NaN stays NaN
    tried = pd.DataFrame(scores).fillna(np.inf)
    tried.insert(0, "score", tried.mean(axis=1))
    tried.insert(0, "iteration", [int(path.stem.split("-")[1]) for path in paths])
    tried.insert(0, "snapshot", [path.name for path in paths])
    tried.to_csv(out / "selection.csv", index=False)
    return tried


def write_card(
    name: str, meta: MetaConfig, selection: Selection, dataset: str, log: list[dict], tried: pd.DataFrame
) -> str:
    """The card: what these weights are and how they came, in Markdown."""
    best = tried.loc[tried.score.idxmin()]
    curve = [log[i] for i in np.unique(np.linspace(0, len(log) - 1, 16).astype(int))]
    reached = log[-1]["iteration"]
    stopped = [
        f"- **Stopped** at iteration {reached} of {meta.iterations}; the learning rate's schedule is the whole's."
    ]
    lines = [
        f"# {name}",
        "",
        f"Weights of a coordinate-wise Mnemosyne, {RULES[name]}.",
        "",
        f"- **Command**: `{command(name, meta)}`",
        f"- **Data**: {dataset}, training split without its 5,000 validation images; batches of 64.",
        f"- **Meta-training tasks**: {_list(sets.META_TRAIN)}.",
        f"- **Meta-training**: `{json.dumps(asdict(meta))}`",
        f"- **Snapshot**: iteration {int(best.iteration)}, chosen among the last {len(tried)} by mean log training "
        f"loss at steps {', '.join(map(str, selection.marks))} on validation tasks {_list(sets.META_VALIDATION)}, "
        f"seeds {list(selection.seeds)}. No network of Fig. 3 or Fig. 10 took part.",
        *(stopped if reached < meta.iterations else []),
        f"- **Time**: {sum(row['seconds'] for row in log) / 60:.0f} minutes on {device()}.",
        f"- **Versions**: {versions()}.",
        f"- **Seed**: {meta.seed}. One meta-seed; another may do better or worse.",
        "- **Differences from the paper**: odd by construction (u(−g) = −u(g)); each tensor's gradient is divided by "
        "its running size; tasks weighed by what the expert's updates are worth to each; expert rate and meta-rate as "
        "above (the paper: 3e-2 and 3e-4).",
        "- **Licence**: Apache-2.0, as the package.",
        "",
        "## Meta-training curve",
        "",
        "Mean loss of the optimizees in a window, over all tasks and phases of the horizon; mean over 20 windows.",
        "",
        "| iteration | loss | imitation | meta-gradient norm | failed runs |",
        "|---|---|---|---|---|",
        *(
            f"| {r['iteration']} | {r['loss']:.4f} | {r['imitation']:.4f} | {r['gradient_norm']:.3f} "
            f"| {r['failed']:.2f} |"
            for r in curve
        ),
        "",
        "## Choice of the snapshot",
        "",
        "Mean log training loss on the validation tasks.",
        "",
        "| iteration | score |",
        "|---|---|",
        *(f"| {int(r.iteration)} | {r.score:.4f} |" for r in tried.itertuples()),
        "",
    ]
    return "\n".join(lines)


def command(name: str, meta: MetaConfig) -> str:
    """The shell command that makes these weights: flags for what is not a default."""
    standard, chosen = asdict(MetaConfig()), asdict(meta)
    flags = [f"--{k.replace('_', '-')} {v}" for k, v in chosen.items() if v != standard[k]]
    return " ".join(["python -m mnemosyne meta-train", name, *flags])


def _list(members) -> str:
    return "; ".join(f"{spec}{f' on images pooled by {f}' if f > 1 else ''}" for spec, f in members)
