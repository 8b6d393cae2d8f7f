"""Truncated back-propagation with imitation: how the paper meta-trains (App. B.1).

Optimizees run for a horizon of steps under the rule as it is. Every `window` steps the rule's weights θ take one
Adam step on

    L(θ) = loss in the window + w · mean (u_θ − u_expert)² / η²

where the expert is Adam at rate η on the same, on-policy gradients. With second derivatives of the optimizee
dropped, as is usual since Andrychowicz et al. 2016, the window's meta-gradient is that of Σ_s u_s · G_s with
G_s = Σ_{t>s} g_t. So windows are rolled out without differentiation, and then *replayed*: a coordinate-wise rule on
a random sample of coordinates in its memory's parallel form, the same gradient in expectation at a cost that does
not grow with the optimizee; any other learned optimizer step by step. Tasks are weighed by 1 / Σ_s |u_expert,s|ᵀ |G_s|,
each in units of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mnemosyne.metatrain.checks import check_above_zero, check_not_negative, check_positive, check_seed
from mnemosyne.metatrain.loop import Carry, begin, descend, meta_adam, renew
from mnemosyne.types import State, Task, Theta


@dataclass(frozen=True)
class MetaConfig:
    """What meta-training does. The paper states horizon, window, batch, meta-rate, expert and scaling."""

    iterations: int = 300  # meta-steps, one window each
    horizon: int = 100  # steps an optimizee is trained before it starts afresh
    window: int = 20  # steps of truncated back-propagation; must divide the horizon
    replicas: int = 1  # independent runs of each task at a time
    learning_rate: float = 1e-3  # of meta-Adam, cosine-decayed to a tenth; the paper's is 3e-4
    clip: float = 1.0  # global norm of the meta-gradient
    expert_rate: float = 1e-2  # η of the expert Adam; the paper's is 3e-2, too large for standardised MNIST
    imitation: float = 2.0  # w after warm-up; the paper does not state it
    imitation_warmup: float = 10.0  # w before
    warmup: int = 60  # iterations
    scaling: float = 1.0  # s: coordinates are scaled by exp(U(−s, s)) (Lv et al. 2017)
    coordinates: int = 1500  # drawn for each meta-gradient, over all tasks together
    seed: int = 0

    def __post_init__(self):
        check_positive(self, "iterations", "horizon", "window", "replicas", "coordinates")
        check_above_zero(self, "clip", "expert_rate")
        check_not_negative(self, "learning_rate", "imitation", "imitation_warmup", "warmup", "scaling")
        check_seed(self.seed)
        if self.horizon % self.window:
            raise ValueError(f"window {self.window} does not divide horizon {self.horizon}")


class Slots(NamedTuple):
    """R replicas of one task, each somewhere within its horizon. P is the task's number of parameters."""

    x: Array  # [r p] parameters divided by `scale`
    scale: Array  # [r p]
    state: State  # [r …] the student's
    expert: State  # [r …]
    age: Array  # [r] int32, steps since the start
    first: Array  # [r] loss at the start
    failed: Array  # [r] bool


class Rollout(NamedTuple):
    """What one window of one task yields."""

    losses: Array  # [t+1 r]
    gradients: Array  # [t+1 r p], of the scaled parameters
    seen: State  # [t r …], what the student needs to take the same steps again
    expert: Array  # [t r p], what the expert would have done


class Piece(NamedTuple):
    """Updates as functions of θ, beside all that the meta-loss compares them with: [t n] over n coordinates."""

    updates: Array
    ahead: Array  # G_s, weighed
    expert: Array
    spread: Array  # [n], each coordinate's weight in the mean of the imitation loss


class Student(NamedTuple):
    """How a learned optimizer takes part: it takes steps, and can take them again for θ's gradient."""

    init: Callable[[Array], Theta]
    start: Callable[[Task, Array], State]  # (task, parameters [r p]) → state [r …]
    step: Callable  # (task, θ, state, gradients [r p], x [r p], losses [r]) → (state, updates [r p], seen)
    replay: Callable  # (tasks, θ, states, rollouts, aheads, key) → pieces


class Truncated(NamedTuple):
    """Pure functions of one meta-training run; `metatrain.meta_train` runs it."""

    student: Student
    tasks: tuple[Task, ...]
    config: MetaConfig

    chunk = 20  # iterations compiled into one program
    save_every = 100

    def start(self) -> Carry:
        """θ, optimizees and their ages at iteration 0; ages are staggered so that every window has all phases."""
        c = self.config
        fresh = lambda task, theta, key: self.fresh(task, key)
        ages = lambda i, slots: (i + np.arange(c.replicas)) * c.window % c.horizon
        return begin(c, self.meta, self.student.init, fresh, self.tasks, ages)

    @property
    def meta(self) -> optax.GradientTransformation:
        return meta_adam(self.config, optax.clip_by_global_norm(self.config.clip))

    def fresh(self, task: Task, key: Array) -> Slots:
        """R new replicas of a task, with new random scales."""
        r, s = self.config.replicas, self.config.scaling
        init_key, scale_key = jax.random.split(key)
        x = jax.vmap(lambda k: ravel_pytree(task.init(k))[0])(jax.random.split(init_key, r))
        scale = jnp.exp(jax.random.uniform(scale_key, x.shape, minval=-s, maxval=s))
        zeros = jnp.zeros(r, jnp.int32)
        return Slots(
            x=x / scale,
            scale=scale,
            state=self.student.start(task, x),
            expert=jax.vmap(self.expert().init)(x),
            age=zeros,
            first=jnp.full(r, jnp.inf, jnp.float32),
            failed=zeros > 0,
        )

    def expert(self) -> optax.GradientTransformation:
        return optax.adam(self.config.expert_rate)

    def rollout(self, task: Task, data, theta: Theta, slots: Slots, key: Array) -> tuple[Slots, Rollout]:
        """Train R replicas for one window under the student, without differentiating through it."""
        unravel, replicas = unraveler(task), self.config.replicas

        def gradients(x, key):
            def loss(z, scale, k):
                return task.loss(unravel(z * scale), task.batch(data, k))

            loss, g = jax.vmap(jax.value_and_grad(loss))(x, slots.scale, jax.random.split(key, replicas))
            return loss, jnp.where(jnp.isfinite(g), g, 0.0)

        def step(carry, key):
            x, state, expert = carry
            loss, g = gradients(x, key)
            wanted, expert = jax.vmap(self.expert().update)(g, expert)
            state, u, seen = self.student.step(task, theta, state, g, x, loss)
            return (x + u, state, expert), (loss, g, seen, wanted)

        keys = jax.random.split(key, self.config.window + 1)
        carry = (slots.x, slots.state, slots.expert)
        (x, state, expert), (losses, g, seen, wanted) = jax.lax.scan(step, carry, keys[:-1])
        last_loss, last_g = gradients(x, keys[-1])  # so that the window's last update gets a signal too
        losses, g = jnp.concatenate([losses, last_loss[None]]), jnp.concatenate([g, last_g[None]])
        first = jnp.where(slots.age == 0, losses[0], slots.first)
        # A run ten times above its first loss is lost, and would drown the others' gradients.
        failed = ~(jnp.isfinite(last_loss) & (last_loss < 10.0 * first))
        age = slots.age + self.config.window
        return Slots(x, slots.scale, state, expert, age, first, failed), Rollout(losses, g, seen, wanted)

    def meta_loss(self, theta: Theta, states: list, rollouts: list[Rollout], key: Array, weight: Array):
        """The factorised meta-loss; differentiate this by θ."""
        aheads = []
        for rollout in rollouts:
            ahead = jnp.cumsum(rollout.gradients[:0:-1], axis=0)[::-1]  # G_s = Σ_{t>s} g_t
            # In units of what the expert's updates are worth, or the task with the steepest loss decides alone.
            worth = jnp.maximum(jnp.sum(jnp.abs(rollout.expert * ahead)), 1e-12)
            aheads.append(ahead / (len(rollouts) * worth))
        gain = imitation = 0.0
        for piece in self.student.replay(self.tasks, theta, states, rollouts, aheads, key):
            misfit = jnp.mean((piece.updates - piece.expert) ** 2, axis=0) / self.config.expert_rate**2
            gain += jnp.sum(piece.updates * piece.ahead)
            imitation += jnp.sum(piece.spread * misfit)
        return gain + weight * imitation, imitation

    def iterate(self, carry: Carry, data: tuple) -> tuple[Carry, dict[str, Array]]:
        """One meta-step: renew finished optimizees, roll out a window, update θ."""
        c = self.config
        key = jax.random.fold_in(jax.random.key(c.seed), 1000 + carry.iteration)
        slots, states, rollouts = [], [], []
        for i, (task, old, arrays) in enumerate(zip(self.tasks, carry.slots, data, strict=True)):
            fresh_key, roll_key = jax.random.split(jax.random.fold_in(key, i))
            over = (old.age >= c.horizon) | old.failed
            old = renew(old, self.fresh(task, fresh_key), over)
            new, rollout = self.rollout(task, arrays, carry.theta, old, roll_key)
            slots.append(new)
            states.append(old.state)
            rollouts.append(rollout)
        weight = jnp.where(carry.iteration < c.warmup, c.imitation_warmup, c.imitation)
        gradient, imitation = jax.grad(self.meta_loss, has_aux=True)(
            carry.theta, states, rollouts, jax.random.fold_in(key, len(slots)), weight
        )
        theta, meta, norm, usable = descend(self.meta, carry, gradient)
        measured = {
            "loss": jnp.mean(jnp.stack([jnp.mean(r.losses) for r in rollouts])),
            "imitation": imitation,
            "gradient_norm": norm,
            "failed": jnp.sum(jnp.stack([jnp.sum(s.failed) for s in slots])).astype(jnp.float32),
            "skipped": 1.0 - usable.astype(jnp.float32),
        }
        return Carry(theta, meta, tuple(slots), carry.iteration + 1), measured


def unraveler(task: Task) -> Callable:
    """The function that turns a vector [p] into a task's parameters."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))[1]
