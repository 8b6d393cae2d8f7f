"""Several optimizers for one network: Super-Mnemosyne and the hybrid (paper §5.2, §5.4), and what a state costs.

Each is `optax.partition` over optimizers that are given, with labels computed from shapes:

    tx = super_mnemosyne(light, tensor)     # the largest tensors by the first, all others by the second
    tx = hybrid(light)                      # matrices by it, biases and gains by Adam
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mnemosyne.optimizer.transform import for_any_network
from mnemosyne.types import Learned, Params, Theta


def super_mnemosyne(
    light: optax.GradientTransformation, tensor: optax.GradientTransformation, share: float = 0.25
) -> optax.GradientTransformationExtraArgs:
    """Optimize the largest tensors coordinate-wise and all others tensor-wise (§5.4).

    The paper takes the largest tensors coordinate-wise to keep the tensor-wise rule's meta-training simple, and reports
    that this "turned out to minimize total memory". State does not bear that out: a light memory costs 384 bytes for
    every parameter, so that Super's state lies between that of its parts, above Adam's, and falls as `share` grows.

    Args:
        light: for the largest tensors.
        tensor: for the rest.
        share: a tensor is among the largest if it has more than this share of the largest one's elements. At 0.25
            these are in ViT-B the MLP's matrices and a head of 1,000 classes, as in App. B.10; at 1 there are none.

    Returns:
        A transformation; its state's fields are those of the two under the names "light" and "tensor".

    Raises:
        ValueError: if share is outside [0, 1].

    Reference: Jain et al. 2023, §5.4 and App. B.10.

    Example:
        tx = super_mnemosyne(mnemosyne.pretrained("light"), mnemosyne.pretrained("tensor"))
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    return for_any_network(optax.partition({"light": light, "tensor": tensor}, partial(by_size, share=share)))


def by_size(params: Params, share: float) -> Params:
    """Label "light" what has more than `share` of the largest tensor's elements, and "tensor" the rest."""
    limit = share * max((jnp.size(p) for p in jax.tree.leaves(params)), default=0)
    return jax.tree.map(lambda p: "light" if jnp.size(p) > limit else "tensor", params)


def super_learned(light: Learned, tensor: Learned) -> Learned:
    """Super-Mnemosyne with the weights of both: θ = {"light": the coordinate-wise rule's, "tensor": the other's}."""

    def init(key: Array) -> Theta:
        first, second = jax.random.split(key)
        return {"light": light.init(first), "tensor": tensor.init(second)}

    return Learned(init, lambda theta: super_mnemosyne(light.make(theta["light"]), tensor.make(theta["tensor"])))


def hybrid(matrices: optax.GradientTransformation, rate: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Optimize tensors of two axes or more by one optimizer, biases, gains and scalars by Adam (§5.2, Fig. 16–17).

    Args:
        matrices: for what has two axes or more.
        rate: Adam's learning rate, the paper's by default.

    Returns:
        A transformation; its state's fields are those of the two under the names "matrix" and "vector". Layers that
        are stacked in one array are taken apart by `stacks.stacked`.
    """
    # Neither changes a step: the clipping keeps g² finite, ε under the root a meta-gradient where a gradient is zero.
    adam = optax.chain(optax.clip(1e18), optax.adam(rate, eps_root=1e-30))
    return for_any_network(optax.partition({"matrix": matrices, "vector": adam}, by_rank))


def by_rank(params: Params) -> Params:
    """Label "matrix" what has two axes or more, and "vector" the rest."""
    return jax.tree.map(lambda p: "matrix" if jnp.ndim(p) > 1 else "vector", params)


def state_bytes(tx: optax.GradientTransformation, params: Params) -> int:
    """Count the bytes of an optimizer's state for a network, without making any.

    Args:
        tx: any optax transformation.
        params: arrays or `jax.ShapeDtypeStruct`s, such as `tasks.shapes` makes of a network of any size.

    Returns:
        Bytes, all counters included.

    Example:
        state_bytes(optax.adam(1e-3), params)       # 8 bytes a parameter, and 4 for the count
    """
    state = jax.eval_shape(tx.init, params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
