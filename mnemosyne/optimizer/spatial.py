"""Space: what the elements of one tensor have in common, in a few vectors (paper §3.2).

Bi-directional linear attention is the memory of Eq. 3–5 written with all tokens before it is read, at λ = 0, so a
spatial encoder has the weights of a temporal one. Nothing tells tokens their places: encodings do not depend on
their order. A chunk stands for its tokens by the encoding of one more, learned token among them, and

    metatokens, counts = pool_hierarchically(theta, x, lengths, length=64)   # HPE: per tensor ⌈n / Lⁿᵖᵒᵒˡ⌉ of [d]

repeats this, chunk by chunk. The spatial encoder SPE is one more such pooling whose chunk is all there is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Chunks(NamedTuple):
    """Where the c chunks of sequences lie that are laid end to end; the last of each sequence may be shorter."""

    start: Int[np.ndarray, "c"]
    count: Int[np.ndarray, "c"]
    owner: Int[np.ndarray, "c"]  # which sequence


def chunks_of(lengths: Sequence[int] | np.ndarray, length: int) -> Chunks:
    """Cut sequences of these lengths into chunks of L."""
    lengths = np.asarray(lengths, np.int32)
    owner = np.repeat(np.arange(len(lengths), dtype=np.int32), -(-lengths // length))
    first = np.searchsorted(owner, owner)
    within = length * (np.arange(len(owner), dtype=np.int32) - first.astype(np.int32))
    start = (np.cumsum(lengths, dtype=np.int32) - lengths)[owner] + within
    return Chunks(start, np.minimum(length, lengths[owner] - within), owner)


def each_chunk(
    f: Callable, x: Shaped[Array, "n *t"], chunks: Chunks, length: int, *others: Array | np.ndarray
) -> Array:
    """f(L tokens, *others) of every chunk, about `BLOCK` tokens at a time; gradients compute each block again.

    What lies behind a short chunk's own tokens are its neighbour's, or zeros.
    """
    padded = jnp.pad(x, [(0, length), *[(0, 0)] * (x.ndim - 1)])

    def one(start: Array, *others: Array) -> Array:
        return f(jax.lax.dynamic_slice_in_dim(padded, start, length), *others)

    n = len(chunks.start)
    size = max(1, -(-n // max(1, n * length // BLOCK)))
    blocks = tuple(cut(jnp.asarray(per_chunk), size) for per_chunk in (chunks.start, *others))
    out = jax.lax.map(lambda block: jax.checkpoint(jax.vmap(one))(*block), blocks)
    return out.reshape(-1, *out.shape[2:])[:n]


def cut(x: Shaped[Array, "n *t"], length: int) -> Shaped[Array, "c l *t"]:
    """Cut into ⌈n / L⌉ blocks of L, the last padded with zeros."""
    blocks = -(-len(x) // length)
    padded = jnp.pad(x, [(0, blocks * length - len(x)), *[(0, 0)] * (x.ndim - 1)])
    return padded.reshape(blocks, length, *x.shape[1:])


def lay_chunks(out: Float[Array, "c l"], chunks: Chunks, total: int) -> Float[Array, "n"]:
    """Lay what was made of chunks where they lay in their n = `total` elements."""
    length = out.shape[1]
    own = jnp.where(np.arange(length)[None] < chunks.count[:, None], out, 0.0)
    places = jax.lax.ScatterDimensionNumbers((1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,))
    return jax.lax.scatter_add(jnp.zeros(total + length, out.dtype), chunks.start[:, None], own, places)[:total]


def pool(
    theta: Theta,
    x: Shaped[Array, "n *t"],
    lengths: Sequence[int] | np.ndarray,
    length: int,
    embed: Callable[[Array], Array] = lambda x: x,
) -> Float[Array, "c d"]:
    """Let one vector stand for each chunk of L tokens: one level of the hierarchy (§3.2.1).

    Args:
        theta: weights, see `summary_init`.
        x: sequences of tokens, end to end.
        lengths: of each; they sum to n.
        length: L ≥ 1.
        embed: [L …] → tokens [L d], applied block by block since tokens take d times the memory of gradients.

    Returns:
        ⌈lengths / L⌉ vectors for each sequence, end to end.
    """
    chunks = chunks_of(lengths, length)
    return each_chunk(lambda tokens, count: summarise(theta, embed(tokens), count), x, chunks, length, chunks.count)


def pool_hierarchically(
    levels: list[Theta],
    x: Shaped[Array, "n *t"],
    lengths: Sequence[int] | np.ndarray,
    length: int,
    embed: Callable[[Array], Array] = lambda x: x,
) -> tuple[Float[Array, "m d"], list[int]]:
    """Turn tensors of any lengths into l = ⌈n / L^levels⌉ meta-tokens each: the encoder HPE (§3.2.1).

    A short tensor, of one chunk, is encoded once: the hierarchy is not applied to it.

    Args:
        levels: weights of each level, at least one.
        x: sequences, end to end.
        lengths: of each.
        length: L ≥ 2.
        embed: what makes tokens of them, see `pool`.

    Returns:
        (the meta-tokens of all, end to end; how many each has)
    """
    tokens, counts = pool(levels[0], x, lengths, length, embed), -(-np.asarray(lengths, np.int32) // length)
    for theta in levels[1:]:
        long = counts > 1
        if long.any():
            of_long = np.repeat(long, counts)
            shorter = pool(theta, tokens[np.flatnonzero(of_long)], counts[long], length)
            counts = np.where(long, -(-counts // length), counts)
            is_new = np.repeat(long, counts)
            known = np.flatnonzero(~of_long)
            place = np.zeros(len(is_new), np.int32)
            place[is_new], place[~is_new] = len(known) + np.arange(len(shorter)), np.arange(len(known))
            tokens = jnp.concatenate([tokens[known], shorter])[place]
    return tokens, counts.tolist()


def metatokens(size: int, length: int, levels: int) -> int:
    """l = ⌈n / L^levels⌉, how many meta-tokens stand for a tensor of n elements."""
    return -(-size // length**levels)
