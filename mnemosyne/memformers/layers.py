"""A Transformer of linear attention with a memory of what its layers attended to (Dutta and Sra 2024).

A layer computes attention and hands it to a memory, whose answer is added to the prompt:

    R_l = Attn(Z_l) = P_l Z_l M (Z_lᵀ Q_l Z_l),    Z_{l+1} = Z_l + memory(R_l, R_{l−1}, …) / n

M = diag(1, …, 1, 0) keeps the query from being attended to. Both parts are arguments, of one prompt; `vmap` does more:

    model = Memformer(preconditioned(), lfom(), layers=4)
    weights = init(model, jax.random.key(0), d=5, examples=20)
    answers = predict(model, weights, prompt.tokens)             # after 0, 1, … 4 layers
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.memformers.prompts import Tokens
from mnemosyne.types import State

Weights = Any  # a pytree of arrays
SPREAD = 1e-2  # standard deviation of matrices before training

# Attention: which entries of P and Q there are ------------------------------------------------------------------------


class Attention(NamedTuple):
    """Linear attention whose P and Q have a certain form."""

    init: Callable[[Array, int], Weights]  # (key, d) → weights of one layer
    write: Callable[[Weights, Tokens], Tokens]  # R; its x is None where P leaves x as it is
    matrices: Callable[[Weights, int], tuple[Array, Array]]  # (weights, d) → P and Q


def attention(P: Float[Array, "*h e e"], Q: Float[Array, "*h e e"], Z: Float[Array, "e t"]) -> Float[Array, "*h e t"]:
    """P Z M (Zᵀ Q Z), from the left or from the right at O(t) cost."""
    known = Z[:, :-1]  # Z M
    return P @ ((known @ known.T) @ (Q @ Z))


def _corner(block: Float[Array, "d d"], last: float = 0.0) -> Float[Array, "e e"]:
    """diag(block, last)."""
    return jnp.pad(block, (0, 1)).at[-1, -1].set(last)


def _gradient(tokens: Tokens) -> Float[Array, " d"]:
    """Σ_i y_i x_i: minus n times the gradient of (1/2n) Σ (⟨w, x_i⟩ − y_i)², as y holds what w leaves unexplained."""
    return tokens.x[:, :-1] @ tokens.y[:-1]


def _normal(key: Array, *shape: int) -> Array:
    return SPREAD * jax.random.normal(key, shape)


def steps() -> Attention:
    """P = diag(0, 1), Q = −a diag(I, 0): without a memory, a step of gradient descent of length a."""
    return Attention(
        init=lambda key, d: {"a": _normal(key)},
        write=lambda w, tokens: Tokens(None, -w["a"] * (_gradient(tokens) @ tokens.x)),
        matrices=lambda w, d: (_corner(jnp.zeros((d, d)), 1.0), -w["a"] * _corner(jnp.eye(d))),
    )


def preconditioned() -> Attention:
    """P = diag(0, 1), Q = −diag(A, 0): a step along Aᵀ times the gradient."""
    return Attention(
        init=lambda key, d: {"A": _normal(key, d, d)},
        write=lambda w, tokens: Tokens(None, _along(w["A"], tokens)),
        matrices=lambda w, d: (_corner(jnp.zeros((d, d)), 1.0), -_corner(w["A"])),
    )


def gdpp() -> Attention:
    """P = diag(B, 1), Q = −diag(A, 0): GD++, which also changes the inputs, x ← x − B S A x with S = Σ x_i x_iᵀ / n."""

    def write(w: Weights, tokens: Tokens) -> Tokens:
        known = tokens.x[:, :-1]
        return Tokens(-(w["B"] @ (known @ known.T) @ w["A"]) @ tokens.x, _along(w["A"], tokens))

    return Attention(
        init=lambda key, d: dict(zip("AB", _normal(key, 2, d, d), strict=True)),
        write=write,
        matrices=lambda w, d: (_corner(w["B"], 1.0), -_corner(w["A"])),
    )


def _along(A: Float[Array, "d d"], tokens: Tokens) -> Float[Array, " t"]:
    return -(_gradient(tokens) @ A) @ tokens.x


def heads(kind: Attention, number: int) -> Attention:
    """Several heads of a kind, at least one, whose writing is added up.

    Heads of `steps` or `preconditioned` are one head with the sum of their matrices, exactly.
    """
    if number < 1:
        raise ValueError(f"attention needs at least 1 head, got {number}")

    def write(w: Weights, tokens: Tokens) -> Tokens:
        return jax.tree.map(lambda r: r.sum(0), jax.vmap(kind.write, (0, None))(w, tokens))

    return Attention(
        init=lambda key, d: jax.vmap(lambda k: kind.init(k, d))(jax.random.split(key, number)),
        write=write,
        matrices=lambda w, d: jax.vmap(lambda one: kind.matrices(one, d))(w),
    )


# Memory: from what was attended to until now to what is added ---------------------------------------------------------


class Memory(NamedTuple):
    """What is kept of the attention of earlier layers, as pure functions."""

    init: Callable[[int, Tokens], Weights]  # (layers, zeros like R) → weights of all layers
    state: Callable[[Tokens], State]  # zeros like R → before the first layer
    step: Callable[[Weights, int, State, Tokens], tuple[State, Tokens]]  # (…, l, …, R_l) → what is added, times n


def _added(parts: list[Tokens]) -> Tokens:
    return jax.tree.map(lambda *r: sum(r), *parts)


def _times(gain: Any, written: Tokens) -> Tokens:
    """A tree of gains times a tree of what was written, or one number times all of it."""
    if isinstance(gain, Tokens):
        return jax.tree.map(jnp.multiply, gain, written)
    return jax.tree.map(lambda r: gain * r, written)


def none() -> Memory:
    """Z ← Z + R_l / n: the linear Transformer."""
    return Memory(lambda layers, like: {}, lambda like: (), lambda w, i, state, written: (state, written))


def cgd_like() -> Memory:
    """R_l = Attn + γ_l R_{l−1}, Z ← Z + α_l R_l / n: one register. Momentum with fixed numbers."""

    def step(w: Weights, i: int, state: Tokens, written: Tokens) -> tuple[Tokens, Tokens]:
        state = _added([written, _times(w["gamma"][i], state)])
        return state, _times(w["alpha"][i], state)

    return Memory(lambda layers, like: {"alpha": jnp.ones(layers), "gamma": jnp.zeros(layers)}, lambda like: like, step)


def lfom() -> Memory:
    """Z ← Z + Σ_{j ≤ l} Γ_j ⊙ R_j / n: every R_j is kept, with a gain Γ_j of its own size, the same in all layers."""
    return Memory(_for_each_register, lambda like: (), _registers(lambda w, i, j: _of(w["Gamma"], j)))


def present() -> Memory:
    """Z ← Z + Γ_l ⊙ R_l / n: `lfom` without the past, with as many weights."""
    gain = lambda w, i, j: _of(w["Gamma"], j) if j == i else None
    return Memory(_for_each_register, lambda like: (), _registers(gain))


def lfom_by_layer() -> Memory:
    """Z ← Z + Σ_{j ≤ l} Γ_{lj} R_j / n, a number for each pair of layers: any linear first-order method."""
    gains = _registers(lambda w, i, j: w["Gamma"][i, j])
    return Memory(lambda layers, like: {"Gamma": jnp.eye(layers)}, lambda like: (), gains)


def _registers(gain: Callable[[Weights, int, int], Any]) -> Callable:
    """Keep every R_j, and add Σ_{j ≤ l} gain(l, j) ⊙ R_j; a gain of None leaves R_j out."""

    def step(w: Weights, i: int, state: tuple, written: Tokens) -> tuple[tuple, Tokens]:
        state = (*state, written)
        gains = [gain(w, i, j) for j in range(i + 1)]
        return state, _added([_times(g, r) for g, r in zip(gains, state, strict=True) if g is not None])

    return step


def _for_each_register(layers: int, like: Tokens) -> Weights:
    return {"Gamma": jax.tree.map(lambda r: jnp.ones((layers, *r.shape)), like)}


def _of(gains: Any, j: int) -> Any:
    return jax.tree.map(lambda g: g[j], gains)


def tied(memory: Memory) -> Memory:
    """The same memory with one layer's weights in all layers."""
    return Memory(
        lambda layers, like: memory.init(min(layers, 1), like),
        memory.state,
        lambda w, i, *rest: memory.step(w, 0, *rest),
    )


class Memformer(NamedTuple):
    """Which attention, which memory, how many layers."""

    attention: Attention
    memory: Memory
    layers: int  # 0: the prompt is answered by 0
    distinct: int | None = None  # how many layers have matrices of their own, the others use them in turn; None: all

    @property
    def own(self) -> int:
        return self.layers if self.distinct is None else min(self.distinct, self.layers)


def init(model: Memformer, key: Array, *, d: int, examples: int) -> Weights:
    """Weights before training: matrices near zero, gains of one; a ValueError for sizes that make no sense."""
    distinct = 1 if model.distinct is None else model.distinct
    if model.layers < 0 or min(distinct, d, examples) < 1:
        told = f"{model.layers} layers, {distinct} distinct, d = {d}, {examples} examples"
        raise ValueError(f"layers must be at least 0, distinct layers, d and examples at least 1, got {told}")
    empty = Tokens(jnp.zeros((d, examples + 1)), jnp.zeros(examples + 1))
    layer = jax.vmap(lambda k: model.attention.init(k, d))
    return {
        "attention": layer(jax.random.split(key, model.own)),
        "memory": model.memory.init(model.layers, _zeros(model, empty)),
    }


def _zeros(model: Memformer, tokens: Tokens) -> Tokens:
    """Zeros like what a layer writes."""
    weights = jax.eval_shape(lambda: model.attention.init(jax.random.key(0), tokens.x.shape[0]))
    return jax.tree.map(lambda r: jnp.zeros(r.shape, r.dtype), jax.eval_shape(model.attention.write, weights, tokens))


def forward(model: Memformer, weights: Weights, tokens: Tokens) -> list[Tokens]:
    """The prompt before the first layer, and after each."""
    state, after = model.memory.state(_zeros(model, tokens)), [tokens]
    n = tokens.y.size - 1
    for i in range(model.layers):
        written = model.attention.write(_of(weights["attention"], i % model.own), after[-1])
        state, (x, y) = model.memory.step(weights["memory"], i, state, written)
        last = after[-1]
        after.append(Tokens(last.x if x is None else last.x + x / n, last.y + y / n))
    return after


def predict(model: Memformer, weights: Weights, tokens: Tokens) -> Float[Array, " layers+1"]:
    """What is answered to the query before the first layer, and after each: −y of the query's token."""
    return -jnp.stack([after.y[-1] for after in forward(model, weights, tokens)])
