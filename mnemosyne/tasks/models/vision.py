"""The public Vision Transformer (Dosovitskiy et al. 2021): the paper's B/16, L/16, L/32, H/14, H/32, and any size.

vit = VISION["B/16"].clone(classes=10, dtype=jnp.bfloat16)
params = vit.init(key, *vit.example())["params"]
logits = vit.apply({"params": params}, images)
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mnemosyne.tasks.models.transformer import LECUN, Mlp, layer_norm, patches, repeated, self_attention

XAVIER = nn.initializers.xavier_uniform()


class Patches(nn.Module):
    """Cut images into squares and map each linearly: a convolution whose stride is its size, as a matrix product."""

    side: int  # of a patch, pixels
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n t features"]:
        kernel = self.param("kernel", LECUN, (self.side, self.side, images.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        return patches(images, self.side) @ kernel.reshape(-1, self.features) + bias[None, None]


class Layer(nn.Module):
    """One pre-LN layer: x ← x + attention(LN x), x ← x + MLP(LN x)."""

    heads: int
    mlp_dim: int
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        y = layer_norm(self.epsilon, self.dtype, "norm_attention")(x)
        x = x + self_attention(self.heads, x.shape[-1], XAVIER, self.dtype)(y, y)
        y = layer_norm(self.epsilon, self.dtype, "norm_mlp")(x)
        return x + Mlp(self.mlp_dim, XAVIER, self.dtype, name="mlp")(y)


class VisionTransformer(nn.Module):
    """Patches and a class token → pre-LN layers → LN → a linear head on the class token.

    Raises:
        ValueError: if heads do not divide the width, patches do not tile the images, or images have another side.
    """

    layers: int
    heads: int  # must divide `hidden`
    hidden: int
    mlp_dim: int  # hidden units behind each attention
    patch: int  # pixels on a side; must divide `side`
    side: int = 224  # of the images, pixels
    classes: int = 1_000
    epsilon: float = 1e-12  # in every LN, as the public checkpoints have it
    remat: bool = False  # compute each layer again in the backward pass: less memory, more time
    dtype: DTypeLike = jnp.float32  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        self._check(images)
        zeros, normal = nn.initializers.zeros, nn.initializers.normal(0.02)
        x = Patches(self.patch, self.hidden, self.dtype, name="embedding")(images)
        cls = self.param("cls", zeros, (self.hidden,)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls[None, None], (len(x), 1, self.hidden)), x], axis=1)
        x = x + self.param("positions", normal, x.shape[1:]).astype(x.dtype)[None]
        layer = repeated(Layer, self.remat)
        for i in range(self.layers):
            x = layer(self.heads, self.mlp_dim, self.epsilon, self.dtype, name=f"layer_{i}")(x)
        x = layer_norm(self.epsilon, self.dtype, "norm")(x)[:, 0]
        return nn.Dense(self.classes, dtype=self.dtype, kernel_init=zeros, name="head")(x).astype(jnp.float32)

    def example(self) -> tuple[Float[Array, "1 side side 3"]]:
        """One black image in colour."""
        return (jnp.zeros((1, self.side, self.side, 3)),)

    def _check(self, images: Array) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.hidden}")
        if self.side % self.patch:
            raise ValueError(f"patches of {self.patch} do not tile images of side {self.side}")
        if images.shape[1:3] != (self.side, self.side):
            raise ValueError(
                f"images are {images.shape[1]}×{images.shape[2]}, this model is for {self.side}×{self.side}: "
                f"resize them, or make it for others with clone(side=...)"
            )


VISION = {
    "B/16": VisionTransformer(layers=12, heads=12, hidden=768, mlp_dim=3_072, patch=16),  # 86 million
    "L/16": VisionTransformer(layers=24, heads=16, hidden=1_024, mlp_dim=4_096, patch=16),  # 304 million
    "L/32": VisionTransformer(layers=24, heads=16, hidden=1_024, mlp_dim=4_096, patch=32),  # 306 million
    "H/14": VisionTransformer(layers=32, heads=16, hidden=1_280, mlp_dim=5_120, patch=14),  # 632 million
    "H/32": VisionTransformer(layers=32, heads=16, hidden=1_280, mlp_dim=5_120, patch=32),  # 635 million
}
"""The public sizes, at 224 pixels and 1,000 classes; `clone` changes any field."""
