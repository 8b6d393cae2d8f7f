"""The experiments of notebook 28: Mnemosyne's memory and that of Memformers on the same prompts."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from jaxtyping import Array, Float

from mnemosyne.book.studies.memformers import distributions, fresh, summed_up
from mnemosyne.memformers import layers, methods
from mnemosyne.memformers.layers import Memformer, Weights, predict
from mnemosyne.memformers.prompts import Tokens
from mnemosyne.memory import hyperbolic, orthogonal_projections
from mnemosyne.memory.compact import CAMState, write
from mnemosyne.types import Scalar


class Registers(NamedTuple):
    """Two memories that were shown the same attention."""

    apart: float  # largest difference of the CGD-like register and the CAM's N, over the largest entry
    bytes: pd.DataFrame  # of three memories after each layer


def side_by_side(tokens: Tokens, discount: Scalar | float, k: int) -> Registers:
    """Show what k layers attended to, to a CGD-like register with γ = e^{−λ} and to a CAM with one constant feature."""
    memory, lfom, attention = layers.cgd_like(), layers.lfom(), layers.steps()
    gamma = jnp.full(k, jnp.exp(-discount))
    weights = {"alpha": jnp.full(k, 0.5), "gamma": gamma}
    zeros = Tokens(None, jnp.zeros_like(tokens.y))
    gains = lfom.init(k, zeros)
    cam = CAMState(jnp.zeros((tokens.y.size, 1)), jnp.zeros(1))
    register, kept, now, apart, rows = memory.state(zeros), lfom.state(zeros), tokens, 0.0, []
    size = lambda state: sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    for i in range(k):
        written = attention.write({"a": 1.0}, now)
        cam = write(cam, jnp.ones(1), written.y, discount)
        kept, _ = lfom.step(gains, i, kept, written)
        register, added = memory.step(weights, i, register, written)
        now = Tokens(now.x, now.y + added.y / (now.y.size - 1))
        apart = max(apart, float(jnp.abs(register.y - cam.N[:, 0]).max() / jnp.abs(cam.N).max()))
        rows.append({"layer": i + 1, "CAM": size(cam), "CGD-like": size(register), "LFOM": size(kept)})
    return Registers(apart, pd.DataFrame(rows))


def race(
    model: Memformer,
    weights: Weights,
    stretch: Sequence[float],
    seeds: Sequence[int],
    prompts: int,
    steps: int,
    optimizers: dict[str, optax.GradientTransformation],
) -> pd.DataFrame:
    """Squared errors of the answer against gradients looked at: rows (method, gradients, seed, log_mean, …).

    A trained Memformer, optimizers that train w on each prompt from zero, gradient descent, and conjugate gradients.
    """
    of = distributions(stretch, seeds)
    test, k = fresh(of, seeds, 2, prompts), model.layers
    each = lambda answer: jax.jit(jax.vmap(jax.vmap(answer)))(test.tokens)
    found = {
        "Memformer": jax.jit(jax.vmap(lambda w, t: jax.vmap(partial(predict, model, w))(t)))(weights, test.tokens),
        "conjugate gradients": each(lambda t: methods.conjugate_gradients(t, k)),
        **{f"Mnemosyne {n}": each(lambda t, tx=tx: trained_by(tx, t, steps)) for n, tx in optimizers.items()},
        "gradient descent": each(lambda t: trained_by(optax.sgd(0.7), t, steps)),
    }
    rows = []
    for name, answers in found.items():
        losses = (answers - test.answer[..., None]) ** 2
        for at in sorted({*range(min(11, losses.shape[-1])), *range(0, losses.shape[-1], 10)}):
            rows += summed_up(seeds, losses[..., at], method=name, gradients=at)
    return pd.DataFrame(rows)


def trained_by(tx: optax.GradientTransformation, tokens: Tokens, steps: int) -> Float[Array, " steps+1"]:
    """Answers while an optimizer trains w on one prompt, from w = 0."""
    S, b = methods.normal_equations(tokens)

    def step(carry: tuple, _: None) -> tuple[tuple, Array]:
        w, state = carry
        updates, state = tx.update(S @ w - b, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    w = jnp.zeros_like(b)
    _, ws = jax.lax.scan(step, (w, tx.init(w)), length=steps)
    return jnp.concatenate([w[None], ws]) @ tokens.x[:, -1]


def gradients_of(tokens: Tokens, rate: float, steps: int) -> Float[Array, "steps d"]:
    """Gradients along gradient descent on one prompt."""
    S, b = methods.normal_equations(tokens)
    w, found = jnp.zeros(len(b)), []
    for _ in range(steps):
        found.append(S @ w - b)
        w = w - rate * found[-1]
    return jnp.stack(found)


def attended(
    gradients: Float[Array, "steps d"], discount: float, projections: int, key: Array
) -> Float[Array, " steps"]:
    """The share of each past gradient in what a CAM reads with the last one for its query.

    Queries and keys are directions of gradients, scaled to √d, so that no learned weight is in it.
    """
    unit = gradients / jnp.linalg.norm(gradients, axis=1, keepdims=True)
    keys = unit * gradients.shape[1] ** 0.25
    omega = orthogonal_projections(key, projections, gradients.shape[1])
    phi_q, phi_k = hyperbolic.query(keys[-1:], omega)[0], hyperbolic.features(keys, omega)
    age = jnp.arange(len(gradients))[::-1]
    share = phi_k @ phi_q * jnp.exp(-discount * age)
    return share / share.sum()
