import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemosyne.memory.compact import CHUNK, CAMState, attend, cam, read, write
from mnemosyne.memory.contract import redraw
from mnemosyne.memory.features import hyperbolic, orthogonal_projections, positive
from mnemosyne.memory.layers import linear
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
    _, outs = run(memory, theta, memory.state((), d, c), address, content)
    wanted = discounted_attention(*features_of(theta, address), content, discount) @ np.asarray(theta["value"])
    assert np.allclose(outs, wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("t", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])
@pytest.mark.parametrize("discount", [0.0, 0.1, 1.0])
def test_chunks_equal_recurrence_and_sum(t, discount):
    phi_q, phi_k = jnp.exp(sequence(0, t, 3)), jnp.exp(sequence(1, t, 3))
    content, empty = sequence(2, t, 2), CAMState(jnp.zeros((2, 3)), jnp.zeros(3))
    one = lambda s, x: (lambda s: (s, read(s, x[0])))(write(s, x[1], x[2], discount))
    _, step_by_step = jax.lax.scan(one, empty, (phi_q, phi_k, content))
    at_once = attend(empty, phi_q, phi_k, content, discount)
    assert np.allclose(at_once, step_by_step, rtol=1e-4, atol=1e-5)
    assert np.allclose(at_once, discounted_attention(phi_q, phi_k, content, discount), rtol=1e-4, atol=1e-5)


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


def test_projections_are_not_trained():
    memory = cam(projections=4)
    theta = memory.init(jax.random.key(0), 3, 3, 3)
    address = sequence(1, 5, 3)
    g = jax.grad(lambda t: memory.window(t, memory.state((), 1, 3), address, address).sum())(theta)
    assert not g["omega"].any()
    assert g["query"]["w"].any()


@pytest.mark.parametrize("discount", [-0.1, 2, float("nan"), float("inf"), jnp.ones(3), "0.1"])
def test_a_discount_that_is_no_number_from_zero_to_one_is_refused(discount):
    with pytest.raises((ValueError, TypeError), match="discount"):
        cam(discount=discount)


def test_discounts_under_vmap_are_discounts_one_by_one():
    x, values = sequence(1, 5, 3), (0.0, 0.1, 1.0)
    theta = cam(projections=4).init(jax.random.key(0), 3, 3, 2)

    def both(discount):
        memory = cam(projections=4, discount=discount)
        _, outs = run(memory, theta, memory.state((), 3, 3), x, x)
        return outs, memory.window(theta, memory.state((), 3, 3), x, x)

    together = jax.vmap(both)(jnp.array(values))
    for i, value in enumerate(values):
        for got, wanted in zip(together, both(value), strict=True):
            assert np.allclose(got[i], wanted, rtol=1e-5, atol=1e-6)


def test_no_projection_is_refused():
    with pytest.raises(ValueError, match="at least one random projection"):
        cam(projections=0)


def test_redrawing_changes_projections_alone():
    memory = cam(projections=5)
    theta = {"encoders": [memory.init(jax.random.key(i), 3, 2, 2) for i in range(2)]}
    fresh = redraw(theta, jax.random.key(7))
    for old, new in zip(theta["encoders"], fresh["encoders"], strict=True):
        assert new["omega"].shape == old["omega"].shape
        assert not np.allclose(new["omega"], old["omega"])
        assert (new["query"]["w"] == old["query"]["w"]).all()
    assert not np.allclose(*(e["omega"] for e in fresh["encoders"]))


def test_bfloat16_patterns_are_remembered_in_float32():
    memory = cam(projections=4)
    theta = memory.init(jax.random.key(0), 3, 2, 2)
    address, content = sequence(1, 5, 3).astype(jnp.bfloat16), sequence(2, 5, 2).astype(jnp.bfloat16)
    state, outs = run(memory, theta, memory.state((), 3, 2), address, content)
    _, wide = run(memory, theta, memory.state((), 3, 2), *(a.astype(jnp.float32) for a in (address, content)))
    assert {x.dtype for x in (*state, outs)} == {jnp.dtype("float32")}
    assert np.allclose(outs, wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1.0, 9.0])
def test_one_pattern_is_read_back_while_keys_are_short(size):
    """The range of ‖k‖ that `cam` documents."""
    k = jnp.zeros(16).at[0].set(size)
    omega = orthogonal_projections(jax.random.key(0), 16, 16)
    state = write(CAMState(jnp.zeros((1, 32)), jnp.zeros(32)), hyperbolic.features(k, omega), jnp.ones(1), 0.1)
    assert np.isclose(read(state, hyperbolic.query(k, omega))[0], 1.0, atol=0.01)
