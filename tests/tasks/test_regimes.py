import shutil
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from flax.traverse_util import flatten_dict

import mnemosyne
from mnemosyne.evaluate import Contender, train
from mnemosyne.optimizer.composite import hybrid
from mnemosyne.tasks.classification import classifier, last_layer
from mnemosyne.tasks.models.bert import BERT
from mnemosyne.tasks.models.checkpoints import VISION_NAMES
from mnemosyne.tasks.models.t5 import T5
from mnemosyne.tasks.models.transformer import count, shapes
from mnemosyne.tasks.models.vision import VISION, VisionTransformer
from mnemosyne.tasks.regimes import (
    ALL_BUT_TOKENS,
    EMBEDDING_AND_CLS,
    LAST_LAYER,
    LAST_TWO,
    SOFT_PROMPT,
    TOP_EIGHT,
    fine_tune,
    merge,
    regime,
    split,
    trained_part,
)
from mnemosyne.types import Task
from tests.helpers import python_blocks
from tests.tasks.models import GOLDEN, golden

TINY = VisionTransformer(layers=2, heads=2, hidden=8, mlp_dim=12, patch=4, side=8, classes=10)
LAYER = 4 * (768**2 + 768) + 2 * 768 * 3_072 + 3_072 + 768 + 4 * 768  # of B/16
PATCHES, CLS, HEAD = 16 * 16 * 3 * 768 + 768, 768, 768 * 1_000 + 1_000


def tree(name):
    if name == "xxl":
        return {"model": shapes(T5["xxl"]), "prompt": jax.ShapeDtypeStruct((30, 4_096), jnp.float32)}
    return shapes(BERT["base"] if name == "bert" else VISION["B/16"])


def numbers(labels, params):
    """How many parameters have each label."""
    sizes = {}
    for label, leaf in zip(jax.tree.leaves(labels), jax.tree.leaves(params), strict=True):
        sizes[label] = sizes.get(label, 0) + leaf.size
    return sizes


TRAINED = {
    "last layer": (LAST_LAYER, "vit", {"mnemosyne": HEAD}),
    "last two": (LAST_TWO, "vit", {"mnemosyne": 2 * LAYER + PATCHES + CLS + HEAD}),
    "soft prompt": (SOFT_PROMPT, "xxl", {"mnemosyne": 122_880, "frozen": 11_135_332_352}),
    "all but tokens": (ALL_BUT_TOKENS, "bert", {"mnemosyne": 109_514_298 - 30_522 * 768, "adam": 30_522 * 768}),
    "embedding and cls": (EMBEDDING_AND_CLS, "vit", {"mnemosyne": PATCHES + CLS, "adam": HEAD}),
    "top eight": (TOP_EIGHT, "vit", {"mnemosyne": 8 * LAYER + PATCHES + CLS + HEAD}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_regime_trains_what_the_paper_says(name):
    labels, model, wanted = TRAINED[name]
    params = tree(model)
    found = labels(params)
    sizes = numbers(found, params)
    assert {label: sizes[label] for label in wanted} == wanted
    assert sum(sizes.values()) == count(params)
    trained, frozen = split(params, found)
    assert count(trained) + count(frozen) == count(params)
    assert jax.tree.structure(merge(trained, frozen)) == jax.tree.structure(params)
    # The trained part has the labels it had in the whole.
    assert flatten_dict(labels(trained)) == {p: x for p, x in flatten_dict(found).items() if x != "frozen"}


def test_what_does_not_fit_is_refused():
    params = shapes(TINY)
    with pytest.raises(ValueError, match="trains the last 8 layers, these parameters have 2"):
        TOP_EIGHT(params)
    with pytest.raises(ValueError, match="there is no prompt among these parameters: cls, embedding, head, layer_0"):
        SOFT_PROMPT(params)
    with pytest.raises(ValueError, match=r"(?s)optimizers for 'mnemosyne', but none for\n  'adam', of \S+ for one"):
        fine_tune(LAST_TWO, {"mnemosyne": optax.sgd(1.0)}).init(params)
    with pytest.raises(ValueError, match="'frozen' parameters have no optimizer"):
        fine_tune(LAST_TWO, {"frozen": optax.sgd(1.0)})


def test_layers_are_counted_as_numbers():
    twelve = regime(top=3)(shapes(VISION["B/16"]))
    trained = {path[0] for path, label in flatten_dict(twelve).items() if label != "frozen"}
    assert trained == {"layer_9", "layer_10", "layer_11"}


@pytest.fixture(scope="module")
def task(digits):
    return classifier("tiny vit", TINY, digits, batch_size=32)


@pytest.fixture(scope="module")
def weights(task):
    rng = np.random.default_rng(0)
    start = jax.jit(task.init)(jax.random.key(0))
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), start)


def test_frozen_parameters_stay_and_have_no_state(weights):
    tx = fine_tune(LAST_LAYER, {"mnemosyne": hybrid(mnemosyne.pretrained("light"))})
    state = jax.eval_shape(tx.init, weights)
    alone = jax.eval_shape(mnemosyne.pretrained("light").init, {"kernel": jnp.zeros((8, 10))})
    sizes = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(s)) for s in (state, alone)]
    assert (
        sizes[0] == sizes[1] + 2 * 4 * 10 + 4 + 4
    )  # and Adam's moments of ten biases, its count, and that of what is not finite
    updates, _ = jax.jit(lambda g: tx.update(g, tx.init(weights), weights))(weights)
    assert {path[0] for path, u in flatten_dict(updates).items() if u.any()} == {"head"}


def test_gradients_of_the_trained_part_are_those_of_the_whole(task, weights):
    part = trained_part(task, weights, regime(mnemosyne=("head",), top=1))
    batch = jax.jit(part.batch)(part.data, jax.random.key(1))
    start = part.init(jax.random.key(0))
    loss, gradient = jax.jit(jax.value_and_grad(part.loss))(start, batch)
    whole, expected = jax.jit(jax.value_and_grad(task.loss))(weights, batch[1])
    assert np.isclose(loss, whole, rtol=1e-5)
    assert set(gradient) == {"head", "layer_1"}
    for name in gradient:
        for a, b in zip(jax.tree.leaves(gradient[name]), jax.tree.leaves(expected[name]), strict=True):
            assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def memory(task, params, batch):
    """Bytes of the gradient, and of what a gradient's computation needs besides its inputs and outputs."""
    used = jax.jit(jax.grad(task.loss)).lower(params, batch).compile().memory_analysis()
    return used.output_size_in_bytes, used.temp_size_in_bytes


def test_frozen_parameters_cost_no_gradient_memory(digits):
    model = TINY.clone(layers=4, hidden=64, mlp_dim=256)
    task = classifier("wide vit", model, digits, batch_size=32)
    params = jax.eval_shape(task.init, jax.random.key(0))
    part = trained_part(task, params, LAST_LAYER)
    batch = jax.eval_shape(part.batch, part.data, jax.random.key(0))
    gradient, temporary = memory(part, jax.eval_shape(part.init, jax.random.key(0)), batch)
    whole, whole_temporary = memory(task, params, batch[1])
    assert 4 * count(params) <= whole
    assert 4 * (64 * 10 + 10) <= gradient < 4 * (64 * 10 + 10) + 64
    assert temporary < 0.5 * whole_temporary


def test_a_last_layer_on_kept_features_is_the_trained_part(task, weights, digits):
    headless = {name: leaf for name, leaf in weights.items() if name != "head"}
    quick = last_layer("last layer", TINY, weights, digits, batch_size=32)
    part = trained_part(task, headless, LAST_LAYER)
    params = {"head": {"kernel": jnp.full((8, 10), 0.1).at[:, 3].set(-0.2), "bias": jnp.arange(10.0)}}
    assert jax.tree.map(jnp.shape, part.init(jax.random.key(0))) == jax.tree.map(jnp.shape, params)
    found, wanted = (
        jax.jit(lambda key, t=t: jax.value_and_grad(t.loss)(params, t.batch(t.data, key)))(jax.random.key(2))
        for t in (quick, part)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5)
    measured, expected = (jax.jit(t.metrics)(params, t.data) for t in (quick, part))
    assert np.isclose(measured["loss"], expected["loss"], rtol=1e-4)
    assert abs(measured["accuracy"] - expected["accuracy"]) < 0.01
    assert not any(leaf.any() for leaf in jax.tree.leaves(quick.init(jax.random.key(0))))


def test_seeds_share_the_weights_and_draw_what_these_lack(task, weights):
    headless = {name: leaf for name, leaf in weights.items() if name != "head"}
    part = trained_part(task, headless, regime(mnemosyne=("head",), top=1))
    params = part.init(jax.random.key(0))
    assert not params["head"]["kernel"].any()  # as `task.init` has it
    assert np.array_equal(params["layer_1"]["mlp"]["up"]["kernel"], weights["layer_1"]["mlp"]["up"]["kernel"])
    adam = Contender("Adam", lambda rate: fine_tune(regime(rest="adam"), {"adam": optax.adam(rate)}), (1e-2, 1e-1))
    rows = train(part, adam, seeds=(0, 1), steps=60, every=60)
    last = rows[(rows.step == 60) & (rows.rate == 1e-2)]
    assert (last.train_loss < 0.95 * np.log(10)).all()
    assert (last.validation_accuracy > 0.2).all()
    assert last.train_loss.nunique() == 2


def test_weights_that_do_not_fit_a_task_are_listed(task, weights):
    wrong = {
        **weights,
        "head": {"kernel": jnp.zeros((8, 3)), "bias": weights["head"]["bias"]},
        "tail": {"w": jnp.ones(1)},
    }
    del wrong["cls"]
    with pytest.raises(ValueError, match="do not fit") as error:
        trained_part(task, wrong, LAST_LAYER)
    for line in (
        "cls is frozen but not given",
        "tail.w is given but is no parameter of the task",
        "head.kernel has shape (8, 3), the task's has (8, 10)",
    ):
        assert line in str(error.value)
    with pytest.raises(ValueError, match="nothing is left to train"):
        trained_part(task, weights, regime())


def test_the_documentation_trains_a_public_checkpoint_on(tmp_path, monkeypatch):
    code = python_blocks("docs/checkpoints.md")[0]
    tiny = VisionTransformer(layers=2, heads=3, hidden=12, mlp_dim=20, patch=4, side=8)
    folder = tmp_path / "vit-base-patch16-224"
    folder.mkdir()
    shutil.copy(GOLDEN / "vit.safetensors", folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VISION, "B/16", tiny)
    found = {}
    exec(code, found)
    kept, _ = golden("vit", tiny.clone(classes=5), VISION_NAMES)
    params, tx = found["params"], found["tx"]
    assert params["head"]["kernel"].shape == (12, 100)
    assert all(
        np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(p["layer_1"]) for p in (params, kept)), strict=True)
    )
    state = jax.eval_shape(tx.init, params)
    updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


class Pair(NamedTuple):
    body: Any
    head: Any


W, B = jnp.full((3, 2), 0.5), jnp.full(2, 0.25)
TREES = {
    "dict": ({"body": {"w": W, "b": B}, "head": {"w": W}}, "head"),
    "frozen dict": (freeze({"body": {"w": W, "b": B}, "head": {"w": W}}), "head"),
    "frozen within a dict": ({"body": freeze({"w": W}), "head": freeze({"w": W, "b": B})}, "head"),
    "ordered dict": (OrderedDict(head={"w": W}, body={"w": W}), "head"),
    "dict with defaults": (defaultdict(dict, head={"w": W}, body={"w": W}), "head"),
    "tuple": (((W, B), (W,)), "1"),
    "list": ([{"w": W}, {"w": W, "b": B}], "1"),
    "named tuple": (Pair({"w": W}, (W, B)), "head"),
    "bare arrays": (Pair(W, B), "head"),
    "tuples in a dict": ({"body": (W, {"b": B}), "head": Pair(W, None)}, "head"),
    "nothing in places": (
        {"body": {"w": W, "x": None, "y": (None, B)}, "gone": None, "head": {"w": W, "z": {}}},
        "head",
    ),
    "whole numbers as keys": ({0: {"w": W}, 1: {"w": W}}, "1"),
    "slashes in keys": ({"mlp/~/linear_0": {"w": W}, "mlp/~/linear_1": {"w": W, "b": B}}, "mlp/~/linear_1"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", TREES)
def test_a_regime_takes_any_tree(name):
    """What is labelled moves as by its optimizer, the rest stays, and the tree is what it was."""
    params, head = TREES[name]
    labels = regime(mnemosyne=(head,))
    tx = fine_tune(labels, {"mnemosyne": optax.sgd(0.5)})
    updates, _ = jax.jit(lambda p: tx.update(p, tx.init(p), p))(params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    moved = {path: -2 * u for path, u in jax.tree_util.tree_leaves_with_path(updates) if u.any()}
    named = lambda path: jax.tree_util.keystr(path[:1], simple=True) == head
    wanted = {path: x for path, x in jax.tree_util.tree_leaves_with_path(params) if named(path)}
    assert moved.keys() == wanted.keys()
    assert all(np.array_equal(moved[path], x) for path, x in wanted.items())
    trained, frozen = split(params, labels(params))
    assert len(jax.tree.leaves(trained)) == len(moved)
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(params)) - len(moved)
    joined = merge(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True))


@pytest.mark.bad_input
def test_labels_of_ones_own_may_be_in_another_kind_of_dict():
    params = freeze({"body": {"w": W, "none": None}, "head": {"w": W}})
    own = lambda p: {"body": {"w": "frozen", "none": "frozen"}, "head": {"w": "adam"}}
    tx = fine_tune(own, {"adam": optax.sgd(1.0)})
    updates, _ = tx.update(params, tx.init(params), params)
    assert not updates["body"]["w"].any()
    assert updates["head"]["w"].all()
    with pytest.raises(ValueError, match=r"there is no label for body\.w: a regime labels every parameter"):
        split(params, {"head": {"w": "adam"}})


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", [dict, freeze])
def test_variables_are_told_from_parameters(kind, task, weights):
    wrapped = kind({"params": weights})
    with pytest.raises(ValueError, match="no head among these parameters: params: give their 'params'"):
        LAST_LAYER(wrapped)
    with pytest.raises(ValueError, match="variables, not its parameters: give their 'params'"):
        trained_part(task, wrapped, LAST_LAYER)
    with pytest.raises(ValueError, match="no head among these parameters: none"):
        LAST_LAYER(kind({}))


@pytest.mark.bad_input
def test_a_part_is_trained_of_frozen_dicts(task, weights):
    """Of weights, and of a task whose parameters are one."""
    frozen_task = task._replace(init=lambda key: freeze(task.init(key)))
    plain = trained_part(task, weights, LAST_LAYER)
    batch = jax.jit(plain.batch)(plain.data, jax.random.key(1))
    wanted = plain.loss(plain.init(jax.random.key(0)), batch)
    for t in (task, frozen_task):
        part = trained_part(t, freeze(weights), LAST_LAYER)
        start = part.init(jax.random.key(0))
        assert set(start) == {"head"}
        assert part.loss(start, part.batch(part.data, jax.random.key(1))) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.bad_input
def test_a_part_is_trained_of_a_tuple():
    layers = lambda key: (jax.random.normal(key, (3, 2)), {"w": jnp.ones((2, 1)), "b": None})
    loss = lambda params, x: jnp.mean((x @ params[0] @ params[1]["w"]) ** 2)
    whole = Task(
        "pair", jnp.ones((4, 3)), layers, lambda data, key: data, loss, lambda p, data: {"loss": loss(p, data)}
    )
    params = layers(jax.random.key(1))
    part = trained_part(whole, params, regime(mnemosyne=("1",)))
    start = part.init(jax.random.key(0))
    assert [x.shape for x in jax.tree.leaves(start)] == [(2, 1)]
    gradient = jax.grad(part.loss)(start, part.batch(part.data, jax.random.key(2)))
    expected = jax.grad(loss)(params, jnp.ones((4, 3)))
    assert np.allclose(gradient[1]["w"], expected[1]["w"])
    assert gradient[0] is None
