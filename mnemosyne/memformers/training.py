"""Train Memformers on random prompts, several seeds and learning rates side by side in one program."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mnemosyne.memformers.layers import Memformer, Weights, init, predict
from mnemosyne.memformers.prompts import Distribution, Prompt, draw
from mnemosyne.types import Scalar


class Recipe(NamedTuple):
    """How a Memformer is trained. The paper states batch, renewal, clip and Adam; rate and steps are ours."""

    steps: int = 2_000  # of Adam, a multiple of `renewal`
    batch: int = 1_000  # prompts
    renewal: int = 100  # steps after which the batch is drawn anew
    clip: float = 0.01  # largest norm of a layer's gradient, for each matrix of weights
    examples: int = 20  # n


def loss(model: Memformer, weights: Weights, prompts: Prompt) -> Scalar:
    """The mean squared error of the last layer's answer over a batch."""
    return jnp.mean(errors(model, weights, prompts)[:, -1])


def errors(model: Memformer, weights: Weights, prompts: Prompt) -> Float[Array, "b layers+1"]:
    """Squared errors of the answers after each layer."""
    answers = jax.vmap(lambda tokens: predict(model, weights, tokens))(prompts.tokens)
    return (answers - prompts.answer[:, None]) ** 2


def clipped(gradient: Weights, norm: float) -> Weights:
    """Each layer's part of each array, scaled down to a norm where it is longer."""

    def one(g: Array) -> Array:
        length = jnp.sqrt(jnp.sum(g**2, axis=tuple(range(1, g.ndim)), keepdims=True))
        return g * norm / jnp.maximum(length, norm)

    return jax.tree.map(one, gradient)


def train(
    model: Memformer, recipe: Recipe, distributions: Distribution, seeds: Array, rates: Array
) -> tuple[Weights, Float[Array, "r s chunks"]]:
    """Train from each seed at each learning rate; the rate falls to zero along a half cosine.

    A seed, a key with a distribution of its own, fixes the first weights and all prompts, whatever the model and rate.

    Returns:
        Weights with leading axes of rates and seeds, and the mean loss on every batch before it was first trained on.

    Raises:
        ValueError: if there is nothing to train, or the steps are no multiple of the renewal.
    """
    if model.layers < 1:
        raise ValueError("a Memformer without layers has nothing to train")
    if recipe.steps % recipe.renewal or min(recipe[:3]) < 1:
        raise ValueError(f"steps must be a multiple of renewal, and all sizes at least 1, got {recipe}")
    of_seeds = jax.vmap(partial(_train_one, model, recipe), (0, 0, None))
    return jax.jit(lambda *given: jax.lax.map(lambda rate: of_seeds(*given, rate), rates))(distributions, seeds)


def _train_one(
    model: Memformer, recipe: Recipe, distribution: Distribution, key: Array, rate: Scalar
) -> tuple[Weights, Float[Array, " chunks"]]:
    adam, falling = optax.scale_by_adam(), optax.cosine_decay_schedule(1.0, recipe.steps)

    def step(prompts: Prompt, t: Array, carry: tuple) -> tuple:
        weights, moments = carry
        gradient = clipped(jax.grad(partial(loss, model))(weights, prompts), recipe.clip)
        updates, moments = adam.update(gradient, moments)
        return jax.tree.map(lambda w, u: w - rate * falling(t) * u, weights, updates), moments

    def chunk(carry: tuple, c: Array) -> tuple[tuple, Scalar]:
        prompts = training_batch(recipe, distribution, key, c)
        before = loss(model, carry[0], prompts)
        first = c * recipe.renewal
        return jax.lax.fori_loop(first, first + recipe.renewal, partial(step, prompts), carry), before

    weights = init(model, jax.random.fold_in(key, 5_000), d=distribution.root.shape[-1], examples=recipe.examples)
    carry, curve = jax.lax.scan(chunk, (weights, adam.init(weights)), jnp.arange(recipe.steps // recipe.renewal))
    return carry[0], curve


def training_batch(recipe: Recipe, distribution: Distribution, key: Array, chunk: int | Array) -> Prompt:
    """The prompts of a seed between two renewals."""
    return batch(distribution, recipe.examples, jax.random.fold_in(key, 10_000 + chunk), recipe.batch)


def batch(distribution: Distribution, examples: int, key: Array, number: int) -> Prompt:
    """Independent prompts."""
    return jax.vmap(partial(draw, distribution, examples))(jax.random.split(key, number))
