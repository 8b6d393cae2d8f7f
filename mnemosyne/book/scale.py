"""Scales: the same notebooks from a laptop's minutes to a TPU's days, as one dataclass of sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Scale:
    """How large the experiments are. Every figure's title and every result names its scale."""

    name: str
    data: str  # the image data set, see `tasks.data.NAMES`
    patch: int  # side of a ViT's patches in pixels
    seeds: int  # independent runs of everything random
    steps: int  # of a long training run
    marks: tuple[int, ...]  # steps at which runs are compared; the last is at most `steps`
    every: int  # steps between evaluations on validation data; divides every mark
    meta_iterations: int  # of a live meta-training run
    short_steps: int  # of a training run that is costly by the step
    pictures: tuple[str, ...]  # data sets of Fig. 3 a, b, c, as far as the scale has them
    known_text: str  # text of the kind that meta-training has seen, as `data` is of images
    unseen: tuple[str, str]  # images and text that no meta-training has seen
    fresh: tuple[str, str]  # images and text of the tasks that a release is looked at on
    every_task: int  # one in so many of the meta-test tasks is run
    draws: int  # of random projections, per seed and point of a Monte Carlo estimate
    trials: int  # of a random retrieval, per seed and cell
    one_in: int  # one in so many values of an ablation's sweep is run
    ablation_iterations: int  # meta-steps of each variant
    ablation_seeds: int  # meta-seeds of each variant
    ablation_tasks: int  # networks to meta-train on, and as many to measure on
    ablation_steps: int  # of a network that a meta-trained variant is measured on
    evolution_steps: int  # meta-steps of an optimizer that evolves on one task
    evolution_horizon: int  # steps of a network that it learns on, and is measured on
    samples: int  # settings of a random search
    prompt_steps: int  # of Adam, when a Transformer is trained on prompts
    prompt_batch: int  # prompts that it is trained on at a time
    prompts: int  # fresh ones that it is measured on, for each seed
    standin: tuple[int, int]  # layers and width of the Transformers that are pre-trained here
    pretrain_steps: int  # that they are pre-trained for
    pretrained_on: str  # images
    fine_tuned_on: tuple[str, ...]  # images of other classes
    fine_tune_steps: int  # where more than a last layer is trained
    books: str  # text that language models are trained on
    questions: tuple[str, ...]  # what a soft prompt is tuned for, see `tasks.superglue.load_rows`
    language_model: tuple[int, int]  # layers and width of a Transformer that takes minutes to train
    residual_width: int  # channels of the first stage of a ResNet-18
    large_seeds: int  # independent runs of these, the first of `seeds`
    judges: bool  # whether an empirical claim can be judged; else small data show that everything runs


QUICK = Scale(
    name="quick",
    data="digits",
    patch=2,
    seeds=3,
    steps=500,
    marks=(100, 300, 500),
    every=20,
    meta_iterations=20,
    short_steps=300,
    pictures=("digits",),
    known_text="synthetic",
    unseen=("digits", "synthetic"),
    fresh=("digits", "synthetic"),
    every_task=8,
    draws=20_000,
    trials=40,
    one_in=3,
    ablation_iterations=20,
    ablation_seeds=2,
    ablation_tasks=1,
    ablation_steps=100,
    evolution_steps=20,
    evolution_horizon=100,
    samples=4,
    prompt_steps=40,
    prompt_batch=100,
    prompts=1_000,
    standin=(3, 32),
    pretrain_steps=100,
    pretrained_on="digits_low",
    fine_tuned_on=("digits_high",),
    fine_tune_steps=40,
    books="synthetic",
    questions=("synthetic",),
    language_model=(1, 32),
    residual_width=8,
    large_seeds=2,
    judges=False,
)
LAPTOP = Scale(
    name="laptop",
    data="mnist",
    patch=7,
    seeds=5,
    steps=5_000,
    marks=(100, 200, 300, 1_000, 5_000),
    every=50,
    meta_iterations=300,
    short_steps=1_000,
    pictures=("mnist", "cifar10_15k", "cifar100_10k"),
    known_text="wikitext2",
    unseen=("fashion_mnist", "shakespeare"),
    fresh=("cifar10_15k", "gutenberg"),
    every_task=1,
    draws=400_000,
    trials=400,
    one_in=1,
    ablation_iterations=300,
    ablation_seeds=3,
    ablation_tasks=2,
    ablation_steps=300,
    evolution_steps=5_000,
    evolution_horizon=1_000,
    samples=32,
    prompt_steps=2_000,
    prompt_batch=1_000,
    prompts=20_000,
    standin=(4, 64),
    pretrain_steps=3_000,
    pretrained_on="fashion_mnist",
    fine_tuned_on=("mnist", "cifar100_10k"),
    fine_tune_steps=300,
    books="gutenberg",
    questions=("copa", "wic"),
    language_model=(6, 384),
    residual_width=16,
    large_seeds=3,
    judges=True,
)
PAPER = replace(
    LAPTOP,
    name="paper",
    patch=4,
    seeds=10,
    steps=10_000,
    marks=(100, 200, 300, 1_000, 10_000),
    meta_iterations=5_000,
    short_steps=5_000,
    pictures=("mnist", "cifar10", "cifar100"),
    fresh=("cifar10", "gutenberg"),
    draws=4_000_000,
    trials=4_000,
    ablation_iterations=2_000,
    ablation_seeds=5,
    ablation_steps=1_000,
    evolution_steps=100_000,
    evolution_horizon=2_000,
    samples=1_000,
    prompt_steps=30_000,
    prompts=100_000,
    standin=(12, 256),
    pretrain_steps=30_000,
    fine_tuned_on=("mnist", "cifar10", "cifar100"),
    fine_tune_steps=5_000,
    questions=("cb", "copa", "rte", "wic"),
    language_model=(12, 768),
    residual_width=64,
)

SCALES = {s.name: s for s in (QUICK, LAPTOP, PAPER)}


def scale_named(name: str) -> Scale:
    """Look a scale up by name; a ValueError lists those there are."""
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}; choose one of {', '.join(SCALES)}")
    return SCALES[name]


def resized(scale: Scale, sizes: Mapping[str, int], own: Mapping[str, int]) -> tuple[Scale, dict[str, int]]:
    """A scale with some of its whole numbers changed, and which: {name: size}. A size of 0 leaves one as it is.

    The scale's name tells what was changed, so that what it computes lies apart: 'laptop-steps-200'. Runs are compared
    at the marks that are left, and at their end.

    Args:
        scale: to start from.
        sizes: by their names in `Scale`.
        own: sizes that a notebook alone has; those that are not 0 count as changed.

    Raises:
        ValueError: a name that is no whole number of a scale, or a size that is not one.
    """
    known = [f.name for f in fields(Scale) if f.type is int]
    for name, size in [*sizes.items(), *own.items()]:
        if name not in own and name not in known:
            raise ValueError(f"no size {name!r} to change; a scale has {', '.join(known)}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"{name} must be a whole number ≥ 1, or 0 for the usual one, got {size!r}")
    changed = {name: size for name, size in sizes.items() if size and size != getattr(scale, name)}
    marks = scale.marks
    if "steps" in changed:
        marks = (*(m for m in marks if m < changed["steps"]), changed["steps"])
    told = changed | {name: size for name, size in own.items() if size}
    name = "-".join([scale.name, *(f"{n}-{size}" for n, size in told.items())])
    return replace(scale, **changed | {"name": name, "marks": marks}), told
