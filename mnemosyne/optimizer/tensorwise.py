"""Tensor-wise Mnemosyne: a memory for each tensor, not for each parameter (paper §3.2–3.4, Fig. 2b).

    flatten → embed → HPE → l meta-tokens → CAM over time on each → SPE → e;      Δx_i = MLP[r_i, e]

State grows with the number of tensors: l memories each, and l is one up to a tensor of L^levels elements.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mnemosyne.memory.compact import cam
from mnemosyne.memory.contract import Memory
from mnemosyne.memory.layers import layer_norm, linear, linear_init
from mnemosyne.optimizer.packing import Tensors, scale_by_rows
from mnemosyne.optimizer.paper import encoder_init, remember, two_inputs
from mnemosyne.optimizer.rule import COORDINATE, Config
from mnemosyne.optimizer.sizes import scale_by_tensor_rms
from mnemosyne.optimizer.spatial import (
    chunks_of,
    each_chunk,
    lay_chunks,
    metatokens,
    pool,
    pool_hierarchically,
    summary_init,
)
from mnemosyne.optimizer.transform import for_any_network
from mnemosyne.types import Learned, State, Theta


def tensorwise(
    config: Config = COORDINATE,
    memory: Memory | None = None,
    represent: Callable[[Array, float], Array] = two_inputs,
    prepare: optax.GradientTransformation | None = None,
    *,
    length: int = 128,
    levels: int = 2,
) -> Learned:
    """Build the optimizer that sees each tensor as a whole (§3.4, Fig. 2b).

        r_i = represent(g_i);    M = HPE(W r + b);    M' = temporal encoders(M);    e = SPE(M');
        Δx_i = scale · wᵀ gelu(W_h [r_i, LN e] + b_h) + b

    Args:
        config: the sizes; spatial encoders share the temporal ones'.
        memory: what each temporal encoder remembers with; the paper's CAM of `config`'s sizes by default.
        represent: (gradients [*s], p) → inputs [*s k], the paper's two by default.
        prepare: what gradients go through first; `optimizer.scale_by_tensor_rms()` by default.
        length: L ≥ 2, elements of a chunk. The paper does not state it.
        levels: n_pool ≥ 1; a tensor of n elements has ⌈n / L^levels⌉ meta-tokens. The paper's Fig. 1 has two.

    Returns:
        A `Learned`. Its optimizer sees the elements of a chunk as a set, and the chunks of a meta-token, and the
        meta-tokens: permuting any of these permutes the update, moving elements from chunk to chunk does not.

    Raises:
        ValueError: if length or levels is too small; from the optimizer as `from_rule`.

    Numerics: float32 memories, updates in the gradients' dtypes. All tensors pass in one program, in blocks of
    `spatial.BLOCK` elements, so that beside a few copies of the gradients the working memory does not grow with them.
    Gradients that are sharded are gathered for it.

    Reference: Jain et al. 2023, §3.2–3.4.

    Example:
        learned = tensorwise()
        tx = learned.make(learned.init(jax.random.key(0)))
    """
    if length < 2 or levels < 1:
        raise ValueError(f"a hierarchy needs length ≥ 2 and levels ≥ 1, got length = {length}, levels = {levels}")
    memory = memory or cam(projections=config.projections, discount=config.discount)
    d = config.hidden
    inputs = jax.eval_shape(lambda: represent(jnp.zeros(()), config.magnitude)).size

    def init(key: Array) -> Theta:
        embed, spatial, up, out, *keys = jax.random.split(key, 4 + levels + config.encoders)
        return {
            "embed": linear_init(embed, inputs, d),
            "levels": [summary_init(k, config) for k in keys[:levels]],
            "encoders": [encoder_init(k, config, memory) for k in keys[levels:]],
            "spatial": summary_init(spatial, config),
            "up": linear_init(up, inputs + d, config.feedforward),
            "out": linear_init(out, config.feedforward, 1, gain=0.1),
        }

    def state(shape: tuple) -> State:
        return tuple(memory.state(shape, d, d) for _ in range(config.encoders))

    def extent(shape: tuple) -> int:
        return metatokens(math.prod(shape), length, levels)

    def step(theta: Theta, tensors: Tensors, state: State, g: Array) -> tuple[State, Array]:
        see = lambda g: represent(g, config.magnitude)
        flat, sizes = g.reshape(-1), tensors.sizes
        embed = lambda g: linear(theta["embed"], see(g))
        tokens, counts = pool_hierarchically(theta["levels"], flat, sizes, length, embed)
        state, x = remember(memory, theta["encoders"], state, tokens)
        codes = pool(theta["spatial"], x, counts, max(1, *counts))
        chunks = chunks_of(sizes, length)
        # An empty tensor has no code, and no chunk that would ask for it.
        code = np.cumsum(sizes > 0)[chunks.owner] - 1
        moved = each_chunk(lambda g, e: move(theta, see(g), e, config.output_scale), flat, chunks, length, codes[code])
        return state, lay_chunks(moved, chunks, len(flat)).reshape(g.shape)

    def make(theta: Theta) -> optax.GradientTransformationExtraArgs:
        return for_any_network(prepare or scale_by_tensor_rms(), scale_by_rows(state, extent, partial(step, theta)))

    return Learned(init, make)


def move(theta: Theta, inputs: Float[Array, "n k"], code: Float[Array, "d"], scale: float) -> Float[Array, "n"]:
    """The layer that ends it: Δx_i = scale · (wᵀ gelu(W_h [r_i, LN e] + b_h) + b)."""
    k = inputs.shape[-1]
    # The part of W_h that meets e is applied once a chunk, not once a parameter.
    shared = layer_norm(code) @ theta["up"]["w"][k:] + theta["up"]["b"]
    return scale * linear(theta["out"], jax.nn.gelu(inputs @ theta["up"]["w"][:k] + shared[None]))[:, 0]
