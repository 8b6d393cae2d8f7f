import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemosyne.features import hyperbolic, positive
from mnemosyne.memory import CAMState, cam, linear, read, write
from tests.helpers import causal_softmax_attention, discounted_attention


def sequence(seed, t, *shape):
    return jax.random.normal(jax.random.key(seed), (t, *shape))


def run(memory, theta, state, address, content):
    """Step by step, in one compiled loop."""
    step = lambda s, x: memory.step(theta, s, *x)
    return jax.jit(lambda s, x: jax.lax.scan(step, s, x))(state, (address, content))


def features_of(theta, address, phi=hyperbolic):
    temper = address.shape[-1] ** -0.25
    q, k = (temper * linear(theta[name], address) for name in ("query", "key"))
    return phi.features(q, theta["omega"]), phi.features(k, theta["omega"])


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_recurrence_equals_the_sum_of_eq_3(t, d, c, discount, seed):
    memory = cam(projections=4, discount=discount)
    theta = memory.init(jax.random.key(seed), d, c, 3)
    address, content = sequence(seed + 1, t, d), sequence(seed + 2, t, c)
    _, outs = run(memory, theta, memory.state((), 1, c), address, content)
    wanted = discounted_attention(*features_of(theta, address), content, discount) @ np.asarray(theta["value"])
    assert np.allclose(outs, wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("past", [0, 7])
def test_window_equals_recurrence(shape, past):
    memory = cam(projections=8)
    theta = memory.init(jax.random.key(0), 6, 4, 5)
    address, content = sequence(1, past + 9, *shape, 6), sequence(2, past + 9, *shape, 4)
    state, _ = run(memory, theta, memory.state(shape, 1, 4), address[:past], content[:past])
    _, step_by_step = run(memory, theta, state, address[past:], content[past:])
    at_once = memory.window(theta, state, address[past:], content[past:])
    assert at_once.shape == (9, *shape, 5)
    assert np.allclose(at_once, step_by_step, rtol=1e-4, atol=1e-5)


def test_many_projections_approach_causal_softmax_attention():
    memory = cam(projections=20_000, discount=0.0, feature_map=positive)
    theta = memory.init(jax.random.key(0), 2, 3, 3)
    address, content = 0.4 * sequence(1, 6, 2), sequence(2, 6, 3)
    _, outs = run(memory, theta, memory.state((), 1, 3), address, content)
    temper = 2**-0.25
    q, k = (temper * linear(theta[n], address) for n in ("query", "key"))
    wanted = causal_softmax_attention(q, k, content @ theta["value"])
    assert np.allclose(outs, wanted, atol=0.05)


def test_without_discount_order_does_not_matter():
    memory = cam(projections=8, discount=0.0)
    theta = memory.init(jax.random.key(0), 4, 4, 4)
    address, content = sequence(1, 10, 4), sequence(2, 10, 4)
    order = np.random.default_rng(0).permutation(9)
    shuffled = np.concatenate([order, [9]])  # the last pattern asks the question
    first, _ = run(memory, theta, memory.state((), 1, 4), address, content)
    second, _ = run(memory, theta, memory.state((), 1, 4), address[shuffled], content[shuffled])
    for a, b in zip(first, second, strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_value_matrix_commutes_with_the_read():
    """Eq. 5 with v = W_V c written to the memory, against W_V applied to what is read."""
    phi = jax.nn.relu(sequence(0, 5, 8)) + 0.1
    content, w = sequence(1, 5, 2), sequence(2, 2, 16)
    late = CAMState(jnp.zeros((2, 8)), jnp.zeros(8))
    early = CAMState(jnp.zeros((16, 8)), jnp.zeros(8))
    for p, c in zip(phi, content, strict=True):
        late, early = write(late, p, c, 0.1), write(early, p, c @ w, 0.1)
    assert np.allclose(read(late, phi[0]) @ w, read(early, phi[0]), rtol=1e-5)


def test_reading_is_invariant_to_the_querys_size():
    state = write(CAMState(jnp.zeros((2, 4)), jnp.zeros(4)), jnp.ones(4), jnp.ones(2), 0.1)
    assert np.allclose(read(state, jnp.full(4, 1e-6)), read(state, jnp.full(4, 1e6)), rtol=1e-5)


def test_an_empty_memory_answers_zero():
    assert not read(CAMState(jnp.zeros((2, 4)), jnp.zeros(4)), jnp.ones(4)).any()


def test_vmap_equals_a_batch():
    memory = cam(projections=4)
    theta = memory.init(jax.random.key(0), 3, 3, 3)
    address, content = sequence(1, 5, 3), sequence(2, 5, 3)
    batch, out = memory.step(theta, memory.state((5,), 1, 3), address, content)
    one = lambda a, c: memory.step(theta, memory.state((), 1, 3), a, c)
    mapped, wanted = jax.vmap(one)(address, content)
    assert np.allclose(out, wanted, rtol=1e-5)
    assert np.allclose(batch.N, mapped.N, rtol=1e-5)


def test_gradients_agree_three_ways():
    """Through the window, through the recurrence, and finite differences in float64."""
    with jax.enable_x64(True):
        memory = cam(projections=4)
        theta = jax.tree.map(lambda a: a.astype(jnp.float64), memory.init(jax.random.key(0), 3, 2, 2))
        address, content = (sequence(i, 6, 4, d).astype(jnp.float64) for i, d in ((1, 3), (2, 2)))
        state = jax.tree.map(lambda a: a.astype(jnp.float64), memory.state((4,), 1, 2))

        def at_once(w):
            return jnp.sum(memory.window({**theta, "key": {**theta["key"], "w": w}}, state, address, content) ** 2)

        def one_by_one(w):
            changed = {**theta, "key": {**theta["key"], "w": w}}
            _, outs = jax.lax.scan(lambda s, x: memory.step(changed, s, *x), state, (address, content))
            return jnp.sum(outs**2)

        w = theta["key"]["w"]
        a, b = jax.grad(at_once)(w), jax.grad(one_by_one)(w)
        eps, i = 1e-4, (1, 2)
        nudge = jnp.zeros_like(w).at[i].set(eps)
        finite = (at_once(w + nudge) - at_once(w - nudge)) / (2 * eps)
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)
        assert np.isclose(a[i], finite, rtol=1e-3)


def test_projections_are_not_trained():
    memory = cam(projections=4)
    theta = memory.init(jax.random.key(0), 3, 3, 3)
    address = sequence(1, 5, 3)
    g = jax.grad(lambda t: memory.window(t, memory.state((), 1, 3), address, address).sum())(theta)
    assert not g["omega"].any()
    assert g["query"]["w"].any()


@pytest.mark.parametrize("discount", [-0.1, float("nan"), jnp.ones(3), "0.1"])
def test_a_discount_that_is_no_number_at_least_zero_is_refused(discount):
    with pytest.raises((ValueError, TypeError), match="discount"):
        cam(discount=discount)


def test_no_projection_is_refused():
    with pytest.raises(ValueError, match="at least one random projection"):
        cam(projections=0)
