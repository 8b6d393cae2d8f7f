import json
import re
import shutil
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
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
    with pytest.raises(StoreError, match=f"{parts[1].name} is missing: put the file there"):
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


def test_differences_are_listed_before_anything_is_placed(kind, tmp_path):
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
    assert sorted(line.split(":")[0].strip() for line in lines[1:5]) == sorted([first, second, third, "stray"])
    assert len(lines) < 9
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
        with pytest.raises(StoreError, match=r"model\.safetensors is (damaged or no safetensors file|empty)"):
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


# Checkpoints as people have them --------------------------------------------------------------------------------------


def kept(kind):
    """The kept checkpoint as (what loads it, the tensors, the parameters)."""
    module, names_of = KINDS[kind]
    path, like = GOLDEN / f"{kind}.safetensors", shapes(module)
    return names_of, like, load_file(path), load_checkpoint(path, names_of, like)


def saved(folder, tensors):
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


def renamed(tensors, pattern, replacement):
    return {re.sub(pattern, replacement, name): x for name, x in tensors.items()}


POOLER = {"pooler.dense.weight": np.zeros((12, 12), np.float32), "pooler.dense.bias": np.zeros(12, np.float32)}
MASK = {"vit.embeddings.mask_token": np.zeros((1, 1, 12), np.float32)}
DATA_IDS = {"bert.embeddings.position_ids": np.arange(16)[None]}
OTHER_NAMES = {
    "t5: the embedding is the encoder's": ("t5", lambda t: renamed(t, r"^shared\.", "encoder.embed_tokens.")),
    "t5: the embedding is the decoder's": ("t5", lambda t: renamed(t, r"^shared\.", "decoder.embed_tokens.")),
    "t5: the embedding is both": (
        "t5",
        lambda t: (
            renamed(t, r"^shared\.", "encoder.embed_tokens.") | {"decoder.embed_tokens.weight": t["shared.weight"]}
        ),
    ),
    "bert: the embedding is the head's": (
        "bert",
        lambda t: renamed(t, r"^bert\.embeddings\.word_embeddings\.", "cls.predictions.decoder."),
    ),
    "bert: the bias is the decoder's": (
        "bert",
        lambda t: renamed(t, r"^cls\.predictions\.bias", "cls.predictions.decoder.bias"),
    ),
    "bert: gamma and beta": (
        "bert",
        lambda t: renamed(renamed(t, r"(LayerNorm)\.weight", r"\1.gamma"), r"(LayerNorm)\.bias", r"\1.beta"),
    ),
    "bert: ids of positions": ("bert", lambda t: t | DATA_IDS),
    "bert: in a wrapper": ("bert", lambda t: renamed(t, "^", "module.")),
    "vit: deit": ("vit", lambda t: renamed(t, r"^vit\.", "deit.")),
    "vit: a token for masks": ("vit", lambda t: t | MASK),
    "vit: compiled": ("vit", lambda t: renamed(t, "^", "model._orig_mod.")),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_of_the_same_tensors_load(name, tmp_path):
    kind, change = OTHER_NAMES[name]
    names_of, like, tensors, params = kept(kind)
    assert same(load_checkpoint(saved(tmp_path, change(tensors)), names_of, like), params)


@pytest.mark.bad_input
@pytest.mark.parametrize("older", [False, True], ids=["names of today", "gamma and beta"])
def test_a_bert_without_its_prefix_and_heads_loads(older, tmp_path):
    names_of, like, tensors, params = kept("bert")
    body = {k: v for k, v in like.items() if k not in ("bias", "transform", "norm_transform")}
    bare = renamed({n: x for n, x in tensors.items() if n.startswith("bert.")}, r"^bert\.", "") | POOLER
    if older:
        bare = OTHER_NAMES["bert: gamma and beta"][1](bare)
    loaded = load_checkpoint(saved(tmp_path, bare), names_of, body)
    assert same(loaded, {k: params[k] for k in body})
    advised(tmp_path, names_of, like, bare, {k: params[k] for k in body})


def advised(folder, names_of, like, tensors, wanted, **options):
    """Load a checkpoint as the error says, step by step; the errors, which are short."""
    saved(folder, tensors)
    errors = []
    while True:
        try:
            loaded = load_checkpoint(folder, names_of, like, **options)
            break
        except StoreError as error:
            text = str(error)
            assert len(text.splitlines()) < 12, text
            assert text not in errors, text
            errors.append(text)
        for argument, written in re.findall(r"load_checkpoint\(…, (\w+)=(.*)\)$", text, re.MULTILINE):
            options[argument] = eval(written, {"jnp": jnp})
        for written in re.findall(r"load_checkpoint\(path, names_of, (.*)\)$", text, re.MULTILINE):
            like = eval(written, {"like": like})
        assert "clone" not in text
    assert same(loaded, wanted)
    return errors


def in_half(name):
    return np.float32 if name.endswith("wo.weight") or "layernorm" in name.lower() else np.float16


DTYPED = {
    "bfloat16 into float32": ("vit", lambda n: jnp.bfloat16, lambda n: jnp.float32),
    "float32 into bfloat16": ("vit", lambda n: np.float32, lambda n: jnp.bfloat16),
    "half with float32 parts": ("t5", in_half, lambda n: np.float32),
    "half with float32 parts into half": ("t5", in_half, lambda n: np.float16),
    "bfloat16 with float32 norms": (
        "bert",
        lambda n: np.float32 if "LayerNorm" in n else jnp.bfloat16,
        lambda n: jnp.bfloat16,
    ),
    "float64": ("bert", lambda n: np.float64, lambda n: jnp.float32),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", DTYPED)
def test_other_and_mixed_dtypes_load_as_the_error_says(name, tmp_path):
    kind, stored, ours = DTYPED[name]
    names_of, like, tensors, params = kept(kind)
    mixed = {n: x.astype(stored(n)) for n, x in tensors.items()}
    dtype = ours("")
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), like)
    # What each leaf is after both roundings.
    flat = dict(zip(names(like), jax.tree.leaves(params), strict=True))
    twice = [jnp.asarray(np.asarray(x).astype(stored(names_of.stored(n, x.ndim).name)), dtype) for n, x in flat.items()]
    advised(tmp_path, names_of, like, mixed, jax.tree.unflatten(jax.tree.structure(like), twice))


@pytest.mark.bad_input
def test_values_too_large_for_a_dtype_are_refused(tmp_path):
    names_of, like, tensors, _ = kept("t5")
    large = tensors | {"shared.weight": tensors["shared.weight"] * 0 + 1e5}
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float16), like)
    with pytest.raises(StoreError, match=r"shared\.weight has values beyond 65504.*float16"):
        load_checkpoint(saved(tmp_path, large), names_of, half, stored=jnp.float32)


@pytest.mark.bad_input
def test_a_quantised_checkpoint_is_refused(tmp_path):
    names_of, like, tensors, _ = kept("vit")
    with pytest.raises(StoreError, match="I8 is quantised or no weight: save the model in floating point first"):
        load_checkpoint(saved(tmp_path, {n: x.astype(np.int8) for n, x in tensors.items()}), names_of, like)


@pytest.mark.bad_input
@pytest.mark.parametrize("head", ["classifier", "qa_outputs"])
def test_a_head_for_another_end_is_passed_over_as_the_error_says(head, tmp_path):
    names_of, like, tensors, params = kept("bert")
    more = {f"{head}.weight": np.zeros((2, 12), np.float32), f"{head}.bias": np.zeros(2, np.float32)}
    errors = advised(tmp_path, names_of, like, tensors | more, params)
    assert f'unused=(r"{head}\\..*",)' in errors[0]
    assert same(load_checkpoint(tmp_path, names_of, like, unused=rf"{head}\..*"), params)


@pytest.mark.bad_input
@pytest.mark.parametrize("stored", ["nowhere", "under its own name too", "under its own name alone"])
def test_a_tied_head_is_made_of_the_embedding_as_the_error_says(stored, tmp_path):
    names_of, like, tensors, params = kept("t5")
    tensors = {n: x for n, x in tensors.items() if n != "lm_head.weight"}
    if stored != "nowhere":
        tensors["lm_head.weight"] = tensors["shared.weight"]
    if stored == "under its own name alone":
        del tensors["shared.weight"]
    with pytest.raises(StoreError, match="Where the head is the embedding") as error:
        load_checkpoint(saved(tmp_path, tensors), names_of, like)
    written = re.search(r"^    (params.*)$", str(error.value), re.MULTILINE)[1]
    loaded = load_checkpoint(tmp_path, names_of, {k: v for k, v in like.items() if k != "head"})
    assert same(loaded, {k: v for k, v in params.items() if k != "head"})
    exec(written, {"params": loaded, "hidden": 8})
    assert np.allclose(loaded["head"]["kernel"], tensors.get("shared.weight", tensors.get("lm_head.weight")).T / 8**0.5)


@pytest.mark.bad_input
def test_the_first_t5_is_named(tmp_path):
    names_of, like, tensors, _ = kept("t5")
    first = renamed({n: x for n, x in tensors.items() if "wi_1" not in n and n != "lm_head.weight"}, "wi_0", "wi")
    with pytest.raises(StoreError, match=r"This is the first T5.*take a checkpoint of v1\.1") as error:
        load_checkpoint(saved(tmp_path, first), names_of, like)
    assert len(str(error.value).splitlines()) < 12


@pytest.mark.bad_input
def test_a_distilled_deit_is_named(tmp_path):
    names_of, like, tensors, _ = kept("vit")
    tensors["vit.embeddings.distillation_token"] = np.zeros((1, 1, 12), np.float32)
    longer = np.zeros((1, 6, 12), np.float32)
    for positions in (tensors["vit.embeddings.position_embeddings"], longer):
        tensors["vit.embeddings.position_embeddings"] = positions
        with pytest.raises(StoreError, match="A distilled DeiT has a second token"):
            load_checkpoint(saved(tmp_path, renamed(tensors, r"^vit\.", "deit.")), names_of, like)


SIZES = {
    "vit: side": ("vit", {"side": 16}),
    "vit: layers": ("vit", {"layers": 3}),
    "vit: fewer layers": ("vit", {"layers": 1}),
    "vit: classes": ("vit", {"classes": 7}),
    "bert: length": ("bert", {"length": 8}),
    "bert: vocabulary": ("bert", {"vocabulary": 30, "length": 8}),
    "t5: layers": ("t5", {"layers": 4}),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", SIZES)
def test_a_model_of_other_sizes_is_cloned_as_the_error_says(name):
    kind, other = SIZES[name]
    names_of, _, _, params = kept(kind)
    module = KINDS[kind][0].clone(**other)
    with pytest.raises(StoreError, match="clone") as error:
        load_checkpoint(GOLDEN / f"{kind}.safetensors", names_of, shapes(module))
    assert len(str(error.value).splitlines()) < 10
    fields = dict(re.findall(r"(\w+)=(\d+)", re.search(r"clone\((.*)\)", str(error.value))[1]))
    module = module.clone(**{field: int(number) for field, number in fields.items()})
    assert same(load_checkpoint(GOLDEN / f"{kind}.safetensors", names_of, shapes(module)), params)


@pytest.mark.bad_input
def test_names_of_another_library_are_told_in_few_lines(tmp_path):
    names_of, like, tensors, _ = kept("vit")
    saved(tmp_path, renamed(tensors, r"^vit\.encoder\.layer|^", "blocks"))
    with pytest.raises(StoreError, match=r"none of its 40 tensors has a name that is wanted") as error:
        load_checkpoint(tmp_path, names_of, like)
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(StoreError, match=r"Give like\['params'\]"):
        load_checkpoint(tmp_path, names_of, {"params": like})


@pytest.mark.bad_input
def test_a_path_may_be_a_str_and_a_tree_frozen(tmp_path, monkeypatch):
    names_of, like, tensors, params = kept("vit")
    odd = tmp_path / "ünï 中文 folder"
    odd.mkdir()
    saved(odd, tensors)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (str(odd), str(odd / "model.safetensors"), f"~/{odd.name}"):
        assert same(load_checkpoint(path, names_of, like), params)
    assert same(load_checkpoint(odd, names_of, freeze(like)), freeze(params))


@pytest.mark.bad_input
def test_a_shard_without_what_the_index_says_is_named(tmp_path):
    first = in_shards(tmp_path, "vit")[0]
    left = load_file(first)
    lost = min(left)
    save_file({name: x for name, x in left.items() if name != lost}, first)
    with pytest.raises(StoreError, match=rf"{first.name} lacks {re.escape(lost)}, which model.*json says it holds"):
        load_checkpoint(tmp_path, VISION_NAMES, shapes(VIT_TINY))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}', encoding="utf-8")
    with pytest.raises(StoreError, match="names no tensor"):
        load_checkpoint(tmp_path, VISION_NAMES, shapes(VIT_TINY))


FOLDERS = {
    "of PyTorch": ("pytorch_model.bin", r'(?s)neither.*torch.load\(part.*save_file.*"model.safetensors"'),
    "of Flax": ("flax_model.msgpack", "flax_model.msgpack is of another format: load it with what wrote it"),
    "with another name": ("weights.safetensors", r"is .*weights\.safetensors meant\?"),
    "around it": ("snapshots/0f/model.safetensors", r"is .*snapshots/0f meant\?"),
    "of nothing": ("readme.md", "save the model with safetensors"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_without_a_checkpoint_says_what_it_has(name, tmp_path):
    file, says = FOLDERS[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / "vit.safetensors", tmp_path / file)
    with pytest.raises(StoreError, match=says):
        load_checkpoint(tmp_path, VISION_NAMES, shapes(VIT_TINY))


@pytest.mark.bad_input
def test_a_file_of_pytorch_says_how_to_convert_it(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(range(200)))
    with pytest.raises(StoreError, match=r"(?s)no safetensors file.*torch\.load"):
        load_checkpoint(tmp_path / "pytorch_model.bin", VISION_NAMES, shapes(VIT_TINY))
