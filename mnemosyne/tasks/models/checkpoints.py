"""Public checkpoints of ViT, BERT and T5 v1.1 as parameters of the models here, a leaf at a time.

A checkpoint is what the `transformers` library saves: `model.safetensors`, or shards with an index. Nothing is
downloaded. No more than one tensor is in the host's memory at a time, whatever the size of the model.

t5 = T5["xxl"].clone(dtype=jnp.bfloat16)
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), shapes(t5))
params = load_checkpoint(folder, T5_NAMES, like, place=onto(shardings), stored=jnp.float32)
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from mnemosyne.store import StoreError, names
from mnemosyne.types import Params

Place = Callable[[str, np.ndarray], Any]  # (a leaf's name, its values) → the array to keep
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
ROWS = 1_024  # of two tensors compared at a time


class Stored(NamedTuple):
    """How a checkpoint keeps a leaf: under another name, with other axes."""

    name: str
    axes: tuple[int, ...]  # our axis i is its axis axes[i]
    ones: int = 0  # axes of size one before these

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape it has there."""
        return (1,) * self.ones + tuple(ours[i] for i in np.argsort(self.axes))

    def load(self, stored: np.ndarray) -> np.ndarray:
        """The tensor as our leaf: a view."""
        return stored.reshape(stored.shape[self.ones :]).transpose(self.axes)


class Names(NamedTuple):
    """What a public checkpoint calls the leaves of one kind of model."""

    modules: dict[str, str]  # our modules → theirs, with N for the number of a layer
    arrays: dict[str, tuple[str, int]]  # leaves of the model itself → theirs, and their axes of size one before ours
    older: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) for names of older or headless checkpoints
    copies: tuple[tuple[str, str], ...] = ()  # tensors that may be there twice: (the copy's name, the tensor's)
    unused: tuple[str, ...] = ()  # patterns of tensors that a checkpoint may hold and the model has no use for

    def stored(self, path: str, rank: int) -> Stored:
        """How the checkpoint keeps the leaf of this path and rank. Raises `StoreError` if it knows no such leaf."""
        if path in self.arrays:
            theirs, ones = self.arrays[path]
            return Stored(theirs, tuple(range(rank)), ones)
        module, _, leaf = path.rpartition(".")
        numbers = re.findall(r"layer_(\d+)", module)
        theirs = self.modules.get(re.sub(r"layer_\d+", "layer_N", module))
        if theirs is None or leaf not in ("kernel", "bias", "scale", "embedding"):
            raise StoreError(f"these checkpoints have no name for {path!r}; is this the parameters' tree of the model?")
        theirs = re.sub(r"\bN\b", numbers[0], theirs) if numbers else theirs
        turned = {2: (1, 0), 4: (2, 3, 1, 0)}  # a linear layer is [out in] there, a convolution [out in h w]
        axes = turned[rank] if leaf == "kernel" else tuple(range(rank))
        return Stored(f"{theirs}.{'bias' if leaf == 'bias' else 'weight'}", axes)

    def today(self, name: str) -> str:
        """A tensor's name as a checkpoint made today would have it."""
        for pattern, replacement in self.older:
            name = re.sub(pattern, replacement, name)
        return name


def _below(ours: str, theirs: str, modules: dict[str, str]) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in modules.items()}


_BLOCK = {
    "attention.out": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
_QKV = ("query", "key", "value")
_T5_ATTENTION = dict(zip((*_QKV, "out"), "qkvo", strict=True))
_T5_MLP = {"gate": "wi_0", "up": "wi_1", "down": "wo"}


def _t5_stack(stack: str, mlp: int) -> dict[str, str]:
    block = f"{stack}.block.N.layer"
    return {
        f"{stack}.positions": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{stack}.norm": f"{stack}.final_layer_norm",
        f"{stack}.layer_N.norm_attention": f"{block}.0.layer_norm",
        f"{stack}.layer_N.norm_mlp": f"{block}.{mlp}.layer_norm",
        **_below(f"{stack}.layer_N.attention", f"{block}.0.SelfAttention", _T5_ATTENTION),
        **_below(f"{stack}.layer_N.mlp", f"{block}.{mlp}.DenseReluDense", _T5_MLP),
    }


VISION_NAMES = Names(
    modules={
        "embedding": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
        **_below("layer_N", "vit.encoder.layer.N", _BLOCK),
        **_below("layer_N.attention", "vit.encoder.layer.N.attention.attention", {x: x for x in _QKV}),
        "layer_N.norm_attention": "vit.encoder.layer.N.layernorm_before",
        "layer_N.norm_mlp": "vit.encoder.layer.N.layernorm_after",
    },
    arrays={"cls": ("vit.embeddings.cls_token", 2), "positions": ("vit.embeddings.position_embeddings", 1)},
    older=((r"^(embeddings|encoder|layernorm|pooler)\.", r"vit.\1."),),
    unused=(r"vit\.pooler\..*",),
)
"""Of `vision.VisionTransformer`. A checkpoint without a head is for a `like` without the key "head"."""

BERT_NAMES = Names(
    modules={
        "tokens": "bert.embeddings.word_embeddings",
        "types": "bert.embeddings.token_type_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "norm": "bert.embeddings.LayerNorm",
        "transform": "cls.predictions.transform.dense",
        "norm_transform": "cls.predictions.transform.LayerNorm",
        **_below("layer_N", "bert.encoder.layer.N", _BLOCK),
        **_below("layer_N.attention", "bert.encoder.layer.N.attention.self", {x: x for x in _QKV}),
        "layer_N.norm_attention": "bert.encoder.layer.N.attention.output.LayerNorm",
        "layer_N.norm_mlp": "bert.encoder.layer.N.output.LayerNorm",
    },
    arrays={"bias": ("cls.predictions.bias", 0)},
    older=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    copies=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    unused=(r"bert\.pooler\..*", r"cls\.seq_relationship\..*", r"bert\.embeddings\.position_ids"),
)
"""Of `bert.Bert`."""

T5_NAMES = Names(
    modules={
        "tokens": "shared",
        "head": "lm_head",
        **_t5_stack("encoder", mlp=1),
        **_t5_stack("decoder", mlp=2),
        "decoder.layer_N.norm_cross": "decoder.block.N.layer.1.layer_norm",
        **_below("decoder.layer_N.cross", "decoder.block.N.layer.1.EncDecAttention", _T5_ATTENTION),
    },
    arrays={},
    copies=(("encoder.embed_tokens.weight", "shared.weight"), ("decoder.embed_tokens.weight", "shared.weight")),
    unused=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
"""Of `t5.EncoderDecoder`, v1.1 only: the first T5 has another MLP and no head of its own."""


def onto(shardings: Any) -> Place:
    """Place every leaf as a tree of `jax.sharding.Sharding`, shaped like the parameters, says.

    Raises:
        ValueError: when a leaf is placed for which there is no sharding.
    """
    where = dict(zip(names(shardings), jax.tree.leaves(shardings), strict=True))

    def place(name: str, leaf: np.ndarray) -> jax.Array:
        if name not in where:
            raise ValueError(f"no sharding for {name!r}; the tree of shardings must have a leaf for each of `like`")
        return jax.device_put(leaf, where[name])

    return place


def to_device(name: str, leaf: np.ndarray) -> jax.Array:
    """Place a leaf whole on the default device."""
    del name
    return jnp.asarray(leaf)


def load_checkpoint(
    path: Path,
    names_of: Names,
    like: Params,
    place: Place = to_device,
    stored: DTypeLike | None = None,
    unused: tuple[str, ...] = (),
) -> Params:
    """Load a public checkpoint, one leaf after the other.

    Args:
        path: a `.safetensors` file, or a folder with `model.safetensors` or with shards and their index.
        names_of: `VISION_NAMES`, `BERT_NAMES` or `T5_NAMES`.
        like: the parameters to fill, arrays or shapes, as `transformer.shapes` gives them.
        place: makes an array on a device, or on several, of a leaf in host memory; see `onto`.
        stored: dtype of the checkpoint, if it is another than that of `like`, to which values are then rounded.
        unused: patterns of further tensors' names to pass over, such as r"classifier\\..*" for a new head.

    Returns:
        A tree like `like` of what `place` returned.

    Raises:
        StoreError: if a file is missing or damaged, or lists every name, shape and dtype that is not as it should
            be; both before anything is placed. Also if a tensor that is kept twice has two values.
    """
    wanted = {
        name: (names_of.stored(name, len(leaf.shape)), leaf)
        for name, leaf in zip(names(like), jax.tree.leaves(like), strict=True)
    }
    with _opened(path) as files:
        found = _tensors(files, names_of)
        _compare(path, found, wanted, names_of, stored, unused)
        _compare_copies(path, found, names_of)
        leaves = [_placed(place, name, found, *wanted[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _placed(place: Place, name: str, found: dict, stored: Stored, leaf: Any) -> Any:
    file, key = found[stored.name]
    # Waiting frees the host's copy before the next tensor is read.
    return jax.block_until_ready(place(name, stored.load(file.get_tensor(key)).astype(leaf.dtype, copy=False)))


@contextmanager
def _opened(path: Path) -> Iterator[list[Any]]:
    """All files of a checkpoint, mapped and not read."""
    with ExitStack() as stack:
        files = []
        for part in _parts(path):
            try:
                files.append(stack.enter_context(safe_open(part, framework="numpy")))
            except (SafetensorError, OSError) as error:
                raise StoreError(f"{part} is missing, damaged or no safetensors file: {error}") from error
        yield files


def _parts(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (path / SINGLE).exists():
        return [path / SINGLE]
    if not (path / INDEX).exists():
        raise StoreError(f"{path} holds neither {SINGLE} nor {INDEX}: save the model with safetensors")
    try:
        parts = sorted(set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [part for part in parts if Path(part).name != part]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StoreError(f"{path / INDEX} is damaged: {error!r}") from error
    if outside:
        raise StoreError(f"{path / INDEX} names files outside its folder: {', '.join(outside)}")
    return [path / part for part in parts]


def _tensors(files: list[Any], names_of: Names) -> dict[str, tuple[Any, str]]:
    """Where each tensor is: its name of today → (file, name there)."""
    found: dict[str, tuple[Any, str]] = {}
    for file in files:
        for key in file.keys():  # noqa: SIM118
            name = names_of.today(key)
            if name in found:
                raise StoreError(f"the checkpoint holds {name} twice")
            found[name] = (file, key)
    return found


def _compare(
    path: Path, found: dict, wanted: dict, names_of: Names, stored: DTypeLike | None, unused: tuple[str, ...]
) -> None:
    def dtype(leaf: Any) -> str:
        name = jnp.dtype(leaf.dtype if stored is None else stored).name
        return DTYPES.get(name, name)

    should = {s.name: (s.shape(tuple(leaf.shape)), dtype(leaf)) for s, leaf in wanted.values()}
    spare = [*names_of.unused, *unused, *(re.escape(copy) for copy, _ in names_of.copies)]
    have = {}
    for name, (file, key) in found.items():
        if name in should or not any(re.fullmatch(pattern, name) for pattern in spare):
            tensor = file.get_slice(key)
            have[name] = (tuple(tensor.get_shape()), tensor.get_dtype())
    differing = sorted(n for n in have.keys() | should.keys() if have.get(n) != should.get(n))
    if differing:
        lines = [f"  {n}: {have.get(n, 'missing')}, wanted {should.get(n, 'nothing')}" for n in differing]
        raise StoreError(f"{path} does not hold what was asked for:\n" + "\n".join(lines))


def _compare_copies(path: Path, found: dict, names_of: Names) -> None:
    for copy, name in names_of.copies:
        if copy in found and name in found:
            a, b = (file.get_slice(key) for file, key in (found[copy], found[name]))
            cuts = (slice(i, min(i + ROWS, b.get_shape()[0])) for i in range(0, b.get_shape()[0], ROWS))
            if a.get_shape() != b.get_shape() or not all(np.array_equal(a[cut], b[cut]) for cut in cuts):
                raise StoreError(f"{path}: {copy} should be {name} once more, but differs from it")
