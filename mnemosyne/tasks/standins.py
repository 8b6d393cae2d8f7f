"""Small models pre-trained here, in the place of public ones that nothing downloads (paper Fig. 4–9, 16, 17).

fashion = load("fashion_mnist")
params, measured = pretrain(vit_task(fashion), steps=3_000, seed=0)
save_checkpoint(folder, VISION_NAMES, params)
mnist = resize(load("mnist"), side=28, channels=1)
task = classifier("last layer", VIT.clone(side=28), mnist, batch_size=128)  # see `regimes.trained_part`
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mnemosyne.tasks.classify import classifier
from mnemosyne.tasks.data import Dataset
from mnemosyne.tasks.vision import VisionTransformer
from mnemosyne.types import Params, Scalar, Task

VIT = VisionTransformer(layers=4, heads=4, hidden=64, mlp_dim=256, patch=4, side=28, classes=10)
"""204 thousand parameters on grey images of side 28: the stand-in for ViT-B/16 and larger."""

RATE = 1e-3
"""Adam's largest learning rate; it rises over a tenth of the steps and falls to zero by a cosine."""


def vit_task(images: Dataset, batch_size: int = 128) -> Task:
    """The stand-in's pre-training: classify images as large as they are.

    Raises:
        ValueError: if patches of 4 do not tile them.
    """
    module = VIT.clone(side=images.train.images.shape[1], classes=images.classes)
    return classifier(f"vit {module.layers}x{module.hidden} {images.name}", module, images, batch_size)


def pretrain(task: Task, steps: int, seed: int) -> tuple[Params, dict[str, Scalar]]:
    """Train a task once by Adam with a schedule, in one compiled program, and keep the parameters.

    Args:
        task: such as `vit_task`, `corpora.masked_lm` or `corpora.span_corruption`.
        steps: training steps.
        seed: of the initialisation and the batches.

    Returns:
        The parameters, and the task's metrics with them.
    """
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 10, steps))

    def run(key: Array, data) -> tuple[Params, dict[str, Scalar]]:
        init_key, batch_key = jax.random.split(key)

        def step(carry, t):
            params, state = carry
            gradient = jax.grad(task.loss)(params, task.batch(data, jax.random.fold_in(batch_key, t)))
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = task.init(init_key)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
        return params, task.metrics(params, data)

    return jax.jit(run)(jax.random.key(seed), task.data)
