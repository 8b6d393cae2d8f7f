"""What several tests share: checks of a contract, and slow, obvious references in float64 NumPy loops."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.book import folders
from mnemosyne.memory.contract import Memory
from mnemosyne.metatrain.loop import meta_train
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.spatial import encode
from mnemosyne.types import Task


def python_blocks(page):
    """The Python code of a page, README.md or docs/….md, block by block."""
    return re.findall(r"```python\n(.*?)```", (folders.root() / page).read_text(encoding="utf-8"), re.DOTALL)


def sequence(seed, t, *shape):
    """Normal numbers, [t *shape]."""
    return jax.random.normal(jax.random.key(seed), (t, *shape))


def normal(seed, t, *shape):
    """The like in NumPy, which can be cut and negated without compiling anything."""
    return np.random.default_rng(seed).normal(size=(t, *shape)).astype(np.float32)


def compiled(pure):
    """A memory, a rule or a transformation with its functions under jit: called eagerly, each primitive compiles."""
    static = {"init": (1, 2, 3), "state": (0, 1, 2)} if isinstance(pure, Memory) else {"state": (0,)}
    jitted = {name: jax.jit(f, static_argnums=static.get(name, ())) for name, f in pure._asdict().items()}
    return pure._replace(**jitted)


@cache
def rule_of(config):
    """One compiled coordinate-wise rule for all tests of a configuration."""
    return compiled(odd_rule(config))


@partial(jax.jit, static_argnums=0)
def run_memory(memory, theta, state, address, content):
    """Step by step, in one compiled loop: (state, outputs [t …])."""
    return jax.lax.scan(lambda s, x: memory.step(theta, s, *x), state, (address, content))


@partial(jax.jit, static_argnums=0)
def run_rule(rule, theta, state, gradients):
    """Step by step, in one compiled loop: (state, updates [t …])."""
    return jax.lax.scan(lambda s, g: rule.step(theta, s, g), state, gradients)


def check_window(memory, shape, past, t, sizes=(6, 4, 5), rtol=1e-5, atol=1e-5):
    """A window of t steps, begun with nothing and begun after `past` others, is the recurrence step by step."""
    address_dim, content_dim, out_dim = sizes
    theta = memory.init(jax.random.key(0), *sizes)
    address, content = normal(1, past + t, *shape, address_dim), normal(2, past + t, *shape, content_dim)
    empty = memory.state(shape, address_dim, content_dim)
    state, _ = run_memory(memory, theta, empty, address[:past], content[:past])
    for begun in (empty, state):
        _, step_by_step = run_memory(memory, theta, begun, address[past:], content[past:])
        at_once = jax.jit(memory.window)(theta, begun, address[past:], content[past:])
        assert at_once.shape == (t, *shape, out_dim)
        assert np.allclose(at_once, step_by_step, rtol=rtol, atol=atol)


def check_resumed(trainer, folder, die_at):
    """A meta-training killed when it reports `die_at`, then run again, ends as one that was left alone.

    Returns:
        (θ, log) of the latter.
    """

    class Killed(Exception):
        pass

    def die(row):
        if row["iteration"] == die_at:
            raise Killed

    whole = meta_train(trainer)
    with pytest.raises(Killed):
        meta_train(trainer, folder=folder, report=die)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as f:
        f.write('{"iteration": 99, "lo')  # a line that the crash cut short
    resumed = meta_train(trainer, folder=folder)
    for a, b in zip(jax.tree.leaves(resumed[0]), jax.tree.leaves(whole[0]), strict=True):
        assert np.array_equal(a, b)
    timeless = lambda log: [{k: v for k, v in row.items() if k != "seconds"} for row in log]
    assert timeless(resumed[1]) == timeless(whole[1])
    return whole


def quadratic(name, size):
    """A noisy quadratic bowl: a task whose gradients can be written down."""

    def batch(data, key):
        return data + 0.1 * jax.random.normal(key, data.shape)

    loss = lambda params, target: jnp.mean((params["x"] - target) ** 2) + 0.1
    init = lambda key: {"x": jax.random.normal(key, (size,))}
    return Task(name, jnp.arange(size, dtype=jnp.float32), init, batch, loss, lambda params, data: {})


def fitted(task, steps, key):
    """Train a task by Adam: losses, and the metrics before and after."""
    tx, params = optax.adam(1e-2), jax.jit(task.init)(jax.random.key(0))

    def step(carry, key):
        params, state = carry
        loss, g = jax.value_and_grad(task.loss)(params, task.batch(task.data, key))
        u, state = tx.update(g, state)
        return (optax.apply_updates(params, u), state), loss

    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), jax.random.split(jax.random.key(key), steps)))
    (after, _), losses = run(params)
    metrics = jax.jit(task.metrics)
    return losses, metrics(params, task.data), metrics(after, task.data)


def slow_pool(theta, tokens, length):
    """Chunk after chunk without padding, every token of it encoded, and the first one's encoding taken."""
    out = []
    for start in range(0, len(tokens), length):
        together = jnp.concatenate([theta["token"][None], tokens[start : start + length]])
        out.append(encode(theta["encoder"], together, together, jnp.ones(len(together), bool))[0])
    return jnp.stack(out) if out else jnp.zeros((0, theta["token"].size))


def slow_hierarchy(levels, tokens, length):
    """§3.2.1 as it is told: pool, and again while there is more than one and a level is left."""
    tokens = slow_pool(levels[0], tokens, length)
    for theta in levels[1:]:
        if len(tokens) > 1:
            tokens = slow_pool(theta, tokens, length)
    return tokens


def exact_kernel(x, y):
    """K(x, y) = exp(xᵀy)."""
    return np.exp(np.sum(np.asarray(x, np.float64) * np.asarray(y, np.float64), axis=-1))


def discounted_attention(phi_q, phi_k, content, discount):
    """Eq. 3 and 5 as they are defined: a sum over the past for every t. Inputs [t m], [t m], [t c]."""
    phi_q, phi_k, content = (np.asarray(a, np.float64) for a in (phi_q, phi_k, content))
    outs = []
    for t in range(len(phi_q)):
        numerator, denominator = np.zeros(content.shape[1]), 0.0
        for i in range(t + 1):
            weight = np.exp(-discount * (t - i)) * (phi_q[t] @ phi_k[i])
            numerator += weight * content[i]
            denominator += weight
        outs.append(numerator / denominator)
    return np.array(outs)


def linear_attention(phi_q, phi_k, content):
    """Non-causal attention with features: for every query a weighted mean of all contents."""
    phi_q, phi_k, content = (np.asarray(a, np.float64) for a in (phi_q, phi_k, content))
    outs = []
    for q in phi_q:
        weights = [q @ k for k in phi_k]
        outs.append(sum(w * c for w, c in zip(weights, content, strict=True)) / sum(weights))
    return np.array(outs)


def causal_softmax_attention(q, k, v):
    """softmax(q kᵀ) v with a causal mask, row by row."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    outs = []
    for t in range(len(q)):
        scores = np.exp(q[t] @ k[: t + 1].T)
        outs.append(scores @ v[: t + 1] / scores.sum())
    return np.array(outs)


def log_sign(g, p):
    """Andrychowicz et al. 2016, one number at a time."""
    g = float(g)
    if abs(g) >= np.exp(-p):
        return np.log(abs(g)) / p, np.sign(g)
    return -1.0, np.exp(p) * g


def energy(beta, memories):
    """Eq. 6, a sum of exponentials."""
    return -sum(np.exp(float(np.dot(beta, xi))) for xi in np.asarray(memories, np.float64))


def asynchronous_update(beta, memories, j):
    """Eq. 7: the sign of E with β_j = −1 less E with β_j = +1."""
    down, up = (np.array(beta, np.float64) for _ in range(2))
    down[j], up[j] = -1.0, 1.0
    return np.sign(energy(down, memories) - energy(up, memories))


def energy_change_variance(memories, beta, i, rho):
    """Theorem A.1 as it is written: six sums over pairs of memories."""
    xi, beta = np.asarray(memories, np.float64), np.asarray(beta, np.float64)
    n = len(beta)
    a = (1 / rho - 1) / 8
    b, d = np.sqrt(1 + 4 * a), (1 + 4 * a) ** (n / 4)
    other = beta.copy()
    other[i] = -other[i]

    def big_lambda(x):
        return d**4 * np.exp(-2 * n) * (1 + 8 * a) ** (-n / 2) * np.exp(b**2 / (2 * (1 + 8 * a)) * (x @ x))

    v = np.zeros(6)
    for x in xi:
        for y in xi:
            v[0] += big_lambda(x + y + 2 * beta)
            v[1] += big_lambda(x + y + 2 * other)
            v[2] += big_lambda(x + y + beta + other)
            v[3] += np.exp(x @ beta) * np.exp(y @ beta)
            v[4] += np.exp(x @ other) * np.exp(y @ other)
            v[5] += np.exp(x @ beta) * np.exp(y @ other)
    return v[0] + v[1] - 2 * v[2] - (v[3] + v[4] - 2 * v[5])
