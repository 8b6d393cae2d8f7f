"""NAdamW with its ten hyper-parameters, its schedule, and the space they are searched in (Metz et al. 2022, App. F).

    setting = jax.tree.map(lambda x: x[3], draw(64, seed=0))        # one of 64 settings
    tx = nadamw(setting, steps=1_000)

Where equations, released code and intention differ, this does as intended: the L2 term is added to the gradient (the
released code subtracts it), a warm-up is cut off where the constant phase ends (App. F.2 of the original; the JAX
release takes the longer of the two), and both terms of the last equation descend (Eq. 20 and 21 have a sign flipped).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from mnemosyne.types import Params, Scalar


class Setting(NamedTuple):
    """The ten hyper-parameters; in a search each is an array [n]."""

    rate: Scalar  # α, where the schedule is at its highest
    beta1: Scalar
    beta2: Scalar
    epsilon: Scalar
    nesterov: Scalar  # 1 for Nesterov's momentum, 0 for Adam's
    l2: Scalar  # λ of λp, added to the gradient
    decay: Scalar  # λ of AdamW's decay, times α
    warmup: Scalar  # the share of training in which the rate rises linearly from zero
    constant: Scalar  # the share after which it falls, as half a cosine, warm-up included
    floor: Scalar  # what it falls to, as a share of α


class NAdamWState(NamedTuple):
    """Two moments of every parameter."""

    count: Int[Array, ""]  # int32
    m: Params
    v: Params


def nadamw(setting: Setting, steps: int | Scalar) -> optax.GradientTransformation:
    """Build the optimizer for a training of so many steps.

        g ← g + λ_2 p,    m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) g²,    m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)
        u = m̂ / (√v̂ + ε)   or   (β₁ m̂ + (1 − β₁) g) / (√v̂ + ε),        p ← p − α_t (u + λ_W p)

    Args:
        setting: numbers, or traced ones such as those of a `vmap` over a search.
        steps: T of the schedule; see `rate_at`.

    Returns:
        A transformation whose `update` needs the parameters.

    Raises:
        ValueError: if steps is below one; at `update`, without the parameters.
    """
    if isinstance(steps, int) and steps < 1:
        raise ValueError(f"a schedule needs at least one step, got steps = {steps}")
    s = setting

    def init(params: Params) -> NAdamWState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return NAdamWState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("NAdamW's weight decays need the parameters: call tx.update(grads, state, params)")
        rate, t = rate_at(s, state.count, steps), optax.safe_increment(state.count)
        g = jax.tree.map(lambda g, p: g + s.l2 * p, updates, params)
        m = jax.tree.map(lambda m, g: s.beta1 * m + (1.0 - s.beta1) * g, state.m, g)
        v = jax.tree.map(lambda v, g: s.beta2 * v + (1.0 - s.beta2) * g * g, state.v, g)
        unbias = lambda beta: 1.0 - beta ** t.astype(jnp.float32)

        def step(m, v, g, p):
            heavy = m / unbias(s.beta1)
            ahead = jnp.where(s.nesterov > 0, s.beta1 * heavy + (1.0 - s.beta1) * g, heavy)
            return -rate * (ahead / (jnp.sqrt(v / unbias(s.beta2)) + s.epsilon) + s.decay * p)

        return jax.tree.map(step, m, v, g, params), NAdamWState(t, m, v)

    return optax.GradientTransformation(init, update)


def rate_at(setting: Setting, count: Int[Array, ""], steps: int | Scalar) -> Scalar:
    """The learning rate after `count` steps: linear warm-up, constant, then half a cosine down to a share of it.

    α t / (wT)  where t < wT;    α  to cT;    α f + α (1 − f) (½ + ½ cos π (t − cT) / (T − cT))  beyond,  w ≤ c
    """
    s, t = setting, jnp.minimum(count / steps, 1.0)
    fallen = jnp.clip((t - s.constant) / jnp.maximum(1.0 - s.constant, 1e-9), 0.0, 1.0)
    share = s.floor + (1.0 - s.floor) * (0.5 + 0.5 * jnp.cos(jnp.pi * fallen))
    warmup = jnp.minimum(s.warmup, s.constant)
    return s.rate * jnp.where(t < warmup, t / jnp.maximum(warmup, 1e-9), share)


def draw(samples: int, seed: int) -> Setting:
    """Draw settings at random from the space of App. F.2, a thousand-task study's (Metz et al. 2020).

    Rates are log-uniform in 10⁻⁵…1, 1 − β₁ in 10⁻³…1, 1 − β₂ in 10⁻⁵…1, ε in 10⁻⁸…10⁴. Either decay alone or both, a
    third each, log-uniform in 10⁻⁵…10⁻¹. Half have a warm-up, of 10⁻⁵…10⁻¹ of training; half fall to zero, half to a
    share of 10⁻⁵…1. The constant phase is uniform in 0…1; half have Nesterov's momentum.

    Raises:
        ValueError: unless samples is a whole number ≥ 1.
    """
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise ValueError(f"a search needs a whole number of samples, at least 1, got {samples!r}")
    rng = np.random.default_rng(seed)
    between = lambda low, high: 10.0 ** rng.uniform(np.log10(low), np.log10(high), samples)
    half = lambda: rng.uniform(size=samples) < 0.5
    which = rng.integers(3, size=samples)
    drawn = Setting(
        rate=between(1e-5, 1.0),
        beta1=1.0 - between(1e-3, 1.0),
        beta2=1.0 - between(1e-5, 1.0),
        epsilon=between(1e-8, 1e4),
        nesterov=half(),
        l2=np.where(which == 0, 0.0, between(1e-5, 1e-1)),
        decay=np.where(which == 1, 0.0, between(1e-5, 1e-1)),
        warmup=np.where(half(), between(1e-5, 1e-1), 0.0),
        constant=rng.uniform(size=samples),
        floor=np.where(half(), between(1e-5, 1.0), 0.0),
    )
    return Setting(*(np.asarray(x, np.float32) for x in drawn))
