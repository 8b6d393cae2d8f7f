"""A trained memory at work: which past gradients it attends to, and how well its features estimate the kernel.

Notebooks 11 and 13 look at a rule while it trains a network. Nothing here changes what the rule does.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, Float

from mnemosyne.inner import inner_step
from mnemosyne.memory.compact import cam
from mnemosyne.memory.contract import Memory, queries_and_keys
from mnemosyne.memory.features import (
    FeatureMap,
    best_rho,
    favor_plus_plus,
    hyperbolic,
    orthogonal_projections,
    positive,
)
from mnemosyne.optimizer.packing import join
from mnemosyne.optimizer.paper import paper_rule
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.transform import from_rule, memory_of
from mnemosyne.tasks import sets
from mnemosyne.tasks.data.images import Dataset
from mnemosyne.theory import energies, monte_carlo
from mnemosyne.types import State, Task, Theta


class Trace(NamedTuple):
    """What a rule saw of a network's parameters while it trained it: t steps, p parameters."""

    gradients: Float[Array, "t p"]
    addresses: list[Float[Array, "t p d"]]  # of each encoder's patterns


def watched(memory: Memory) -> Memory:
    """The same memory, with the last pattern's address beside its state."""

    def state(shape: tuple, address: int, content: int) -> State:
        return memory.state(shape, address, content), jnp.zeros((*shape, address))

    def step(theta: Theta, state: State, address: Array, content: Array) -> tuple[State, Array]:
        after, out = memory.step(theta, state[0], address, content)
        return (after, address), out

    def window(theta: Theta, state: State, address: Array, content: Array) -> Array:
        return memory.window(theta, state[0], address, content)

    return Memory(memory.init, state, step, window)


def follow(task: Task, theta: Theta, config: Config, steps: int) -> Callable[[int], Trace]:
    """Train a network by the paper's rule and keep gradients and addresses of all parameters that always have one.

    Returns:
        A function of a seed, which fixes initialisation and batches.
    """
    memory = watched(cam(projections=config.projections, discount=config.discount))
    tx = from_rule(theta, paper_rule(config, memory), optax.identity())
    shapes = [p.shape for p in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))]
    flat = lambda tree: join(jax.tree.leaves(tree), shapes)

    def step(carry, key):
        carry, _, g = inner_step(task, tx, carry, task.batch(task.data, key))
        seen = [address for _, address in memory_of(carry[1])]
        return carry, (flat(g), [flat(a) for a in seen])

    @jax.jit
    def trained(seed):
        init_key, batch_key = jax.random.split(jax.random.key(seed))
        keys = jax.vmap(lambda t: jax.random.fold_in(batch_key, t))(jnp.arange(steps))
        params = task.init(init_key)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[1]

    def of(seed: int) -> Trace:
        g, addresses = trained(seed)
        alive = np.flatnonzero(np.asarray(g != 0).all(axis=0))  # a pixel that is always blank has none
        return Trace(g[:, alive], [a[:, alive] for a in addresses])

    return of


def attention_weights(
    theta: Theta, address: Float[Array, "t p d"], discount: float, phi: FeatureMap = hyperbolic
) -> Float[Array, "p t t"]:
    """The weights that a memory gives the past at each step, rows that sum to one (Eq. 5).

        w_ti ∝ φ(q_t)ᵀφ(k_i) e^{−λ(t−i)},   i ≤ t

    Args:
        theta: the memory's weights.
        address: of every pattern it was shown.
        discount: λ of the memory.
        phi: its feature map.
    """
    q, k = queries_and_keys(theta, address)
    kernel = jnp.einsum("tpm,upm->ptu", phi.query(q, theta["omega"]), phi.features(k, theta["omega"]))
    w = kernel * _fade(len(address), discount)[None]
    return w / jnp.sum(w, axis=-1, keepdims=True)


def age_weights(t: int, discount: float) -> Float[Array, "t t"]:
    """The same for a memory that looks at age alone, e^{−λ(t−i)}: an exponential moving average, such as momentum."""
    w = _fade(t, discount)
    return w / jnp.sum(w, axis=-1, keepdims=True)


def _fade(t: int, discount: float) -> Float[Array, "t t"]:
    age = jnp.arange(t)[:, None] - jnp.arange(t)[None, :]
    return jnp.where(age >= 0, jnp.exp(-discount * jnp.maximum(age, 0)), 0.0)


def preferences(weights: Float[Array, "p t t"], gradients: Float[Array, "t p"], discount: float) -> dict[str, float]:
    """What a memory prefers in the past to what age alone would: means over the run's second half.

    Returns:
        `same sign`: share of the weight on gradients with today's sign, and `same sign, age alone`. `size`: weighted
        mean of log|g_i / g_t|, and `size, age alone`. `recent`: weight on the last five steps, and by age alone.
        `distance from age alone`: total variation ½ Σ_i |w_ti − a_ti|, from 0 to 1.
    """
    t = len(gradients)
    g = jnp.moveaxis(gradients, 0, 1)  # [p t]
    same = (jnp.sign(g)[:, :, None] == jnp.sign(g)[:, None, :]).astype(jnp.float32)
    size = jnp.log(jnp.abs(g))[:, None, :] - jnp.log(jnp.abs(g))[:, :, None]
    late = jnp.arange(t)[:, None] - jnp.arange(t)[None, :]
    recent = ((late >= 0) & (late < 5)).astype(jnp.float32)[None]
    age = jnp.broadcast_to(age_weights(t, discount)[None], weights.shape)
    over = lambda w, of: float(jnp.mean(jnp.sum(w * of, axis=-1)[:, t // 2 :]))
    found = {}
    for name, of in (("same sign", same), ("size", size), ("recent", recent)):
        found |= {name: over(weights, of), f"{name}, age alone": over(age, of)}
    return found | {"distance from age alone": 0.5 * over(jnp.abs(weights - age), jnp.ones_like(weights))}


def estimator_variances(
    theta: Theta, address: Float[Array, "t p d"], m: int, pairs: int, seeds: Sequence[int], draws: int
) -> pd.DataFrame:
    """Var(φ(q)ᵀφ(k)) / K² with m features, for queries and keys that met in a training run.

    FAVOR+, hyperbolic, and FAVOR++ at the ρ that is best for the pairs' mean ‖q+k‖² (Eq. 11).

    Args:
        theta: the memory's weights.
        address: of every pattern it was shown.
        m: features, the same for all maps; even.
        pairs: how many (q_t, k_i), drawn among the steps t and i ≤ t of the same parameter.
        seeds: each draws projections of its own.
        draws: orthogonal projections per seed.

    Returns:
        Rows (map, seed, pair, s, measured, i.i.d.): s = ‖q+k‖²; `measured` over orthogonal draws, `i.i.d.` by formula.
    """
    rng = np.random.default_rng(0)
    t, p = address.shape[:2]
    later, which = rng.integers(t, size=pairs), rng.integers(p, size=pairs)
    q, k = queries_and_keys(theta, address)
    q, k = q[later, which], k[rng.integers(later + 1), which]
    s, n = np.asarray(jnp.sum((q + k) ** 2, axis=-1), np.float64), q.shape[-1]
    rho = float(best_rho(s.mean(), n))
    maps = {"FAVOR+": (positive, 1.0), "hyperbolic": (hyperbolic, 1.0), "FAVOR++": (favor_plus_plus(rho), rho)}
    rows = []
    for name, (phi, at) in maps.items():
        r = m // phi.per_projection
        formula = energies.relative_variance(s, n, at, antithetic=phi is hyperbolic) / r
        drawn = monte_carlo.kernel_draws(phi, q, k, r, monte_carlo.keys_of(seeds, 5), draws, orthogonal_projections)
        for seed, measured in zip(seeds, drawn.var(axis=1, ddof=1), strict=True):
            found = {"map": name, "seed": seed, "pair": np.arange(pairs), "s": s}
            rows.append(pd.DataFrame({**found, "measured": measured, "i.i.d.": formula}))
    return pd.concat(rows, ignore_index=True)


def variances_along(
    images: Dataset,
    networks: int,
    steps: int,
    seed: int,
    theta: Theta,
    config: Config,
    encoders: Sequence[int],
    **measured,
) -> pd.DataFrame:
    """`estimator_variances` of encoders of a rule that trains an ablation's first held-out network.

    Args:
        images: that the network classifies.
        networks: how many the ablation has, see `sets.ablation`.
        steps: of training.
        seed: of the network and its batches.
        theta: weights of the paper's rule.
        config: its sizes.
        encoders: which, the first is 1.
        measured: further arguments of `estimator_variances`.
    """
    trace = follow(sets.ablation(images, networks)[1][0], theta, config, steps)(seed)
    return pd.concat(
        estimator_variances(theta["encoders"][i - 1]["memory"], trace.addresses[i - 1], **measured).assign(encoder=i)
        for i in encoders
    )


def preferences_along(
    images: Dataset, networks: int, steps: int, seeds: Sequence[int], theta: Theta, config: Config
) -> pd.DataFrame:
    """`preferences` of every encoder of a rule that trains an ablation's first held-out network from several seeds.

    Args:
        images, networks, steps, theta, config: as in `variances_along`.
        seeds: of the network and its batches.

    Returns:
        Rows (seed, encoder, …).
    """
    traced = follow(sets.ablation(images, networks)[1][0], theta, config, steps)
    rows = []
    for seed in seeds:
        trace = traced(seed)
        for i, (encoder, address) in enumerate(zip(theta["encoders"], trace.addresses, strict=True), start=1):
            weights = attention_weights(encoder["memory"], address, config.discount)
            rows.append({"seed": seed, "encoder": i} | preferences(weights, trace.gradients, config.discount))
    return pd.DataFrame(rows)
