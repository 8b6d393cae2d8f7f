"""Space: what the elements of one tensor have in common, in a few vectors (paper §3.2).

Bi-directional linear attention is the memory of Eq. 3–5 written with all tokens before it is read, at λ = 0, so a
spatial encoder has the weights of a temporal one. Nothing tells tokens their places: encodings do not depend on
their order. A chunk stands for its tokens by the encoding of one more, learned token among them, and

    metatokens = pool_hierarchically(theta, tensors, length=64)   # HPE: per tensor [⌈n / Lⁿᵖᵒᵒˡ⌉ d]

repeats this, chunk by chunk. The spatial encoder SPE is one more such pooling whose chunk is all there is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mnemosyne.memory.compact import CAMState, cam, read
from mnemosyne.memory.contract import queries_and_keys
from mnemosyne.memory.features import FeatureMap, hyperbolic
from mnemosyne.memory.layers import layer_norm
from mnemosyne.optimizer.paper import encoder_init, feedforward
from mnemosyne.optimizer.rule import Config
from mnemosyne.types import Theta

BLOCK = 2**16
"""Tokens that are encoded at a time: enough to keep a processor busy, few enough to need megabytes only."""


def encode(
    theta: Theta,
    x: Float[Array, "q d"],
    tokens: Float[Array, "n d"],
    real: Bool[Array, "n"],
    feature_map: FeatureMap = hyperbolic,
) -> Float[Array, "q d"]:
    """Encode tokens x among others by a bi-directional Performer (§3.2): pre-LN attention, then a feed-forward layer.

        y = LN tokens:   N = Σ_j φ(k_j) y_jᵀ,   Ψ = Σ_j φ(k_j);      x ← x + W_V Nᵀφ(q) / (φ(q)ᵀΨ),
        x ← x + W_2 gelu(W_1 LN x)

    Args:
        theta: weights of one encoder, as `paper.encoder_init` makes them of a CAM.
        x: the tokens whose encodings are wanted; `tokens` again for those of all.
        tokens: what they attend to.
        real: false where a token is padding, whose content, if finite, changes nothing.
        feature_map: φ.

    Returns:
        An encoding for each x; a permutation of `tokens` changes none, up to rounding.
    """
    among, omega = layer_norm(tokens), jax.lax.stop_gradient(theta["memory"]["omega"])
    _, k = queries_and_keys(theta["memory"], among)
    phi_k = jnp.where(real[:, None], feature_map.features(k, omega), 0.0)
    written = CAMState(N=jnp.einsum("nc,nm->cm", among, phi_k), Psi=jnp.sum(phi_k, axis=0))
    q, _ = queries_and_keys(theta["memory"], layer_norm(x))
    recalled = jax.vmap(lambda phi_q: read(written, phi_q))(feature_map.query(q, omega))
    return feedforward(theta, x + recalled @ theta["memory"]["value"])


def summary_init(key: Array, config: Config) -> Theta:
    """Weights of one pooling: an encoder, and the token whose encoding stands for a chunk."""
    token, encoder = jax.random.split(key)
    memory = cam(projections=config.projections)
    return {
        "token": jax.random.normal(token, (config.hidden,), jnp.float32),
        "encoder": encoder_init(encoder, config, memory),
    }


def summarise(theta: Theta, tokens: Float[Array, "n d"], count: Int[Array, ""]) -> Float[Array, "d"]:
    """The encoding of the learned token among the first `count` of n tokens: the topological encoding of §3.2."""
    token = theta["token"][None]
    real = jnp.arange(len(tokens) + 1) <= count
    return encode(theta["encoder"], token, jnp.concatenate([token, tokens]), real)[0]


def cut(x: Shaped[Array, "n *t"], length: int) -> Shaped[Array, "c l *t"]:
    """Cut a sequence into ⌈n / L⌉ chunks of L tokens, the last padded with zeros."""
    chunks = -(-len(x) // length)
    padded = jnp.pad(x, [(0, chunks * length - len(x)), *[(0, 0)] * (x.ndim - 1)])
    return padded.reshape(chunks, length, *x.shape[1:])


def in_blocks(f: Callable, length: int, *chunks: Array) -> Array:
    """Apply f to every chunk of L tokens, about `BLOCK` tokens at a time; gradients compute each block again."""
    n = len(chunks[0])
    size = max(1, -(-n // max(1, n * length // BLOCK)))
    out = jax.lax.map(lambda block: jax.checkpoint(jax.vmap(f))(*block), tuple(cut(x, size) for x in chunks))
    return out.reshape(-1, *out.shape[2:])[:n]


def pool(
    theta: Theta, tensors: list[Array], length: int, embed: Callable[[Array], Array] = lambda x: x
) -> list[Float[Array, "c d"]]:
    """Let one vector stand for each chunk of L tokens: one level of the hierarchy (§3.2.1).

    Args:
        theta: weights, see `summary_init`.
        tensors: sequences of tokens [n_i …], encoded in one call.
        length: L ≥ 1.
        embed: [L …] → tokens [L d], applied block by block since tokens take d times the memory of gradients.

    Returns:
        For each sequence ⌈n_i / L⌉ vectors.
    """
    chunks = [cut(x, length) for x in tensors]
    counts = [np.minimum(length, len(x) - length * np.arange(len(c))) for x, c in zip(tensors, chunks, strict=True)]
    encodings = in_blocks(
        lambda chunk, count: summarise(theta, embed(chunk), count),
        length,
        jnp.concatenate(chunks),
        jnp.asarray(np.concatenate(counts), jnp.int32),
    )
    return jnp.split(encodings, np.cumsum([len(c) for c in chunks])[:-1])


def pool_hierarchically(
    levels: list[Theta], tensors: list[Array], length: int, embed: Callable[[Array], Array] = lambda x: x
) -> list[Float[Array, "l d"]]:
    """Turn tensors of any lengths into l = ⌈n / L^levels⌉ meta-tokens each: the encoder HPE (§3.2.1).

    A short tensor, of one chunk, is encoded once: the hierarchy is not applied to it.

    Args:
        levels: weights of each level, at least one.
        tensors: sequences [n_i …].
        length: L ≥ 2.
        embed: what makes tokens of them, see `pool`.

    Returns:
        Meta-tokens for each.
    """
    tokens = pool(levels[0], tensors, length, embed)
    for theta in levels[1:]:
        long = [i for i, x in enumerate(tokens) if len(x) > 1]
        if long:
            shorter = pool(theta, [tokens[i] for i in long], length)
            for i, x in zip(long, shorter, strict=True):
                tokens[i] = x
    return tokens


def metatokens(size: int, length: int, levels: int) -> int:
    """l = ⌈n / L^levels⌉, how many meta-tokens stand for a tensor of n elements."""
    return -(-size // length**levels)
