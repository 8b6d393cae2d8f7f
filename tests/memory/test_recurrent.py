"""The contract over both memories, then the LSTM against Flax and S4 against a matrix exponential."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from mnemosyne.memory.compact import CHUNK
from mnemosyne.memory.recurrent import convolve, discretise, inverse_frequencies, linear_frequencies, lstm, s4
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.rule import LIGHT
from tests.helpers import check_window, run_memory, sequence

MEMORIES = {
    "lstm": lstm(hidden=7),
    "s4": s4(state=8),
    "s4, inverse": s4(state=16, frequencies=inverse_frequencies, delta=(0.05, 0.5)),
}


@pytest.fixture(params=MEMORIES, ids=str)
def memory(request):
    return MEMORIES[request.param]


@pytest.mark.parametrize(("shape", "past"), [((), 7), ((2, 3), 0), ((2, 3), 7)])
def test_window_equals_recurrence(memory, shape, past):
    check_window(memory, shape, past, 9)


@pytest.mark.parametrize("t", [0, 1, CHUNK, 2 * CHUNK + 5])
def test_windows_of_any_length_equal_the_recurrence(memory, t):
    check_window(memory, (), 5, t, sizes=(3, 2, 2), rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("shape", [(), (2, 0), (2, 1, 3)])
def test_the_state_is_real_and_keeps_its_size(memory, shape):
    theta = memory.init(jax.random.key(0), 3, 2, 2)
    empty = memory.state(shape, 3, 2)
    after, out = run_memory(memory, theta, empty, sequence(1, 300, *shape, 3), sequence(2, 300, *shape, 2))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, empty)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((theta, empty, after)))
    assert all(leaf.shape[: len(shape)] == shape for leaf in jax.tree.leaves(empty))
    assert all(jnp.isfinite(leaf).all() for leaf in (*jax.tree.leaves(after), out))


def test_a_batch_is_a_loop_over_its_elements(memory):
    theta = memory.init(jax.random.key(0), 3, 3, 4)
    address, content = sequence(1, 6, 5, 3), sequence(2, 6, 5, 3)
    state, out = run_memory(memory, theta, memory.state((5,), 3, 3), address, content)
    one = jax.jit(lambda a, c: run_memory(memory, theta, memory.state((), 3, 3), a, c))
    for i in range(5):
        alone, wanted = one(address[:, i], content[:, i])
        assert np.allclose(out[:, i], wanted, rtol=1e-4, atol=1e-6)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
            assert np.allclose(a[i], b, rtol=1e-4, atol=1e-6)


def test_gradients_agree_three_ways(memory):
    """Through the window, through the recurrence, and finite differences, all in float64."""
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64), tree)
        theta, state = double(memory.init(jax.random.key(0), 3, 2, 2)), double(memory.state((4,), 3, 2))
        address, content = (sequence(i, 6, 4, d).astype(jnp.float64) for i, d in ((1, 3), (2, 2)))
        parallel = lambda theta: jnp.sum(memory.window(theta, state, address, content) ** 2)
        one_by_one = lambda theta: jnp.sum(run_memory(memory, theta, state, address, content)[1] ** 2)
        a, b = jax.jit(lambda theta: (jax.grad(parallel)(theta), jax.grad(one_by_one)(theta)))(theta)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert jnp.isfinite(x).all()
            assert np.allclose(x, y, rtol=1e-8, atol=1e-10)
        leaves, tree = jax.tree.flatten(theta)
        way = tree.unflatten([sequence(i, *leaf.shape).astype(jnp.float64) for i, leaf in enumerate(leaves)])
        along = sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(way), strict=True))
        nudged = jax.jit(lambda eps: parallel(jax.tree.map(lambda x, w: x + eps * w, theta, way)))
        assert np.isclose(along, (nudged(1e-5) - nudged(-1e-5)) / 2e-5, rtol=1e-5)


def test_two_in_a_stack_serve_the_coordinate_rule(memory):
    rule = odd_rule(LIGHT, memory)
    theta, g = rule.init(jax.random.key(0)), sequence(1, 4, 2, 3)
    steps = jax.jit(lambda s: jax.lax.scan(lambda s, x: rule.step(theta, s, x), s, g)[1])
    wanted = jax.jit(rule.window)(theta, rule.state((2, 3)), g)
    assert np.allclose(steps(rule.state((2, 3))), wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("address", "content", "message"),
    [
        ((2, 5), (2, 2), r"address of shape \(2, 5\) .* made for address dimension 3"),
        ((2, 3), (2, 1), r"content of shape \(2, 1\) .* made for content dimension 2"),
        ((2, 3), (4, 2), r"address \(2, 3\) and content \(4, 2\) differ"),
    ],
)
def test_a_pattern_of_other_dimensions_is_refused(memory, address, content, message):
    theta, state = memory.init(jax.random.key(0), 3, 2, 2), memory.state((), 3, 2)
    for f in (memory.step, memory.window):
        with pytest.raises(ValueError, match=message):
            f(theta, state, jnp.ones(address), jnp.ones(content))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lstm(hidden=0), "at least 1, got hidden = 0"),
        (lambda: s4(state=5), "even state ≥ 2, got state = 5"),
        (lambda: s4(state=0), "even state ≥ 2, got state = 0"),
        (lambda: s4(delta=(0.1, 0.01)), "0 < smallest ≤ largest"),
        (lambda: s4(delta=(0.0, 0.1)), "0 < smallest ≤ largest"),
    ],
)
def test_impossible_memories_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def gate_weights(theta):
    """Split our weights into Flax's gates i, f, g, o: the input's, the hidden state's, the biases."""
    inputs = jnp.concatenate([theta["address"], theta["content"]])
    return zip("ifgo", *(jnp.split(w, 4, axis=-1) for w in (inputs, theta["hidden"], theta["bias"])), strict=True)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell])
def test_the_lstm_is_flaxs(cell):
    memory, hidden = lstm(hidden=6), 6
    theta = memory.init(jax.random.key(0), 3, 2, 4)
    theta["bias"] += jax.random.normal(jax.random.key(9), theta["bias"].shape)
    params = {}
    for gate, w_in, w_hidden, bias in gate_weights(theta):
        params["i" + gate] = {"kernel": w_in}
        params["h" + gate] = {"kernel": w_hidden, "bias": bias}
    address, content = sequence(1, 8, 5, 3), sequence(2, 8, 5, 2)
    carry = (jnp.zeros((5, hidden)),) * 2
    for u in jnp.concatenate([address, content], axis=-1):
        carry, h = cell(hidden).apply({"params": params}, carry, u)
    state, out = run_memory(memory, theta, memory.state((5,), 3, 2), address, content)
    assert np.allclose(state.c, carry[0], rtol=1e-5, atol=1e-6)
    assert np.allclose(state.h, carry[1], rtol=1e-5, atol=1e-6)
    assert np.allclose(out[-1], h @ theta["out"]["w"] + theta["out"]["b"][None], rtol=1e-5, atol=1e-6)


def test_a_new_lstm_remembers():
    theta = lstm(hidden=4).init(jax.random.key(0), 3, 2, 1)
    assert np.array_equal(theta["bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 4))


@pytest.mark.parametrize("frequencies", [linear_frequencies, inverse_frequencies])
def test_s4_is_the_matrix_exponential_of_a_real_system(frequencies):
    """One channel as a real system of twice the modes: x' = Ax + Bu over a hold of Δ, by scipy's expm."""
    memory, n = s4(state=8, frequencies=frequencies), 4
    theta = memory.init(jax.random.key(0), 1, 1, 3)
    u = np.asarray(sequence(1, 12, 2), np.float64)
    y = np.asarray(jax.jit(convolve)(theta, memory.state((), 1, 1), jnp.asarray(u, jnp.float32)))
    theta = jax.tree.map(np.asarray, theta)
    for d in range(2):
        a = np.zeros((2 * n, 2 * n))
        for i in range(n):
            decay, turn = -np.exp(float(theta["log_decay"][d, i])), float(theta["frequency"][d, i])
            a[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[decay, -turn], [turn, decay]]
        b = np.tile([1.0, 0.0], n)
        # The exponential of [[A, B], [0, 0]] holds Ā and B̄ side by side.
        held = expm(np.exp(float(theta["log_delta"][d])) * np.block([[a, b[:, None]], [np.zeros((1, 2 * n + 1))]]))
        c = 2 * np.stack([theta["C"]["real"][d], -theta["C"]["imag"][d]], axis=-1).astype(np.float64).ravel()
        x = np.zeros(2 * n)
        for t in range(12):
            x = held[:-1, :-1] @ x + held[:-1, -1] * u[t, d]
            assert np.isclose(y[t, d], c @ x, rtol=1e-4, atol=1e-6)


def test_s4_ends_in_a_skip_a_gelu_and_a_mixing_layer():
    memory = s4(state=4)
    theta = memory.init(jax.random.key(0), 2, 1, 3)
    address, content = sequence(1, 5, 2), sequence(2, 5, 1)
    u = jnp.concatenate([address, content], axis=-1)
    d = jnp.concatenate([theta["skip"]["address"], theta["skip"]["content"]])
    y = jax.jit(convolve)(theta, memory.state((), 2, 1), u) + d[None] * u
    wanted = jax.nn.gelu(y) @ theta["out"]["w"] + theta["out"]["b"][None]
    out = jax.jit(memory.window)(theta, memory.state((), 2, 1), address, content)
    assert np.allclose(out, wanted, rtol=1e-5, atol=1e-6)


def test_the_hold_keeps_its_digits_at_any_step_size():
    theta = s4(state=8).init(jax.random.key(0), 2, 1, 1)
    for size in (1e-7, 1e-4, 1e-1, 10.0):
        theta["log_delta"] = jnp.full(3, np.log(size))
        keep, take = discretise(theta)
        a = -np.exp(np.asarray(theta["log_decay"], np.float64)) + 1j * np.asarray(theta["frequency"], np.float64)
        z = np.exp(np.asarray(theta["log_delta"], np.float64))[:, None] * a
        exact = np.expm1(z) / a
        assert np.allclose(keep.real + 1j * keep.imag, np.exp(z), rtol=1e-4, atol=1e-5)
        assert np.allclose(take.real + 1j * take.imag, exact, rtol=1e-4, atol=1e-9)


def test_the_spectra_are_those_of_s4d():
    assert np.allclose(linear_frequencies(4), np.pi * np.arange(4))
    assert np.allclose(inverse_frequencies(2), 4 / np.pi * np.array([3.0, 1.0 / 3.0]))
