"""Learned optimizers as `truncated.Student`s: coordinate-wise rules on a sample of coordinates, others whole."""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mnemosyne.metatrain.truncated import Piece, Rollout, Student, unraveler
from mnemosyne.optimizer.rule import Rule
from mnemosyne.types import Learned, State, Task, Theta


def by_coordinate(rule: Rule, prepare: optax.GradientTransformation, coordinates: int) -> Student:
    """Meta-train a coordinate-wise rule, differentiating its parallel form on a sample of coordinates.

    Args:
        rule: what to train.
        prepare: what gradients go through first, as in `optimizer.from_rule`.
        coordinates: drawn for each meta-gradient, over all tasks together.

    Returns:
        A student whose meta-gradient has a cost that does not depend on the optimizees' sizes.
    """

    def start(task: Task, x: Array) -> State:
        return rule.state(x.shape), jax.vmap(lambda z: prepare.init(unraveler(task)(z)))(x)

    def step(task: Task, theta: Theta, state: State, g: Array, x: Array, loss: Array):
        del x, loss
        memory, before = state

        def prepared(g, before):
            updates, after = prepare.update(unraveler(task)(g), before)
            return ravel_pytree(updates)[0], after

        inputs, after = jax.vmap(prepared)(g, before)
        memory, u = rule.step(theta, memory, inputs)
        return (memory, after), u, inputs

    def replay(tasks, theta: Theta, states: list, rollouts: list[Rollout], aheads: list[Array], key: Array):
        del tasks
        n = max(1, coordinates // len(rollouts))
        samples = []
        for i, ((memory, _), rollout, ahead) in enumerate(zip(states, rollouts, aheads, strict=True)):
            windows = [a.reshape(a.shape[0], -1) for a in (rollout.seen, ahead, rollout.expert)]
            pick, chance = sample_coordinates(jax.random.fold_in(key, i), windows[1], n)
            inputs, ahead, wanted = (a[:, pick] for a in windows)
            begin = jax.tree.map(lambda a, p=pick: a.reshape(-1, *a.shape[2:])[p], memory)
            spread = 1.0 / (len(rollouts) * n * chance * windows[0].shape[1])  # mean over all coordinates
            samples.append((begin, inputs, ahead / (n * chance)[None], wanted, spread))
        begins, *rest = zip(*samples, strict=True)
        begin = jax.tree.map(lambda *a: jnp.concatenate(a), *begins)
        inputs, ahead, wanted, spread = (jnp.concatenate(a, axis=-1) for a in rest)
        return [Piece(rule.window(theta, begin, inputs), ahead, wanted, spread)]

    return Student(rule.init, start, step, replay)


def sample_coordinates(key: Array, ahead: Array, n: int) -> tuple[Array, Array]:
    """Draw n coordinates with replacement, those that matter for the loss more often.

        p_i = ½ · 1/P + ½ · ‖G_i‖ / Σ_j ‖G_j‖

    The first half keeps every coordinate's weight in the imitation loss below 2. The second is what lowers the
    variance of the task loss: in an MLP on images a few hundred output weights carry most of the gradient, and
    a uniform draw hardly ever finds them.

    Args:
        key: a JAX random key.
        ahead: G [t p], gradients still to come.
        n: how many.

    Returns:
        (indices [n], their p_i [n]).
    """
    size = jnp.linalg.norm(ahead, axis=0)
    total = jnp.sum(size)
    matter = jnp.where(total > 0, size / jnp.where(total > 0, total, 1.0), 1.0 / size.shape[0])
    chance = 0.5 / size.shape[0] + 0.5 * matter
    pick = jax.random.categorical(key, jnp.log(chance), shape=(n,))
    return pick, chance[pick]


def whole(learned: Learned, horizon: int) -> Student:
    """Meta-train any learned optimizer, differentiating it step by step on all coordinates.

    Gradients, parameters and losses that it sees are held constant, as in `by_coordinate`.

    Args:
        learned: what to train.
        horizon: what it is told about the length of training, if it asks.

    Returns:
        A student; memory and time of its meta-gradient grow with the window times the optimizees' sizes.
    """

    def make(theta: Theta) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(learned.make(theta))

    def start(task: Task, x: Array) -> State:
        theta = learned.init(jax.random.key(0))  # a state does not depend on θ
        return jax.vmap(lambda z: make(theta).init(unraveler(task)(z)))(x)

    def move(task: Task, theta: Theta, state: State, g: Array, x: Array, loss: Array):
        def one(state, g, x, loss):
            unravel = unraveler(task)
            u, state = make(theta).update(unravel(g), state, unravel(x), value=loss, horizon=jnp.float32(horizon))
            return state, ravel_pytree(u)[0]

        return jax.vmap(one)(state, g, x, loss)

    def step(task: Task, theta: Theta, state: State, g: Array, x: Array, loss: Array):
        state, u = move(task, theta, state, g, x, loss)
        return state, u, (x, loss)

    def replay(tasks, theta: Theta, states: list, rollouts: list[Rollout], aheads: list[Array], key: Array):
        del key
        pieces = []
        for task, state, rollout, ahead in zip(tasks, states, rollouts, aheads, strict=True):
            inputs = (rollout.gradients[:-1], *rollout.seen)
            _, u = jax.lax.scan(lambda s, a, task=task: move(task, theta, s, *a), state, inputs)
            flat = [a.reshape(a.shape[0], -1) for a in (u, ahead, rollout.expert)]
            spread = jnp.full(flat[0].shape[1], 1.0 / (len(tasks) * flat[0].shape[1]))
            pieces.append(Piece(*flat, spread))
        return pieces

    return Student(learned.init, start, step, replay)
