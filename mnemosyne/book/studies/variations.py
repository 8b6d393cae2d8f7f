"""What the ablations choose between: a student to meta-train, and the optimizer that its weights become (App. B).

Every choice is the paper's coordinate-wise rule with one argument swapped. Where variants differ in numbers that leave
all shapes as they are (a discount λ, which of several kernels, how projections are drawn), they are *cases* of one
choice, and are meta-trained with all their seeds as one program.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from mnemosyne.memory.compact import cam
from mnemosyne.memory.contract import redraw
from mnemosyne.memory.features import (
    FeatureMap,
    favor_plus_plus,
    independent_projections,
    orthogonal_projections,
    positive,
    relu,
    square,
)
from mnemosyne.metatrain.loop import Carry
from mnemosyne.metatrain.students import by_coordinate, whole
from mnemosyne.metatrain.truncated import MetaConfig, Truncated
from mnemosyne.optimizer.paper import paper_rule
from mnemosyne.optimizer.rule import COORDINATE, Rule, log_sign
from mnemosyne.optimizer.transform import from_rule
from mnemosyne.types import Learned, Params, Scalar, State, Task, Theta

KERNELS = (positive, favor_plus_plus(0.5), relu, square)
"""FAVOR+, FAVOR++ at the middle of its range, and two that estimate no softmax kernel; one feature per projection."""


class Choice(NamedTuple):
    """Variants of the optimizer whose shapes agree, under one roof."""

    cases: dict[str, dict[str, float]]  # label → the numbers that set it apart
    run: Callable[..., Truncated]  # (tasks, config, **numbers) → what is meta-trained
    make: Callable[..., optax.GradientTransformation]  # (θ, **numbers) → the optimizer


def coordinatewise(cases: dict[str, dict[str, float]], rule: Callable[..., Rule]) -> Choice:
    """A rule per case on raw gradients, as the paper has them: `rule(**numbers)`, the numbers traced."""
    prepare = optax.identity()

    def run(tasks: tuple[Task, ...], config: MetaConfig, **numbers) -> Truncated:
        return Truncated(by_coordinate(rule(**numbers), prepare, config.coordinates), tasks, config)

    return Choice(cases, run, lambda theta, **numbers: from_rule(theta, rule(**numbers), prepare))


def single(label: str, rule: Rule) -> Choice:
    """One rule, as it is."""
    return coordinatewise({label: {}}, lambda: rule)


def kernels(count: int = len(KERNELS)) -> Choice:
    """CAM with 32 features of several kinds (Fig. 12 middle and right, Fig. 13).

    The hyperbolic map is FAVOR+ with projections that come in pairs ±ω (Eq. 10), so that one program has them all.

    Args:
        count: so many of `KERNELS`, and the hyperbolic map.
    """
    labels = ("FAVOR+", "FAVOR++, ρ = 0.5", "ReLU", "square")[:count]
    cases = {label: {"kernel": i, "draw": 0} for i, label in enumerate(labels)}
    cases["hyperbolic"] = {"kernel": 0, "draw": 1}

    def rule(kernel: Int[Array, ""] | int, draw: Int[Array, ""] | int) -> Rule:
        chosen = one_draw_of((orthogonal_projections, paired_projections), draw)
        return paper_rule(COORDINATE, cam(projections=32, feature_map=one_map_of(KERNELS[:count], kernel), draw=chosen))

    return coordinatewise(cases, rule)


def numbers(discounts: Sequence[float]) -> Choice:
    """The paper's CAM at several λ (Fig. 14 left); and at λ = 0.1 with i.i.d. projections, and with redrawn ones."""
    cases = {f"λ = {value:g}": {"discount": value, "draw": 0, "redrawn": 0} for value in discounts}
    cases["i.i.d. projections"] = {"discount": COORDINATE.discount, "draw": 1, "redrawn": 0}
    cases["redrawn projections"] = {"discount": COORDINATE.discount, "draw": 0, "redrawn": 1}
    draws = (orthogonal_projections, independent_projections)

    def rule(discount: float | Scalar, draw: Int[Array, ""] | int, **trained) -> Rule:
        del trained
        return paper_rule(COORDINATE, cam(discount=discount, draw=one_draw_of(draws, draw)))

    plain = coordinatewise(cases, rule)
    return plain._replace(
        run=lambda tasks, config, redrawn, **rest: Redrawing(plain.run(tasks, config, **rest), redrawn)
    )


def one_map_of(maps: Sequence[FeatureMap], which: Int[Array, ""] | int) -> FeatureMap:
    """The feature map of a number that may be traced: all are computed and one is taken."""

    def taken(name: str) -> Callable:
        return lambda z, omega: jnp.stack([getattr(phi, name)(z, omega) for phi in maps])[which]

    return FeatureMap(taken("features"), taken("query"), taken("log_features"), maps[0].per_projection)


def one_draw_of(draws: Sequence[Callable], which: Int[Array, ""] | int) -> Callable:
    """The way of drawing ω of a number that may be traced."""
    return lambda key, r, n: jnp.stack([draw(key, r, n) for draw in draws])[which]


def paired_projections(key: Array, r: int, n: int) -> Float[Array, "r n"]:
    """Orthogonal projections, the second half the first with its sign changed: r must be even."""
    half = orthogonal_projections(key, r // 2, n)
    return jnp.concatenate([half, -half])


class Redrawing(NamedTuple):
    """A meta-training that draws projections anew once in a horizon, when all optimizees start afresh together."""

    trainer: Truncated
    redrawn: Int[Array, ""] | int  # 1, or 0 for never

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.trainer.tasks

    @property
    def config(self) -> MetaConfig:
        return self.trainer.config

    def start(self) -> Carry:
        return self.trainer.start()

    def iterate(self, carry: Carry, data: tuple) -> tuple[Carry, dict[str, Array]]:
        c = self.config
        now = (self.redrawn > 0) & (carry.iteration % (c.horizon // c.window) == 0)
        either = lambda new, old: jax.tree.map(lambda a, b: jnp.where(now, a, b), new, old)
        fresh = redraw(carry.theta, jax.random.fold_in(jax.random.key(c.seed), 10**6 + carry.iteration))
        ended = tuple(s._replace(age=jnp.full_like(s.age, c.horizon)) for s in carry.slots)
        carry = carry._replace(theta=either(fresh, carry.theta), slots=either(ended, carry.slots))
        return self.trainer.iterate(carry, data)


def inputs() -> Choice:
    """What the rule sees of a parameter: its gradient, also the gradients' running mean, also its own value.

    What a case does not see is held at zero, so that all three are one program.
    """
    cases = {
        "gradient": {"momentum": 0.0, "value": 0.0},
        "and momentum": {"momentum": 1.0, "value": 0.0},
        "and value": {"momentum": 1.0, "value": 1.0},
    }
    learned = lambda momentum, value: seeing(jnp.stack([jnp.ones(()), jnp.asarray(momentum), jnp.asarray(value)]))

    def run(tasks: tuple[Task, ...], config: MetaConfig, **numbers) -> Truncated:
        return Truncated(whole(learned(**numbers), config.horizon), tasks, config)

    return Choice(cases, run, lambda theta, **numbers: learned(**numbers).make(theta))


def seeing(shown: Float[Array, "3"], decay: float = 0.9) -> Learned:
    """The paper's rule with three numbers for each parameter: gradient, running mean of gradients, value.

    Each comes as (log|z|/p, sign z), times its entry of `shown`.

    Args:
        shown: 1 for what the rule sees, 0 for what it does not, in that order.
        decay: β of the running mean, Adam's by default.

    Returns:
        A `Learned` whose optimizer asks for the parameters.
    """

    def represent(z: Float[Array, "*s 3"], p: float) -> Float[Array, "*s 6"]:
        mask = shown.reshape(*(1,) * (z.ndim - 1), 3, 1)
        return (mask * jnp.concatenate(log_sign(z, p), axis=-1)).reshape(*z.shape[:-1], 6)

    rule = paper_rule(COORDINATE, represent=represent, inputs=6)

    def make(theta: Theta) -> optax.GradientTransformation:
        def init(params: Params) -> State:
            flat, _ = ravel_pytree(params)
            return rule.state(flat.shape), jnp.zeros_like(flat)

        def update(updates: Params, state: State, params: Params):
            g, unravel = ravel_pytree(updates)
            memory, mean = state
            mean = decay * mean + (1 - decay) * g
            memory, u = rule.step(theta, memory, jnp.stack([g, mean, ravel_pytree(params)[0]], axis=-1))
            return unravel(u), (memory, mean)

        return optax.GradientTransformation(init, update)

    return Learned(rule.init, make)
