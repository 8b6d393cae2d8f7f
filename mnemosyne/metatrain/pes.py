"""Meta-training over long horizons without gradients: persistent evolution strategies (Vicol et al. 2021).

Truncated back-propagation sees `window` steps ahead, and prefers small steps now to progress later (Wu et al.
2018). PES needs losses only. Each optimizee is trained twice, with θ + ε and θ − ε, on the same batches.
After every window ε is drawn anew while both runs go on, and the estimate

    ∇_θ ≈ E[ ( Σ ε so far ) · ( L⁺ − L⁻ ) / 2σ² ]

carries each perturbation's late consequences: at a fixed θ it is unbiased for the whole horizon, for the objective
smoothed by σ. Its noise grows with the
number of weights, so it suits the few that set a step's size rather than the many that set its direction.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mnemosyne.inner import inner_step
from mnemosyne.metatrain.checks import check_above_zero, check_not_negative, check_positive, check_seed, check_several
from mnemosyne.metatrain.loop import Carry, begin, descend, renew
from mnemosyne.types import Learned, Params, State, Task, Theta


@dataclass(frozen=True)
class PESConfig:
    """What evolution does. Chosen by us; Metz et al. 2022 use σ = 0.01, windows of 20 and horizons of 2,000."""

    iterations: int = 400  # meta-steps, one window of every task each
    horizons: tuple[int, ...] = (100, 200, 400, 800, 1600)  # one is drawn whenever an optimizee starts afresh
    window: int = 50  # steps between meta-steps; must divide every horizon
    pairs: int = 2  # antithetic pairs of runs per task
    sigma: float = 0.05  # standard deviation of ε
    learning_rate: float = 1e-2  # of meta-Adam, cosine-decayed to a tenth
    clip: float = 1.0  # global norm of the meta-gradient
    worst: float = 2.0  # a window's log-loss, relative to the start, counts as at most this
    seed: int = 0

    def __post_init__(self):
        check_positive(self, "iterations", "window", "pairs")
        check_above_zero(self, "sigma", "clip", "worst")
        check_not_negative(self, "learning_rate")
        check_seed(self.seed)
        check_several(self, "horizons")
        for horizon in self.horizons:
            if horizon % self.window:
                raise ValueError(f"window {self.window} does not divide horizon {horizon}")


class Pairs(NamedTuple):
    """R antithetic pairs of one task. A leading axis of 2 holds θ + ε and θ − ε."""

    params: Params  # [2 r …]
    state: State  # [2 r …]
    perturbation: Theta  # [r …], Σ ε since the start
    age: Array  # [r] int32, steps since the start
    horizon: Array  # [r] int32
    first: Array  # [r] loss at the start


class PES(NamedTuple):
    """Pure functions of one run of evolution; `metatrain.meta_train` runs it."""

    learned: Learned
    tasks: tuple[Task, ...]
    config: PESConfig

    chunk = 20  # iterations compiled into one program
    save_every = 100

    def start(self) -> Carry:
        """θ, optimizees and their ages at iteration 0; ages are staggered, so that every window has all phases."""
        return begin(
            self.config, self.learned.init, self.fresh, self.tasks, self.config.pairs, lambda pairs: pairs.horizon
        )

    def fresh(self, task: Task, theta: Theta, key: Array) -> Pairs:
        """R new pairs: both runs of one start from the same parameters."""
        r = self.config.pairs
        init_key, loss_key, horizon_key = jax.random.split(key, 3)
        params = jax.vmap(task.init)(jax.random.split(init_key, r))
        batch = task.batch(task.data, loss_key)
        first = jax.vmap(lambda p: task.loss(p, batch))(params)
        state = jax.vmap(self.learned.make(theta).init)(params)
        both = lambda tree: jax.tree.map(lambda a: jnp.stack([a, a]), tree)
        nothing = jax.tree.map(lambda a: jnp.zeros((r, *a.shape), a.dtype), theta)
        horizon = jax.random.choice(horizon_key, jnp.asarray(self.config.horizons), (r,))
        return Pairs(both(params), both(state), nothing, jnp.zeros(r, jnp.int32), horizon.astype(jnp.int32), first)

    def advance(self, task: Task, data, theta: Theta, params: Params, state: State, horizon: Array, key: Array):
        """Train one run for a window: (parameters, state, mean loss)."""
        tx = self.learned.make(theta)

        def step(carry, key):
            carry, loss, _ = inner_step(task, tx, carry, task.batch(data, key), horizon)
            return carry, loss

        (params, state), losses = jax.lax.scan(step, (params, state), jax.random.split(key, self.config.window))
        return params, state, jnp.mean(losses)

    def estimate(self, task: Task, data, theta: Theta, old: Pairs, key: Array) -> tuple[Pairs, Theta, Array]:
        """One window of R pairs: (pairs after, estimate of the meta-gradient, objectives [2 r])."""
        c = self.config
        noise_key, run_key = jax.random.split(key)
        leaves, tree = jax.tree.flatten_with_path(theta)
        keys = jax.random.split(noise_key, len(leaves))
        # A memory's projections ω are drawn, not trained, and a state belongs to those it was written with.
        size = [0.0 if getattr(path[-1], "key", None) == "omega" else c.sigma for path, _ in leaves]
        noise = tree.unflatten(
            [s * jax.random.normal(k, (c.pairs, *a.shape)) for s, k, (_, a) in zip(size, keys, leaves, strict=True)]
        )
        thetas = jax.tree.map(lambda a, e: jnp.stack([a[None] + e, a[None] - e]), theta, noise)
        over_runs = jax.vmap(lambda th, p, s, h, k: self.advance(task, data, th, p, s, h, k))
        params, state, loss = jax.vmap(over_runs, in_axes=(0, 0, 0, None, None))(
            thetas, old.params, old.state, old.horizon, jax.random.split(run_key, c.pairs)
        )
        # Logarithms, so that tasks of any scale count alike; bounded, so that a lost run does not drown the others.
        score = jnp.log(jnp.maximum(loss, 1e-30) / old.first[None])
        score = jnp.where(jnp.isfinite(score), jnp.minimum(score, c.worst), c.worst)
        so_far = jax.tree.map(jnp.add, old.perturbation, noise)
        weight = (score[0] - score[1]) / (2.0 * c.sigma**2 * c.pairs)
        gradient = jax.tree.map(lambda a: jnp.tensordot(weight, a, axes=1), so_far)
        after = Pairs(params, state, so_far, old.age + c.window, old.horizon, old.first)
        return after, gradient, score

    def iterate(self, carry: Carry, data: tuple) -> tuple[Carry, dict[str, Array]]:
        """One meta-step: renew finished optimizees, run a window of every pair, update θ."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1000 + carry.iteration)
        pairs, gradients, scores = [], [], []
        for i, (task, old, arrays) in enumerate(zip(self.tasks, carry.slots, data, strict=True)):
            fresh_key, window_key = jax.random.split(jax.random.fold_in(key, i))
            fresh = self.fresh(task._replace(data=arrays), carry.theta, fresh_key)
            old = renew_pairs(old, fresh, old.age >= old.horizon)
            new, gradient, score = self.estimate(task, arrays, carry.theta, old, window_key)
            pairs.append(new)
            gradients.append(gradient)
            scores.append(score)
        gradient = jax.tree.map(lambda *a: sum(a) / len(a), *gradients)
        theta, meta, norm, usable = descend(self.config, carry, gradient)
        measured = {
            "loss": jnp.mean(jnp.stack(scores)),
            "gradient_norm": norm,
            "failed": jnp.mean(jnp.stack(scores) >= self.config.worst),
            "skipped": 1.0 - usable.astype(jnp.float32),
        }
        return Carry(theta, meta, tuple(pairs), carry.iteration + 1), measured


def renew_pairs(old: Pairs, fresh: Pairs, over: Bool[Array, "r"]) -> Pairs:
    """Replace the pairs that are over by fresh ones, both runs of each."""
    both = jax.vmap(renew, (0, 0, None))((old.params, old.state), (fresh.params, fresh.state), over)
    return Pairs(*both, *renew(tuple(old)[2:], tuple(fresh)[2:], over))
