"""One contract over every memory, then what each promises on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.coordinate import LIGHT, coordinate_rule
from mnemosyne.features import favor_plus_plus, hyperbolic_plus_plus, positive, relu, square
from mnemosyne.memories import attention, thick_cam
from mnemosyne.memory import CHUNK, cam, queries_and_keys
from tests.helpers import causal_softmax_attention, check_window, run_memory, sequence

MEMORIES = {
    "cam": cam(projections=8),
    "cam, FAVOR+": cam(projections=8, feature_map=positive),
    "cam, FAVOR++": cam(projections=8, feature_map=favor_plus_plus(0.3)),
    "cam, ReLU": cam(projections=8, feature_map=relu),
    "cam, square": cam(projections=8, feature_map=square),
    "thick": thick_cam(projections=8, rhos=(0.2, 0.5, 0.8)),
    "thick, hyperbolic": thick_cam(projections=8, rhos=(0.3, 0.7), family=hyperbolic_plus_plus),
    "attention": attention(cache=5),
    "attention, discounted": attention(cache=5, discount=0.1),
}


@pytest.fixture(params=MEMORIES, ids=str)
def memory(request):
    return MEMORIES[request.param]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("past", [0, 7])
def test_window_equals_recurrence(memory, shape, past):
    check_window(memory, shape, past, 9, rtol=1e-3)


def test_a_long_window_equals_recurrence(memory):
    check_window(memory, (), 0, CHUNK + 9, sizes=(3, 2, 2), rtol=1e-3, atol=1e-4)


def test_an_empty_window_is_empty(memory):
    theta = memory.init(jax.random.key(0), 3, 2, 4)
    assert memory.window(theta, memory.state((5,), 3, 2), jnp.ones((0, 5, 3)), jnp.ones((0, 5, 2))).shape == (0, 5, 4)


def test_the_state_keeps_its_size_and_stays_finite(memory):
    theta = memory.init(jax.random.key(0), 3, 2, 2)
    empty = memory.state((), 3, 2)
    after, outs = run_memory(memory, theta, empty, sequence(1, 500, 3), sequence(2, 500, 2))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, empty)
    assert all(jnp.isfinite(leaf).all() for leaf in (*jax.tree.leaves(after), outs))


def test_vmap_equals_a_batch(memory):
    theta = memory.init(jax.random.key(0), 3, 3, 3)
    address, content = sequence(1, 5, 3), sequence(2, 5, 3)
    batch, out = memory.step(theta, memory.state((5,), 3, 3), address, content)
    mapped, wanted = jax.vmap(lambda a, c: memory.step(theta, memory.state((), 3, 3), a, c))(address, content)
    assert np.allclose(out, wanted, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(mapped), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_answer_lies_among_the_contents(memory):
    """Every memory answers with a convex combination of what it was shown."""
    theta = {**memory.init(jax.random.key(0), 3, 2, 2), "value": jnp.eye(2)}
    content = sequence(2, 20, 2)
    _, outs = run_memory(memory, theta, memory.state((), 3, 2), sequence(1, 20, 3), content)
    assert (outs <= content.max(0, keepdims=True) + 1e-4).all()
    assert (outs >= content.min(0, keepdims=True) - 1e-4).all()


def test_gradients_agree_three_ways(memory):
    """Through the window, through the recurrence, and finite differences in float64."""
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64), tree)
        theta, state = double(memory.init(jax.random.key(0), 3, 2, 2)), double(memory.state((4,), 3, 2))
        address, content = (sequence(i, 6, 4, d).astype(jnp.float64) for i, d in ((1, 3), (2, 2)))

        def at_once(w):
            changed = {**theta, "key": {**theta["key"], "w": w}}
            return jnp.sum(memory.window(changed, state, address, content) ** 2)

        def one_by_one(w):
            changed = {**theta, "key": {**theta["key"], "w": w}}
            return jnp.sum(run_memory(memory, changed, state, address, content)[1] ** 2)

        w = theta["key"]["w"]
        a, b = jax.grad(at_once)(w), jax.grad(one_by_one)(w)
        eps, i = 1e-5, (1, 2)
        nudge = jnp.zeros_like(w).at[i].set(eps)
        finite = (at_once(w + nudge) - at_once(w - nudge)) / (2 * eps)
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)
        assert np.isclose(a[i], finite, rtol=1e-3, atol=1e-6)


def test_the_coordinate_rule_takes_any_memory(memory):
    rule = coordinate_rule(LIGHT, memory)
    theta, g = rule.init(jax.random.key(0)), sequence(1, 4, 2, 3)
    state, outs = rule.state((2, 3)), []
    for one in g:
        state, out = rule.step(theta, state, one)
        outs.append(out)
    assert np.allclose(jnp.stack(outs), rule.window(theta, rule.state((2, 3)), g), rtol=1e-3, atol=1e-7)
    assert np.allclose(rule.window(theta, rule.state((2, 3)), -g), -jnp.stack(outs), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("address", "content", "message"),
    [
        (
            (2, 5),
            (2, 2),
            r"address of shape \(2, 5\) .* made for address dimension 3",
        ),
        (
            (2, 3),
            (2, 1),
            r"content of shape \(2, 1\) .* made for content dimension 2",
        ),
        ((2, 3), (4, 2), r"address \(2, 3\) and content \(4, 2\) differ"),
    ],
)
def test_a_pattern_of_other_dimensions_is_refused(memory, address, content, message):
    theta, state = memory.init(jax.random.key(0), 3, 2, 2), memory.state((), 3, 2)
    for f in (memory.step, memory.window):
        with pytest.raises(ValueError, match=message):
            f(theta, state, jnp.ones(address), jnp.ones(content))


def test_a_cache_that_holds_all_is_causal_softmax_attention():
    memory = attention(cache=12)
    theta = memory.init(jax.random.key(0), 3, 2, 4)
    address, content = sequence(1, 12, 3), sequence(2, 12, 2)
    q, k = queries_and_keys(theta, address)
    wanted = causal_softmax_attention(q, k, content @ theta["value"])
    assert np.allclose(memory.window(theta, memory.state((), 3, 2), address, content), wanted, rtol=1e-4, atol=1e-5)


def test_attention_forgets_what_left_the_cache():
    memory = attention(cache=4)
    theta = memory.init(jax.random.key(0), 3, 2, 2)
    address, content = sequence(1, 9, 3), sequence(2, 9, 2)
    other = content.at[:5].set(100.0)
    empty = memory.state((), 3, 2)
    last, unaffected = (run_memory(memory, theta, empty, address, c)[1][-1] for c in (content, other))
    assert (last == unaffected).all()
    assert not np.allclose(*(run_memory(memory, theta, empty, address, c)[1][-2] for c in (content, other)))


@pytest.mark.parametrize("discount", [0.0, 0.2])
def test_many_projections_bring_cam_to_attention(discount):
    """Eq. 5's random features and its exact kernel, discounted alike."""
    truth, estimate = attention(cache=8, discount=discount), thick_cam(projections=20_000, discount=discount)
    theta = estimate.init(jax.random.key(0), 2, 3, 3)
    address, content = 0.7 * sequence(1, 8, 2), sequence(2, 8, 3)
    wanted = truth.window(theta, truth.state((), 2, 3), address, content)
    assert np.allclose(estimate.window(theta, estimate.state((), 2, 3), address, content), wanted, atol=0.05)


def test_a_grid_of_one_rho_is_plain_cam():
    thick, plain = thick_cam(projections=6, rhos=(0.3,)), cam(projections=6, feature_map=favor_plus_plus(0.3))
    theta = plain.init(jax.random.key(0), 3, 2, 2)
    address, content = sequence(1, 10, 3), sequence(2, 10, 2)
    wanted = plain.window(theta, plain.state((), 3, 2), address, content)
    assert np.allclose(thick.window(theta, thick.state((), 3, 2), address, content), wanted, rtol=1e-4, atol=1e-6)


def test_the_slice_read_is_the_nearest_to_eq_11():
    """With far-apart slices, the answer is that of the ρ which Eq. 11 asks for, computed here by hand."""
    rhos, n, t = (0.05, 0.5, 0.95), 3, 6
    thick = thick_cam(projections=4, discount=0.0, rhos=rhos)
    theta = thick.init(jax.random.key(0), n, 2, 2)
    for size in (0.05, 1.0, 6.0):
        address, content = size * sequence(1, t, n), sequence(2, t, 2)
        out = thick.window(theta, thick.state((), n, 2), address, content)[-1]
        q, k = (np.asarray(x, np.float64) for x in queries_and_keys(theta, address))
        s = np.mean(np.sum((q[-1] + k) ** 2, -1))
        rho = (np.sqrt((2 * s + n) ** 2 + 8 * n * s) - 2 * s - n) / (4 * s)
        nearest = rhos[int(np.argmin(np.abs(np.array(rhos) - rho)))]
        plain = cam(projections=4, discount=0.0, feature_map=favor_plus_plus(nearest))
        assert np.allclose(out, plain.window(theta, plain.state((), n, 2), address, content)[-1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attention(cache=0), "at least one pattern, got cache = 0"),
        (lambda: attention(cache=4, discount=-1.0), "one number ≥ 0 per step, got -1.0"),
        (lambda: thick_cam(rhos=()), "at least one ρ"),
        (lambda: thick_cam(rhos=(0.5, 1.0)), r"\(0, 1\), at least 1e-6, got 1.0"),
        (lambda: thick_cam(projections=0), "projections = 0"),
        (lambda: thick_cam(discount=float("nan")), "≥ 0 per step, got nan"),
    ],
)
def test_impossible_memories_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
