"""Residual networks (He et al. 2016), norm before convolution."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float


class Residual(nn.Module):
    """ResNet-18 with blocks (2, 2, 2, 2), ResNet-50 with (3, 4, 6, 3) and bottlenecks.

    Groups of channels are normalised, where the original normalises batches: a task's loss has no state of its own.
    """

    blocks: tuple[int, ...]  # of each stage; from the second stage on, the first halves the sides
    bottleneck: bool
    classes: int
    width: int = 64  # channels of the first stage, doubled from stage to stage
    conv: Callable[..., nn.Module] = nn.Conv  # or `networks.ByPatches`

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        x = self.conv(self.width, (3, 3), use_bias=False)(images)
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = Block(self.width * 2**stage, stride, self.bottleneck, self.conv)(x)
        return nn.Dense(self.classes)(normed(x).mean(axis=(1, 2)))


class Block(nn.Module):
    """Two 3×3 convolutions, or three of which the outer ones are 1×1, around which the input goes unchanged."""

    width: int
    stride: int
    bottleneck: bool
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n a b d"]:
        wide = 4 * self.width if self.bottleneck else self.width
        convolutions = [(self.width, 3, self.stride), (wide, 3, 1)]
        if self.bottleneck:
            convolutions = [(self.width, 1, 1), (self.width, 3, self.stride), (wide, 1, 1)]
        y, around = normed(x), x
        if x.shape[-1] != wide or self.stride > 1:
            around = self.conv(wide, (1, 1), self.stride, use_bias=False)(y)
        for i, (width, size, stride) in enumerate(convolutions):
            y = self.conv(width, (size, size), stride, use_bias=False)(normed(y) if i else y)
        return around + y


def normed(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Normalise groups of sixteen channels, then ReLU; to be called in a module's body."""
    return nn.relu(nn.GroupNorm(num_groups=None, group_size=min(16, x.shape[-1]))(x))
