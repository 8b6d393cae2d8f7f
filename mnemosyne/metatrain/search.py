"""Search for a few weights over whole runs: a separable natural evolution strategy (Schaul et al. 2011).

A generation draws laws θ ± σ ⊙ ε, trains every task from the start with each of them, on the same batches, and moves
θ and σ towards those with the lower losses. Losses are compared as logarithms at several steps of a run, so that all
tasks count alike and a run must be good at any time; where an emphasis is given, a task counts for more the further the
candidates are behind the best of several Adams on it. Costs whole runs where persistent evolution costs windows, and
gives comparisons without its accumulated noise: right for a dozen weights, hopeless for thousands.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mnemosyne.inner import inner_step
from mnemosyne.metatrain.checks import check_above_zero, check_not_negative, check_positive, check_seed, check_several
from mnemosyne.types import Learned, Task, Theta


@dataclass(frozen=True)
class SearchConfig:
    """What the search does."""

    iterations: int = 20  # generations
    steps: int = 1000  # length of a run
    marks: tuple[int, ...] = (50, 100, 200, 400, 700, 1000)  # losses count over the last quarter before each
    pairs: int = 8  # antithetic pairs of candidates a generation
    sigma: float = 0.5  # standard deviation of the candidates at first
    sigma_rate: float = 0.125  # how fast it adapts
    bound: float = 1.0  # a candidate's log-loss counts as at most this far from the generation's median
    emphasis: float = 0.0  # a task and mark weighs (the median candidate's loss / the best Adam's) to this power
    floor: float = 0.0  # the share of a run's first loss below which there is little to gain
    seed: int = 0

    def __post_init__(self):
        check_positive(self, "iterations", "steps", "pairs")
        check_above_zero(self, "sigma", "bound")
        check_not_negative(self, "sigma_rate", "emphasis", "floor")
        check_seed(self.seed)
        check_several(self, "marks")
        if max(self.marks) > self.steps or min(self.marks) < 4:
            raise ValueError(f"marks {self.marks} must lie between 4 and the {self.steps} steps of a run")


class Carry(NamedTuple):
    """Everything the search goes on from; what a checkpoint holds."""

    theta: Theta
    sigma: Theta  # of θ's structure
    adam: Float[Array, "tasks marks"]  # float32, log-losses of the best Adam, where there is an emphasis
    iteration: Array  # int32


RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Of the Adams that an emphasis compares with."""


class Search(NamedTuple):
    """Pure functions of one search; `metatrain.meta_train` runs it."""

    learned: Learned
    tasks: tuple[Task, ...]
    config: SearchConfig

    chunk = 1  # generations compiled into one program
    save_every = 2

    def start(self) -> Carry:
        """The law before the search, and how far from it candidates are drawn."""
        theta = self.learned.init(jax.random.key(self.config.seed))
        sigma = jax.tree.map(lambda a: jnp.full_like(a, self.config.sigma), theta)
        adam = jnp.zeros((len(self.tasks), len(self.config.marks)), jnp.float32)
        return Carry(theta, sigma, adam, jnp.zeros((), jnp.int32))

    def fitness(self, task: Task, data, tx: optax.GradientTransformation, key: Array) -> Float[Array, "marks"]:
        """Train once from the start: log of the mean loss over the last quarter before each mark, above the floor."""
        init_key, batch_key = jax.random.split(key)
        params = task.init(init_key)

        def step(carry, t):
            batch = task.batch(data, jax.random.fold_in(batch_key, t))
            carry, loss, _ = inner_step(task, tx, carry, batch, self.config.steps)
            return carry, loss

        _, losses = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(self.config.steps))
        floor = self.config.floor * losses[0]
        return jnp.stack([jnp.log(jnp.mean(losses[mark - mark // 4 : mark]) + floor) for mark in self.config.marks])

    def each(self, make: Callable, settings: Array, data: tuple, key: Array) -> Float[Array, "tasks n marks"]:
        """The fitness of every setting, [n …], on every task, with the same batches for all settings."""
        found = []
        for i, (task, arrays) in enumerate(zip(self.tasks, data, strict=True)):
            run = lambda s, k, task=task, arrays=arrays: self.fitness(task, arrays, make(s), k)
            found.append(jax.vmap(run, in_axes=(0, None))(settings, jax.random.fold_in(key, i)))
        return jnp.stack(found)

    def adam(self, data: tuple, key: Array) -> Float[Array, "tasks marks"]:
        """The lowest log-loss of the Adams of `RATES`, for each task and mark by itself."""
        return jnp.nanmin(self.each(optax.adam, jnp.array(RATES, jnp.float32), data, key), axis=1)

    def iterate(self, carry: Carry, data: tuple) -> tuple[Carry, dict[str, Array]]:
        """One generation."""
        c = self.config
        key = jax.random.fold_in(jax.random.key(c.seed), carry.iteration)
        centre, unravel = ravel_pytree(carry.theta)
        spread, _ = ravel_pytree(carry.sigma)
        half = jax.random.normal(key, (c.pairs, centre.size))
        noise = jnp.concatenate([half, -half])
        candidates = jnp.concatenate([centre[None] + spread[None] * noise, centre[None]])
        found = self.each(lambda v: self.learned.make(unravel(v)), candidates, data, key)
        adam = carry.adam
        if c.emphasis:
            adam = jax.lax.cond(carry.iteration == 0, lambda: self.adam(data, key), lambda: adam)
        utility = utilities(fitness_of(found[:, :-1], adam, c.bound, c.emphasis))
        centre = centre + spread * (utility @ noise)
        spread = spread * jnp.exp(c.sigma_rate * (utility @ (noise**2 - 1.0)))
        measured = {"loss": jnp.mean(found[:, -1]), "last": jnp.mean(found[:, -1, -1]), "sigma": jnp.mean(spread)}
        measured["failed"] = jnp.mean(~jnp.isfinite(found))
        return Carry(unravel(centre), unravel(spread), adam, carry.iteration + 1), measured


def fitness_of(
    found: Float[Array, "tasks n marks"], adam: Float[Array, "tasks marks"], bound: float, emphasis: float
) -> Float[Array, "n"]:
    """Weighted mean of each candidate's log-losses, each counted relative to the candidates' median, within ±bound.

    A task and mark weighs (median candidate's loss / Adam's) to the power of `emphasis`, between 0.1 and 10.
    """
    finite = jnp.where(jnp.isfinite(found), found, jnp.inf)
    median = jnp.median(finite, axis=1, keepdims=True)
    relative = finite - median
    counted = jnp.clip(jnp.where(jnp.isnan(relative), 0.0, relative), -bound, bound)
    behind = jnp.nan_to_num(median - adam[:, None])  # where every Adam is lost it says nothing
    weight = jnp.clip(jnp.exp(emphasis * behind), 0.1, 10.0)
    return jnp.mean(counted * weight / jnp.mean(weight), axis=(0, 2))


def utilities(fitness: Float[Array, "n"]) -> Float[Array, "n"]:
    """Weights of the candidates by rank, the better half positive before their mean is taken off."""
    n = fitness.shape[0]
    below = jnp.sum(fitness[None, :] < fitness[:, None], axis=1)
    equal = jnp.sum(fitness[None, :] == fitness[:, None], axis=1)
    rank = below + (equal + 1.0) / 2.0  # 1 is the best; equal ones share the mean of their ranks
    weight = jnp.maximum(0.0, jnp.log(n / 2 + 1.0) - jnp.log(rank))
    return weight / jnp.sum(weight) - 1.0 / n
