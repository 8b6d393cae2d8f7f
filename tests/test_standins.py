import jax
import numpy as np
import pytest

from mnemosyne.tasks.attention import count, shapes
from mnemosyne.tasks.classify import MLPSpec, classify
from mnemosyne.tasks.data import pool
from mnemosyne.tasks.standins import VIT, pretrain, vit_task


def test_the_vit_is_small_enough_to_be_kept(digits):
    task = vit_task(digits)
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert params["head"]["kernel"].shape == (64, 10)
    assert jax.tree.structure(params) == jax.tree.structure(shapes(VIT))
    assert 200_000 < count(shapes(VIT)) < 300_000  # below 1.2 MB in float32
    with pytest.raises(ValueError, match="patches of 4 do not tile images of side 2"):
        jax.eval_shape(vit_task(pool(digits, 4)).init, jax.random.key(0))


def test_pre_training_learns_and_follows_the_seed(digits):
    task = classify(digits, MLPSpec((16,), "relu"))
    (params, measured), (again, _) = (pretrain(task, steps=300, seed=0) for _ in range(2))
    assert measured["accuracy"] > 0.5
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert np.array_equal(a, b)
    assert np.isclose(jax.jit(task.metrics)(params, task.data)["loss"], measured["loss"], rtol=1e-5)
