import jax
import numpy as np
import pytest

from mnemosyne.tasks.classification import MLPSpec, classify
from mnemosyne.tasks.models.transformer import count
from mnemosyne.tasks.standins import bert, described, pretrain, t5, vit


def shapes_of(standin):
    return jax.eval_shape(standin.task.init, jax.random.key(0))


def test_a_vit_has_the_size_it_is_asked_for(digits):
    standin = vit(digits, size=(4, 64), patch=2)
    params = shapes_of(standin)
    assert params["head"]["kernel"].shape == (64, 10)
    assert params["positions"].shape == (17, 64)
    assert [name for name in params if name.startswith("layer_")] == [f"layer_{i}" for i in range(4)]
    assert 200_000 < count(params) < 210_000
    assert described(standin.module) == "vit 4x64 patch 2"
    assert standin.task.name == "vit 4x64 patch 2 digits"
    with pytest.raises(ValueError, match="patches of 3 do not tile images of side 8"):
        shapes_of(vit(digits, size=(2, 8), patch=3))


@pytest.mark.parametrize("make", [bert, t5])
def test_a_language_model_learns_its_pieces_from_its_text(make):
    standin = make("synthetic", size=(2, 8), length=16, batch_size=4)
    assert standin.module.vocabulary == standin.tokenizer.get_vocab_size()
    tokens = standin.tokenizer.encode("these bold cats chase a dog.").tokens
    assert {"these", "bold", "a", "dog"} <= set(tokens)
    assert not {"[UNK]", "<unk>"} & set(tokens)
    assert standin.task.name == ("bert 2x8 synthetic" if make is bert else "t5 1x8 synthetic")
    params = shapes_of(standin)
    batch = jax.eval_shape(standin.task.batch, standin.task.data, jax.random.key(0))
    assert jax.eval_shape(standin.task.loss, params, batch).shape == ()
    assert count(params) > 8 * standin.module.vocabulary


def test_pre_training_learns_and_follows_the_seed(digits):
    task = classify(digits, MLPSpec((16,), "relu"))
    (params, measured), (again, _) = (pretrain(task, steps=300, seed=0) for _ in range(2))
    assert measured["accuracy"] > 0.5
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert np.array_equal(a, b)
    assert np.isclose(jax.jit(task.metrics)(params, task.data)["loss"], measured["loss"], rtol=1e-5)
