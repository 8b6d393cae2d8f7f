"""Which networks meta-training sees, which choose among its snapshots, and which are kept unseen."""

from collections.abc import Sequence

from mnemosyne.tasks import further, suite
from mnemosyne.tasks.classification import MLPSpec, ViTSpec, classify
from mnemosyne.tasks.data.images import Dataset, pool, resize
from mnemosyne.tasks.data.text import Text
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

# For rules that see tensors as wholes: of 10 to 100,352 elements, where those above end at 18,816.
TENSOR_TRAIN = (
    (MLPSpec((128,), "relu"), 1),
    (MLPSpec((40, 24), "sigmoid"), 2),
    (ViTSpec(layers=2, heads=2, hidden=32, head_dim=16, mlp=96), 1),
    (ViTSpec(layers=4, heads=3, hidden=20, head_dim=8, mlp=40), 1),
)

FIG10 = (
    MLPSpec((20,), "sigmoid"),
    MLPSpec((20, 20), "sigmoid"),
    MLPSpec((40,), "sigmoid"),
    MLPSpec((20,), "relu"),
)


def held_out_vit(patch: int, layers: int = 3) -> ViTSpec:
    """The ViT of Fig. 3: three layers of attention and MLP of size 16, two heads. Or a deeper one."""
    return ViTSpec(layers=layers, heads=2, hidden=16, head_dim=8, mlp=16, patch=patch)


def build(members: Sequence, data: Dataset) -> list[Task]:
    """Make tasks of (spec, pooling factor) pairs on one data set, sharing each pooled copy."""
    pooled = {factor: pool(data, factor) if factor > 1 else data for factor in {f for _, f in members}}
    return [classify(pooled[factor], spec) for spec, factor in members]


def ablation(images: Dataset, n: int) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Make n small networks to meta-train an ablation's variants on and n, of other shapes, to measure them on.

    Of the kinds of App. B.1 but smaller, since there are dozens of variants: MLPs to learn on; an MLP and a ViT to be
    measured on. Images are pooled to 7×7 or 8×8 pixels, for a ViT, which sees them in four patches, to 14×14 or 8×8.
    """
    low, middle = suite.small(images, 7), suite.small(images, 8)
    vit = ViTSpec(layers=1, heads=2, hidden=12, head_dim=6, mlp=16, patch=middle.train.images.shape[1] // 2)
    train = [classify(low, MLPSpec((10,), "sigmoid")), classify(low, MLPSpec((8, 8), "relu"))]
    held_out = [classify(low, MLPSpec((12,), "relu")), classify(middle, vit)]
    return tuple(train[:n]), tuple(held_out[:n])


# Three more sets, for an optimizer that is to serve more than the paper's networks. They are kept apart as their
# names say: weights are learned on the first, chosen on the second, and measured on the third, which is looked at
# once per release of weights. No task is in two sets; images and text should differ as well, e.g. MNIST and WikiText to
# train on, Fashion-MNIST and Shakespeare to test on. What earlier releases failed on there has told which kinds of
# tasks to add to the first, so a younger set, `release_test`, was written down after that.


def varied_train(images: Dataset, text: Text) -> list[Task]:
    """Make the tasks to meta-train a robust optimizer on: fifteen, of 300 to 3,200 parameters on 28×28 images."""
    low, tiled = suite.small(images, 7), suite.small(images, 16)
    return [
        suite.mlp(low, (20,), "tanh", batch_size=32),
        suite.mlp(low, (16, 16, 16), "relu"),
        suite.mlp(low, (12,) * 6, "gelu", batch_size=32),
        suite.mlp(low, (24,), "sigmoid", batch_size=16),
        suite.mlp(low, (20,), "silu", batch_size=2),
        suite.conv(low, (6, 8), "relu", batch_size=32),
        suite.conv(low, (4, 6), "gelu", batch_size=4),
        suite.reparametrised(suite.mlp(low, (16,), "silu", batch_size=32), 0.03),
        suite.reparametrised(suite.mlp(low, (14, 14), "tanh", batch_size=32), 10.0),
        suite.autoencoder(low, (16, 6, 16), "tanh", batch_size=32),
        suite.vit(tiled, layers=1, heads=2, hidden=12, head_dim=6, mlp=24, batch_size=16),
        suite.recurrent(text, hidden=12, embedding=8, length=16),
        suite.attentive(text, layers=1, heads=2, hidden=12, mlp=24, length=16),
        suite.regression(10, (24,), "silu", seed=1, batch_size=32),
        suite.ill_conditioned(1e3, inputs=30, seed=1, batch_size=32),
    ]


def hard_train(images: Dataset, text: Text) -> list[Task]:
    """Make the tasks to search a law on that holds in the worst case: those of `varied_train` and eleven more.

    Batches of one, many layers, deeper Transformers, wide layers, strongly curved problems, and examples that can be
    known by heart.
    """
    low, tiled = suite.small(images, 7), suite.small(images, 16)
    return [
        *varied_train(images, text),
        suite.mlp(low, (16,), "gelu", batch_size=1),
        suite.mlp(low, (20,), "tanh", batch_size=1),
        suite.mlp(low, (12,) * 10, "tanh", batch_size=32),
        suite.mlp(low, (12,) * 9, "relu", batch_size=32),
        suite.vit(tiled, layers=4, heads=1, hidden=12, head_dim=12, mlp=24, batch_size=16),
        suite.attentive(text, layers=2, heads=2, hidden=16, mlp=32, length=16),
        suite.mlp(low, (256,), "silu", batch_size=32),
        suite.ill_conditioned(2e4, inputs=24, seed=3, batch_size=128),
        suite.regression(8, (16,), "relu", seed=4, batch_size=256),
        suite.by_heart(low, 256, (20,), "relu", batch_size=64),
        suite.by_heart(low, 128, (16, 16), "silu", batch_size=16),
    ]


def evolved_train(images: Sequence[Dataset]) -> list[Task]:
    """Make the tasks to meta-train by evolution on: of each data set, in grey, an MLP on 8×8 pixels and on 14×14."""
    tasks = []
    for of in images:
        low, middle = (resize(of, side, 1) for side in (8, 14))
        for task in (suite.mlp(low, (32,), "relu"), suite.mlp(middle, (10,), "tanh")):
            tasks.append(task._replace(name=f"{task.name} on {of.name}"))
    return tasks


def varied_validation(images: Dataset, text: Text) -> list[Task]:
    """Make the tasks to choose weights on: the kinds of `varied_train` in other sizes."""
    low, tiled = suite.small(images, 7), suite.small(images, 16)
    return [
        suite.mlp(low, (28,), "silu"),
        suite.mlp(low, (14,) * 4, "tanh"),
        suite.mlp(low, (16,), "relu", batch_size=3),
        suite.reparametrised(suite.mlp(low, (20,), "gelu"), 0.1),
        suite.conv(low, (8, 12), "gelu"),
        suite.vit(tiled, layers=2, heads=2, hidden=8, head_dim=4, mlp=16, batch_size=32),
        suite.recurrent(text, hidden=16, embedding=8, length=24, batch_size=24),
        suite.ill_conditioned(3e3, inputs=40, seed=2),
    ]


def meta_test(images: Dataset, text: Text) -> list[Task]:
    """Make the tasks that released weights are measured on, far from one another and from those they learned on."""
    low, middle, tiled = (suite.small(images, side) for side in (7, 14, 16))
    plain = suite.mlp(middle, (20,), "relu")
    return [
        suite.conv(middle, (8, 16), "relu"),
        suite.recurrent(text, hidden=32, embedding=16),
        suite.attentive(text, layers=1, heads=2, hidden=24, mlp=32),
        suite.vit(tiled, layers=3, heads=2, hidden=16, head_dim=8, mlp=16, batch_size=32),
        suite.autoencoder(low, (32, 8, 32), "elu"),
        suite.mlp(middle, (16,) * 12, "tanh"),
        suite.mlp(low, (512,), "relu"),
        suite.mlp(middle, (), "relu"),
        suite.regression(16, (48, 24), "gelu"),
        suite.diabetes((32, 16), "silu"),
        suite.ill_conditioned(1e4),
        suite.scaled(plain, 1e-6),
        suite.scaled(plain, 1e6),
        suite.reparametrised(plain, 0.01),
        suite.mlp(low, (24,), "relu", batch_size=1),
        suite.mlp(low, (24,), "relu", batch_size=512),
    ]


def release_test(images: Dataset, text: Text) -> list[Task]:
    """Make the tasks that a release of weights is looked at on once: kinds and data that no other set has.

    The present weights of `slim` were made after a first look, with those of an earlier release. Its rule for size came
    after a second one; it concerns the residual network alone, which has more than 20,000 elements.
    """
    low, middle = suite.small(images, 8), suite.small(images, 16)
    return [
        further.mosaic(images),
        further.factorisation(),
        further.window(text),
        further.dilated(text),
        further.residuals(low),
        further.mixer(middle),
        further.rows(middle),
        further.variational(low),
        further.contrastive(low),
        further.mislabelled(low),
        further.absolute(),
        further.tumours(),
        further.wines(),
    ]
