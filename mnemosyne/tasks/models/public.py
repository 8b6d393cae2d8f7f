"""What public checkpoints of ViT, BERT and T5 v1.1 call the leaves of the models here.

stored = BERT_NAMES.stored("layer_0.mlp.up.kernel", rank=2)  # bert.encoder.layer.0.intermediate.dense.weight, turned
"""

import re
from typing import NamedTuple

import numpy as np

from mnemosyne.store import StoreError


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


WRAPPED = ((r"^((module|model|_orig_mod)\.)+", ""),)
"""Prefixes that training code leaves on every name."""


class Names(NamedTuple):
    """What a public checkpoint calls the leaves of one kind of model."""

    modules: dict[str, str]  # our modules → theirs, with N for the number of a layer
    arrays: dict[str, tuple[str, int]]  # leaves of the model itself → theirs, and their axes of size one before ours
    older: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) for names of older or headless checkpoints
    copies: tuple[tuple[str, str], ...] = ()  # tensors that may be there twice, or under the first name alone
    tied: tuple[tuple[str, str], ...] = ()  # the same, but the first may be a tensor of its own
    unused: tuple[str, ...] = ()  # patterns of tensors that a checkpoint may hold and the model has no use for
    sizes: tuple[tuple[str, str], ...] = ()  # (tensor, the module's field that is its first side)
    remarks: tuple[tuple[str, str], ...] = ()  # (pattern of "missing: <tensor>" and the like, what to know of it)
    foreign: tuple[tuple[str, str], ...] = ()  # (pattern of a tensor of another model, which one that is)

    def stored(self, path: str, rank: int) -> Stored:
        """How the checkpoint keeps the leaf of this path and rank. Raises `StoreError` if it knows no such leaf."""
        if path in self.arrays:
            theirs, ones = self.arrays[path]
            return Stored(theirs, tuple(range(rank)), ones)
        module, _, leaf = path.rpartition(".")
        numbers = re.findall(r"layer_(\d+)", module)
        theirs = self.modules.get(re.sub(r"layer_\d+", "layer_N", module))
        if theirs is None or leaf not in ("kernel", "bias", "scale", "embedding"):
            wrapped = " Give like['params']." if path.startswith("params.") else ""
            raise StoreError(
                f"these checkpoints have no name for {path!r}; is this the parameters' tree of the model?{wrapped}"
            )
        theirs = re.sub(r"\bN\b", numbers[0], theirs) if numbers else theirs
        turned = {2: (1, 0), 4: (2, 3, 1, 0)}  # a linear layer is [out in] there, a convolution [out in h w]
        axes = turned[rank] if leaf == "kernel" else tuple(range(rank))
        return Stored(f"{theirs}.{'bias' if leaf == 'bias' else 'weight'}", axes)

    def today(self, name: str) -> str:
        """A tensor's name as a checkpoint made today would have it."""
        for pattern, replacement in (*WRAPPED, *self.older):
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
    older=((r"^deit\.", "vit."), (r"^(embeddings|encoder|layernorm|pooler)\.", r"vit.\1.")),
    unused=(r"vit\.pooler\..*", r"vit\.embeddings\.mask_token"),
    sizes=(("classifier.weight", "classes"),),
    remarks=(
        (
            r"not wanted: vit\.embeddings\.distillation_token",
            "A distilled DeiT has a second token in front, which this model has not: its logits would be others. "
            "DeiT also comes without.",
        ),
        (
            r"of another shape: classifier\.weight",
            "For a new head: like without 'head', and unused=(r\"classifier\\..*\",).",
        ),
    ),
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
    older=((r"^(embeddings|encoder|pooler)\.", r"bert.\1."), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    copies=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    unused=(r"bert\.pooler\..*", r"cls\.seq_relationship\..*", r"bert\.embeddings\.position_ids"),
    sizes=(
        ("bert.embeddings.word_embeddings.weight", "vocabulary"),
        ("bert.embeddings.position_embeddings.weight", "length"),
        ("bert.embeddings.token_type_embeddings.weight", "kinds"),
    ),
)
"""Of `bert.Bert`."""

TIED = """Where the head is the embedding (it is tied), load without the head, and make it:
    params["head"] = {"kernel": params["tokens"]["embedding"].T * hidden**-0.5}"""

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
    tied=(("lm_head.weight", "shared.weight"),),
    sizes=(("shared.weight", "vocabulary"),),
    remarks=((r"missing: lm_head\.weight", TIED),),
    foreign=(
        (
            r".*\.DenseReluDense\.wi\.weight",
            "This is the first T5, whose MLP has one matrix wi. `t5.EncoderDecoder` is v1.1, with wi_0 and wi_1: "
            "take a checkpoint of v1.1.",
        ),
    ),
    unused=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
"""Of `t5.EncoderDecoder`, v1.1 only: the first T5 has another MLP and no head of its own."""
