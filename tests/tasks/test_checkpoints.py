import json
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from mnemosyne.store import StoreError, names
from mnemosyne.tasks.models.bert import BERT, Bert
from mnemosyne.tasks.models.checkpoints import (
    BERT_NAMES,
    T5_NAMES,
    VISION_NAMES,
    load_checkpoint,
    onto,
)
from mnemosyne.tasks.models.t5 import T5, EncoderDecoder
from mnemosyne.tasks.models.transformer import shapes
from mnemosyne.tasks.models.vision import VISION, VisionTransformer
from tests.tasks.models import GOLDEN

VIT_TINY = VisionTransformer(layers=2, heads=3, hidden=12, mlp_dim=20, patch=4, side=8, classes=5)
BERT_TINY = Bert(layers=2, heads=3, hidden=12, mlp_dim=20, vocabulary=24, length=16)
T5_TINY = EncoderDecoder(layers=2, heads=3, head_dim=4, hidden=8, mlp_dim=12, vocabulary=24)
KINDS = {"vit": (VIT_TINY, VISION_NAMES), "bert": (BERT_TINY, BERT_NAMES), "t5": (T5_TINY, T5_NAMES)}


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    return request.param


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs
    )


def rewritten(tmp_path, kind, change):
    """The kept checkpoint with `change` made to its tensors."""
    tensors = load_file(GOLDEN / f"{kind}.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def in_shards(folder, kind):
    """The kept checkpoint in three files and an index, as the `transformers` library cuts it; returns the files."""
    tensors = load_file(GOLDEN / f"{kind}.safetensors")
    files = {name: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: x for name, x in tensors.items() if files[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8"
    )
    return sorted(folder.glob("model-*.safetensors"))


def test_every_tensor_has_one_leaf(kind):
    module, names_of = KINDS[kind]
    params = load_checkpoint(GOLDEN / f"{kind}.safetensors", names_of, shapes(module))
    kept = load_file(GOLDEN / f"{kind}.safetensors")
    leaves = {names_of.stored(n, x.ndim): x for n, x in zip(names(params), jax.tree.leaves(params), strict=True)}
    assert sorted(s.name for s in leaves) == sorted(kept)
    for stored, leaf in leaves.items():
        assert kept[stored.name].shape == stored.shape(leaf.shape)
        assert np.array_equal(stored.load(kept[stored.name]), leaf)


def test_shards_hold_what_one_file_holds(kind, tmp_path):
    module, names_of = KINDS[kind]
    parts = in_shards(tmp_path, kind)
    whole = load_checkpoint(GOLDEN / f"{kind}.safetensors", names_of, shapes(module))
    assert same(load_checkpoint(tmp_path, names_of, shapes(module)), whole)
    parts[1].unlink()
    with pytest.raises(StoreError, match=f"{parts[1].name} is missing, damaged"):
        load_checkpoint(tmp_path, names_of, shapes(module))


@pytest.mark.parametrize(
    ("module", "names_of"),
    [(VISION["H/14"], VISION_NAMES), (BERT["base"], BERT_NAMES), (T5["xxl"], T5_NAMES)],
    ids=["H/14", "base", "xxl"],
)
def test_the_largest_models_have_a_different_name_for_every_leaf(module, names_of):
    like = shapes(module)
    stored = [names_of.stored(n, x.ndim) for n, x in zip(names(like), jax.tree.leaves(like), strict=True)]
    assert len({s.name for s in stored}) == len(stored)
    for s, x in zip(stored, jax.tree.leaves(like), strict=True):
        assert np.prod(s.shape(x.shape)) == x.size


def test_one_tensor_at_a_time_is_in_the_hosts_memory(kind):
    module, names_of = KINDS[kind]
    seen: list[weakref.ref] = []
    order = []

    def place(name: str, leaf: np.ndarray) -> Any:
        assert all(earlier() is None for earlier in seen)
        owner = leaf if leaf.base is None else leaf.base
        seen.extend([weakref.ref(leaf), weakref.ref(owner)])
        order.append(name)
        return leaf.sum()

    load_checkpoint(GOLDEN / f"{kind}.safetensors", names_of, shapes(module), place)
    assert order == names(shapes(module))


def test_leaves_go_where_shardings_say(kind):
    module, names_of = KINDS[kind]
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])

    def where(x):
        axes = ["d" if side % 2 == 0 else None for side in x.shape]
        return NamedSharding(mesh, PartitionSpec(*(a if i == axes.index(a) else None for i, a in enumerate(axes))))

    shardings = jax.tree.map(where, shapes(module))
    placed = load_checkpoint(GOLDEN / f"{kind}.safetensors", names_of, shapes(module), onto(shardings))
    whole = load_checkpoint(GOLDEN / f"{kind}.safetensors", names_of, shapes(module))
    assert same(placed, whole)
    assert jax.tree.map(lambda x: x.sharding, placed) == shardings
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed))
    with pytest.raises(ValueError, match="no sharding for"):
        load_checkpoint(GOLDEN / f"{kind}.safetensors", names_of, shapes(module), onto({}))


def test_another_dtype_is_refused_unless_expected(kind, tmp_path):
    module, names_of = KINDS[kind]
    path, like = GOLDEN / f"{kind}.safetensors", shapes(module)
    halves = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), like)
    with pytest.raises(StoreError, match=r"'F32'.* wanted .*'BF16'"):
        load_checkpoint(path, names_of, halves)
    rounded = load_checkpoint(path, names_of, halves, stored=jnp.float32)
    exact = load_checkpoint(path, names_of, like)
    assert same(rounded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact))

    def change(tensors):
        tensors.update({name: x.astype(jnp.bfloat16) for name, x in tensors.items()})

    half = rewritten(tmp_path, kind, change)
    assert same(load_checkpoint(half, names_of, halves), rounded)
    with pytest.raises(StoreError, match=r"'BF16'.* wanted .*'F32'"):
        load_checkpoint(half, names_of, like)


def test_every_difference_is_listed_before_anything_is_placed(kind, tmp_path):
    module, names_of = KINDS[kind]
    first, second, third = sorted(load_file(GOLDEN / f"{kind}.safetensors"))[:3]

    def change(tensors):
        tensors["stray"] = tensors.pop(first)
        tensors[second] = tensors[second][..., :2]
        tensors[third] = tensors[third].astype(np.float16)

    def place(name: str, leaf: np.ndarray) -> Any:
        raise AssertionError("placed a leaf of a wrong checkpoint")

    with pytest.raises(StoreError) as error:
        load_checkpoint(rewritten(tmp_path, kind, change), names_of, shapes(module), place)
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    assert sorted(line.split(":")[0].strip() for line in lines[1:]) == sorted([first, second, third, "stray"])
    assert any("'F16'" in line for line in lines)


def test_a_checkpoint_of_another_model_is_refused(kind):
    other = {"vit": "bert", "bert": "t5", "t5": "vit"}[kind]
    module, names_of = KINDS[kind]
    with pytest.raises(StoreError, match="does not hold what was asked for"):
        load_checkpoint(GOLDEN / f"{other}.safetensors", names_of, shapes(module))
    with pytest.raises(StoreError, match="no name for"):
        load_checkpoint(GOLDEN / f"{kind}.safetensors", names_of, shapes(KINDS[other][0]))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"\xff" * 64, lambda b: b""]
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage((GOLDEN / "t5.safetensors").read_bytes()))
    for target in (path, tmp_path):
        with pytest.raises(StoreError, match=r"model\.safetensors is missing, damaged"):
            load_checkpoint(target, T5_NAMES, shapes(T5_TINY))


def test_a_folder_without_a_usable_index_is_refused(tmp_path):
    load = lambda: load_checkpoint(tmp_path, T5_NAMES, shapes(T5_TINY))
    with pytest.raises(StoreError, match="holds neither"):
        load()
    index = tmp_path / "model.safetensors.index.json"
    for text in ("{", "{}", "[]", '{"weight_map": {"shared.weight": 3}}'):
        index.write_text(text, encoding="utf-8")
        with pytest.raises(StoreError, match="is damaged"):
            load()
    index.write_text('{"weight_map": {"shared.weight": "../model.safetensors"}}', encoding="utf-8")
    with pytest.raises(StoreError, match="outside its folder"):
        load()


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    first, second, _ = in_shards(tmp_path, "t5")
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(StoreError, match="twice"):
        load_checkpoint(tmp_path, T5_NAMES, shapes(T5_TINY))


def test_older_bert_files_load(tmp_path):
    """The first BERT files call a norm's weights gamma and beta and hold heads for other ends."""

    def change(tensors):
        for name in [n for n in tensors if "LayerNorm" in n]:
            tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)
        tensors["bert.pooler.dense.weight"] = np.zeros((12, 12), np.float32)
        tensors["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(16)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]

    like = shapes(BERT_TINY)
    older = load_checkpoint(rewritten(tmp_path, "bert", change), BERT_NAMES, like)
    assert same(older, load_checkpoint(GOLDEN / "bert.safetensors", BERT_NAMES, like))


def test_a_vit_without_a_head_loads(tmp_path):
    """A checkpoint of features has no head, no prefix, and a pooler; a head of another size is passed over."""

    def change(tensors):
        for name in list(tensors):
            values = tensors.pop(name)
            if name.startswith("vit."):
                tensors[name.removeprefix("vit.")] = values
        tensors["pooler.dense.bias"] = np.zeros(12, np.float32)

    like = {name: leaf for name, leaf in shapes(VIT_TINY).items() if name != "head"}
    features = load_checkpoint(rewritten(tmp_path, "vit", change), VISION_NAMES, like)
    whole = GOLDEN / "vit.safetensors"
    assert same(features, load_checkpoint(whole, VISION_NAMES, like, unused=(r"classifier\..*",)))
    with pytest.raises(StoreError, match=r"classifier\.bias: .* wanted nothing"):
        load_checkpoint(whole, VISION_NAMES, like)
    with pytest.raises(StoreError, match=r"classifier\.bias: missing"):
        load_checkpoint(tmp_path, VISION_NAMES, shapes(VIT_TINY))


def test_embeddings_that_are_kept_twice_must_be_one(tmp_path):
    def twice(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
        tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"]
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.zeros((32, 3))

    like = shapes(T5_TINY)
    loaded = load_checkpoint(rewritten(tmp_path, "t5", twice), T5_NAMES, like)
    assert same(loaded, load_checkpoint(GOLDEN / "t5.safetensors", T5_NAMES, like))
    other = lambda tensors: tensors.update({"encoder.embed_tokens.weight": tensors["shared.weight"] + 1})
    with pytest.raises(StoreError, match=r"encoder\.embed_tokens\.weight should be shared\.weight once more"):
        load_checkpoint(rewritten(tmp_path, "t5", other), T5_NAMES, like)
