"""Several meta-trainings in one program: runs that differ in numbers only, such as their seeds.

A comparison of learned optimizers is worth what it is over several meta-seeds, and compiling a meta-training takes as
long as dozens of its iterations. So runs whose shapes agree become one program by `vmap`, and `metatrain.meta_train`
runs it, with checkpoints, as it runs a single one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mnemosyne.metatrain.loop import Carry
from mnemosyne.metatrain.truncated import MetaConfig, Truncated
from mnemosyne.types import Task

# Every leaf of a `Carry` has a leading axis of runs, but for the iteration, which they share.
_AXES = Carry(theta=0, meta=0, slots=0, iteration=None)


@dataclass(frozen=True)
class ReplicasConfig:
    """What runs share, and in what they differ."""

    iterations: int
    first: MetaConfig
    runs: tuple[dict[str, float], ...]


class Replicas(NamedTuple):
    """Meta-trainings side by side. θ and each measurement have a leading axis of runs, [n …].

    Example:
        make = lambda seed: Truncated(student, tasks, replace(config, seed=seed))
        theta, log = meta_train(Replicas(make, ({"seed": 0}, {"seed": 1}, {"seed": 2})))
    """

    make: Callable[..., Truncated]  # one run's numbers, plain or traced → that run
    runs: tuple[dict[str, float], ...]  # the same names in each

    chunk = 5  # iterations compiled into one program
    save_every = 100

    @property
    def first(self) -> Truncated:
        return self.make(**self.runs[0])

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.first.tasks

    @property
    def config(self) -> ReplicasConfig:
        config = self.first.config
        return ReplicasConfig(config.iterations, config, self.runs)

    def start(self) -> Carry:
        """All runs at iteration 0."""
        # One after another: what compiles for the first is at hand for the others, and for the next variant.
        carries = [self.make(**run).start() for run in self.runs]
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *carries)
        return stacked._replace(iteration=carries[0].iteration)

    def iterate(self, carry: Carry, data: tuple) -> tuple[Carry, dict[str, Array]]:
        """One meta-step of every run."""
        step = jax.vmap(lambda run, carry: self.make(**run).iterate(carry, data), (0, _AXES), (_AXES, 0))
        return step(self.numbers(), carry)

    def numbers(self) -> dict[str, Array]:
        """Each number of the runs, [n]."""
        return {name: _column([run[name] for run in self.runs]) for name in self.runs[0]}


def _column(numbers: list) -> Array:
    """Numbers as an array; a seed from 2³¹ on is one of 32 bits without a sign."""
    large = all(isinstance(n, int) for n in numbers) and max(numbers) >= 2**31
    return jnp.asarray(np.asarray(numbers, np.uint32) if large else numbers)
