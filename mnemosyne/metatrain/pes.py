"""Meta-training over long horizons without gradients: persistent evolution strategies (Vicol et al. 2021).

Truncated back-propagation sees `window` steps ahead, and prefers small steps now to progress later (Wu et al.
2018). PES needs losses only. Each optimizee is trained twice, with θ + ε and θ − ε, on the same batches.
After every window ε is drawn anew while both runs go on, and the estimate

    ∇_θ ≈ E[ ( Σ ε so far ) · ( L⁺ − L⁻ ) / 2σ² ]

carries each perturbation's late consequences: at a fixed θ it is unbiased for the whole horizon, for the objective
smoothed by σ. Its noise grows with the number of weights.

The original code loses the consequences of a window in which a run ends and another begins. Here windows divide
horizons, so that a run ends where a window ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from mnemosyne.inner import inner_step
from mnemosyne.metatrain.checks import check_above_zero, check_not_negative, check_positive, check_seed, check_several
from mnemosyne.metatrain.loop import Carry, begin, descend, meta_adam, renew
from mnemosyne.types import Learned, Params, Scalar, State, Task, Theta


@dataclass(frozen=True)
class PESConfig:
    """What evolution does. Metz et al. 2022 use σ = 0.01, windows of 20, horizons of 2,000 and the objective "loss"."""

    iterations: int = 400  # meta-steps, one window of every task each
    horizons: tuple[int, ...] = (100, 200, 400, 800, 1600)  # one is drawn whenever an optimizee starts afresh
    window: int = 50  # steps between meta-steps; must divide every horizon
    pairs: int = 16  # antithetic pairs of runs per task
    sigma: float = 0.03  # standard deviation of ε
    learning_rate: float = 3e-3  # of meta-Adam, cosine-decayed to a tenth
    clip: float = 3.0  # each value of the meta-gradient counts as at most this
    objective: str = "log"  # a key of `OBJECTIVES`
    scaling: float = 0.0  # s: an optimizee's parameters are stored multiplied by one factor, exp(U(−s, s))
    seed: int = 0

    def __post_init__(self):
        check_positive(self, "iterations", "window", "pairs")
        check_above_zero(self, "sigma", "clip")
        check_not_negative(self, "learning_rate", "scaling")
        check_seed(self.seed)
        check_several(self, "horizons")
        for horizon in self.horizons:
            if horizon % self.window:
                raise ValueError(f"window {self.window} does not divide horizon {horizon}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {self.objective!r}; choose one of {', '.join(OBJECTIVES)}")


WORST = 2.0
"""The logarithm of how much worse than at its start a run can be."""


def log_of_mean(losses: Float[Array, "t"], first: Scalar) -> tuple[Scalar, Scalar]:
    """log(mean loss / first loss), at most `WORST`: tasks of any scale count alike, and late progress like early."""
    score = jnp.log(jnp.maximum(jnp.mean(losses), 1e-30) / first)
    return jnp.where(jnp.isfinite(score), jnp.minimum(score, WORST), WORST), jnp.float32(WORST)


def clipped_mean(losses: Float[Array, "t"], first: Scalar) -> tuple[Scalar, Scalar]:
    """Mean of the losses, each at most the first one (Metz et al. 2022, App. D)."""
    return jnp.mean(jnp.where(losses < first, losses, first)), first


OBJECTIVES: dict[str, Callable] = {"log": log_of_mean, "loss": clipped_mean}
"""(losses of a window [t], loss at the start) → (what is to be small, its value where a run is lost)."""


class Pairs(NamedTuple):
    """R antithetic pairs of one task. A leading axis of 2 holds θ + ε and θ − ε."""

    params: Params  # [2 r …]
    state: State  # [2 r …]
    perturbation: Theta  # [r …], Σ ε since the start
    age: Array  # [r] int32, steps since the start
    horizon: Array  # [r] int32
    first: Array  # [r] loss at the start
    scale: Array  # [r], what parameters are stored multiplied by


class PES(NamedTuple):
    """Pure functions of one run of evolution; `metatrain.meta_train` runs it."""

    learned: Learned
    tasks: tuple[Task, ...]
    config: PESConfig

    chunk = 20  # iterations compiled into one program
    save_every = 100

    def start(self) -> Carry:
        """θ, optimizees and their ages at iteration 0; ages are spread over the horizons."""
        c = self.config
        share = lambda i: (jnp.arange(c.pairs) + i / len(self.tasks)) / c.pairs
        ages = lambda i, pairs: (share(i) * pairs.horizon) // c.window * c.window
        return begin(c, self.meta, self.learned.init, self.fresh, self.tasks, ages)

    @property
    def meta(self) -> optax.GradientTransformation:
        return meta_adam(self.config, optax.clip(self.config.clip))

    def fresh(self, task: Task, theta: Theta, key: Array) -> Pairs:
        """R new pairs: both runs of one start from the same parameters."""
        r, s = self.config.pairs, self.config.scaling
        init_key, loss_key, horizon_key, scale_key = jax.random.split(key, 4)
        scale = jnp.exp(jax.random.uniform(scale_key, (r,), minval=-s, maxval=s))
        params = jax.vmap(lambda key, by: multiplied(task.init(key), by))(jax.random.split(init_key, r), scale)
        batch = task.batch(task.data, loss_key)
        first = jax.vmap(lambda p, by: stored(task, by).loss(p, batch))(params, scale)
        state = jax.vmap(self.learned.make(theta).init)(params)
        both = lambda tree: jax.tree.map(lambda a: jnp.stack([a, a]), tree)
        nothing = jax.tree.map(lambda a: jnp.zeros((r, *a.shape), a.dtype), theta)
        horizon = jax.random.choice(horizon_key, jnp.asarray(self.config.horizons, jnp.int32), (r,))
        return Pairs(both(params), both(state), nothing, jnp.zeros(r, jnp.int32), horizon, first, scale)

    def advance(self, task: Task, data, theta: Theta, params: Params, state: State, horizon: Array, key: Array):
        """Train one run for a window: (parameters, state, losses)."""
        tx = self.learned.make(theta)

        def step(carry, key):
            carry, loss, _ = inner_step(task, tx, carry, task.batch(data, key), horizon)
            return carry, loss

        (params, state), losses = jax.lax.scan(step, (params, state), jax.random.split(key, self.config.window))
        return params, state, losses

    def estimate(self, task: Task, data, theta: Theta, old: Pairs, key: Array) -> tuple[Pairs, Theta, Array, Array]:
        """One window of R pairs: (pairs after, estimate of the meta-gradient, objectives [2 r], which are lost)."""
        c = self.config
        noise_key, run_key = jax.random.split(key)
        noise = self.perturbations(theta, noise_key)
        thetas = jax.tree.map(lambda a, e: jnp.stack([a[None] + e, a[None] - e]), theta, noise)

        def run(theta, params, state, old, key):
            # What a state starts from may be weights, so it starts from the perturbed ones.
            begun = self.learned.make(theta).init(params)
            state = jax.tree.map(lambda a, b: jnp.where(old.age == 0, a, b), begun, state)
            scaled = stored(task, old.scale)
            params, state, losses = self.advance(scaled, data, theta, params, state, old.horizon, key)
            return params, state, *OBJECTIVES[c.objective](losses, old.first)

        alike = old._replace(params=None, state=None, perturbation=None)
        keys = jax.random.split(run_key, c.pairs)
        over_pairs = jax.vmap(run)
        params, state, score, lost = jax.vmap(over_pairs, in_axes=(0, 0, 0, None, None))(
            thetas, old.params, old.state, alike, keys
        )
        so_far = jax.tree.map(jnp.add, old.perturbation, noise)
        weight = (score[0] - score[1]) / (2.0 * c.sigma**2 * c.pairs)
        gradient = jax.tree.map(lambda a: jnp.tensordot(weight, a, axes=1), so_far)
        after = old._replace(params=params, state=state, perturbation=so_far, age=old.age + c.window)
        return after, gradient, score, score >= lost

    def perturbations(self, theta: Theta, key: Array) -> Theta:
        """ε of every pair, [r …]. A memory's projections ω are drawn, not trained: a state belongs to its own."""
        leaves, tree = jax.tree.flatten_with_path(theta)
        keys = jax.random.split(key, len(leaves))
        size = [0.0 if getattr(path[-1], "key", None) == "omega" else self.config.sigma for path, _ in leaves]
        draw = lambda s, k, a: s * jax.random.normal(k, (self.config.pairs, *a.shape))
        return tree.unflatten([draw(s, k, a) for s, k, (_, a) in zip(size, keys, leaves, strict=True)])

    def iterate(self, carry: Carry, data: tuple) -> tuple[Carry, dict[str, Array]]:
        """One meta-step: renew finished optimizees, run a window of every pair, update θ."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1000 + carry.iteration)
        found = []
        for i, (task, old, arrays) in enumerate(zip(self.tasks, carry.slots, data, strict=True)):
            fresh_key, window_key = jax.random.split(jax.random.fold_in(key, i))
            fresh = self.fresh(task._replace(data=arrays), carry.theta, fresh_key)
            old = renew_pairs(old, fresh, old.age >= old.horizon)
            found.append(self.estimate(task, arrays, carry.theta, old, window_key))
        pairs, gradients, scores, lost = zip(*found, strict=True)
        gradient = jax.tree.map(lambda *a: sum(a) / len(a), *gradients)
        theta, meta, norm, usable = descend(self.meta, carry, gradient)
        measured = {
            "loss": jnp.mean(jnp.stack(scores)),
            "gradient_norm": norm,
            "failed": jnp.mean(jnp.stack(lost)),
            "skipped": 1.0 - usable.astype(jnp.float32),
        }
        return Carry(theta, meta, pairs, carry.iteration + 1), measured


def multiplied(params: Params, by: Scalar) -> Params:
    """Every parameter times a number."""
    return jax.tree.map(lambda p: by * p, params)


def stored(task: Task, by: Scalar) -> Task:
    """A task whose parameters are stored multiplied by a number: the network sees them divided again."""
    return task._replace(loss=lambda params, batch: task.loss(multiplied(params, 1.0 / by), batch))


def renew_pairs(old: Pairs, fresh: Pairs, over: Bool[Array, "r"]) -> Pairs:
    """Replace the pairs that are over by fresh ones, both runs of each."""
    both = jax.vmap(renew, (0, 0, None))((old.params, old.state), (fresh.params, fresh.state), over)
    return Pairs(*both, *renew(tuple(old)[2:], tuple(fresh)[2:], over))
