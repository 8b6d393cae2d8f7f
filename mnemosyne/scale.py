"""Scales: the same notebooks from a laptop's two minutes to a TPU's days, as one dataclass of sizes."""

from dataclasses import dataclass


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
    vit_steps: int  # of a ViT's training run
    draws: int  # of random projections, per seed and point of a Monte Carlo estimate
    trials: int  # of a random retrieval, per seed and cell


QUICK = Scale("quick", "digits", 2, 3, 500, (100, 300, 500), 20, 100, 300, 20_000, 40)
LAPTOP = Scale("laptop", "mnist", 7, 5, 5_000, (100, 300, 1_000, 5_000), 50, 1_500, 1_000, 400_000, 400)
PAPER = Scale("paper", "mnist", 4, 10, 10_000, (100, 300, 1_000, 10_000), 50, 5_000, 5_000, 4_000_000, 4_000)

SCALES = {s.name: s for s in (QUICK, LAPTOP, PAPER)}


def scale_named(name: str) -> Scale:
    """Look a scale up by name; a ValueError lists those there are."""
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}; choose one of {', '.join(SCALES)}")
    return SCALES[name]
