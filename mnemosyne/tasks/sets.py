"""Which networks meta-training sees, which choose among its snapshots, and which are kept unseen."""

from collections.abc import Sequence

from mnemosyne.tasks.classify import MLPSpec, ViTSpec, classify
from mnemosyne.tasks.data import Dataset, pool
from mnemosyne.types import Task

# Drawn by hand from the ranges of App. B.1: 1–2 hidden layers of 20–40 units, sigmoid or ReLU; 1–3 attention
# layers, 1–3 heads, hidden and MLP sizes 16–64, head size 8–16. The number is the factor images are pooled by:
# two MLPs see 14×14 pixels, so that meta-training fits a laptop.
META_TRAIN = (
    (MLPSpec((24,), "sigmoid"), 1),
    (MLPSpec((20, 28), "relu"), 2),
    (MLPSpec((36,), "sigmoid"), 2),
    (ViTSpec(layers=1, heads=1, hidden=24, head_dim=16, mlp=32), 1),
    (ViTSpec(layers=2, heads=3, hidden=16, head_dim=8, mlp=48), 1),
    (ViTSpec(layers=3, heads=1, hidden=20, head_dim=16, mlp=24), 1),
)

META_VALIDATION = (
    (MLPSpec((32,), "sigmoid"), 1),
    (MLPSpec((24, 32), "sigmoid"), 1),
    (MLPSpec((28,), "relu"), 1),
    (ViTSpec(layers=2, heads=2, hidden=24, head_dim=8, mlp=32), 1),
)

FIG10 = (
    MLPSpec((20,), "sigmoid"),
    MLPSpec((20, 20), "sigmoid"),
    MLPSpec((40,), "sigmoid"),
    MLPSpec((20,), "relu"),
)


def held_out_vit(patch: int) -> ViTSpec:
    """The ViT of Fig. 3: three layers of attention and MLP of size 16, two heads."""
    return ViTSpec(layers=3, heads=2, hidden=16, head_dim=8, mlp=16, patch=patch)


def build(members: Sequence, data: Dataset) -> list[Task]:
    """Make tasks of (spec, pooling factor) pairs on one data set, sharing each pooled copy."""
    pooled = {factor: pool(data, factor) if factor > 1 else data for factor in {f for _, f in members}}
    return [classify(pooled[factor], spec) for spec, factor in members]
