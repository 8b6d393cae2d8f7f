"""One contract over every memory, then what each promises on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.memory.cache import attention
from mnemosyne.memory.compact import CHUNK, cam
from mnemosyne.memory.contract import queries_and_keys
from mnemosyne.memory.features import favor_plus_plus, hyperbolic_plus_plus, positive, relu, square
from mnemosyne.memory.thick import thick_cam
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.rule import LIGHT
from tests.helpers import causal_softmax_attention, check_window, compiled, normal, run_memory, run_rule

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
MEMORIES = {name: compiled(memory) for name, memory in MEMORIES.items()}


@pytest.fixture(params=MEMORIES, ids=str)
def memory(request):
    return MEMORIES[request.param]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_window_equals_recurrence(memory, shape):
    check_window(memory, shape, 9, 9, rtol=1e-3)


def test_a_long_window_equals_recurrence(memory):
    check_window(memory, (), 0, CHUNK + 9, sizes=(3, 2, 2), rtol=1e-3, atol=1e-4)


def test_an_empty_window_is_empty(memory):
    theta = memory.init(jax.random.key(0), 3, 2, 2)
    assert memory.window(theta, memory.state((5,), 3, 2), np.ones((0, 5, 3)), np.ones((0, 5, 2))).shape == (0, 5, 2)


def test_the_state_keeps_its_size_and_stays_finite(memory):
    theta = memory.init(jax.random.key(0), 3, 2, 2)
    empty = memory.state((), 3, 2)
    after, outs = run_memory(memory, theta, empty, normal(1, 500, 3), normal(2, 500, 2))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, empty)
    assert all(np.isfinite(leaf).all() for leaf in (*jax.tree.leaves(after), outs))


def test_vmap_equals_a_batch(memory):
    theta = memory.init(jax.random.key(0), 3, 2, 2)
    address, content = normal(1, 5, 3), normal(2, 5, 2)
    batch, out = memory.step(theta, memory.state((5,), 3, 2), address, content)
    one = lambda a, c: memory.step(theta, memory.state((), 3, 2), a, c)
    mapped, wanted = jax.jit(jax.vmap(one))(address, content)
    assert np.allclose(out, wanted, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(mapped), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_answer_lies_among_the_contents(memory):
    """Every memory answers with a convex combination of what it was shown."""
    theta = {**memory.init(jax.random.key(0), 3, 2, 2), "value": jnp.eye(2)}
    content = normal(2, 20, 2)
    _, outs = run_memory(memory, theta, memory.state((), 3, 2), normal(1, 20, 3), content)
    assert (outs <= content.max(0, keepdims=True) + 1e-4).all()
    assert (outs >= content.min(0, keepdims=True) - 1e-4).all()


def test_gradients_agree_three_ways(memory):
    """Through the window, through the recurrence, and finite differences in float64."""
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64), tree)
        theta, state = double(memory.init(jax.random.key(0), 3, 2, 2)), double(memory.state((4,), 3, 2))
        address, content = double((normal(1, 6, 4, 3), normal(2, 6, 4, 2)))

        def at_once(w):
            changed = {**theta, "key": {**theta["key"], "w": w}}
            return jnp.sum(memory.window(changed, state, address, content) ** 2)

        def one_by_one(w):
            changed = {**theta, "key": {**theta["key"], "w": w}}
            return jnp.sum(run_memory(memory, changed, state, address, content)[1] ** 2)

        all_ways = jax.jit(lambda w: (at_once(w), jax.grad(at_once)(w), jax.grad(one_by_one)(w)))
        w = theta["key"]["w"]
        _, a, b = all_ways(w)
        eps, i = 1e-5, (1, 2)
        nudge = np.zeros_like(w)
        nudge[i] = eps
        finite = (all_ways(w + nudge)[0] - all_ways(w - nudge)[0]) / (2 * eps)
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)
        assert np.isclose(a[i], finite, rtol=1e-3, atol=1e-6)


def test_the_coordinate_rule_takes_any_memory(memory):
    rule = compiled(odd_rule(LIGHT, memory))
    theta, empty, g = rule.init(jax.random.key(0)), rule.state((2, 3)), normal(1, 4, 2, 3)
    outs = np.asarray(run_rule(rule, theta, empty, g)[1])
    assert np.allclose(outs, rule.window(theta, empty, g), rtol=1e-3, atol=1e-7)
    assert np.allclose(rule.window(theta, empty, -g), -outs, rtol=1e-3, atol=1e-7)


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
            f(theta, state, np.ones(address), np.ones(content))


def test_a_cache_that_holds_all_is_causal_softmax_attention():
    memory = compiled(attention(cache=12))
    theta = memory.init(jax.random.key(0), 3, 2, 4)
    address, content = normal(1, 12, 3), normal(2, 12, 2)
    q, k = jax.jit(queries_and_keys)(theta, address)
    wanted = causal_softmax_attention(q, k, content @ theta["value"])
    assert np.allclose(memory.window(theta, memory.state((), 3, 2), address, content), wanted, rtol=1e-4, atol=1e-5)


def test_attention_forgets_what_left_the_cache():
    memory = compiled(attention(cache=4))
    theta = memory.init(jax.random.key(0), 3, 2, 2)
    address, content = normal(1, 9, 3), normal(2, 9, 2)
    other = content.copy()
    other[:5] = 100.0
    empty = memory.state((), 3, 2)
    outs, others = (np.asarray(run_memory(memory, theta, empty, address, c)[1]) for c in (content, other))
    assert (outs[-1] == others[-1]).all()
    assert not np.allclose(outs[-2], others[-2])


@pytest.mark.parametrize("discount", [0.0, 0.2])
def test_many_projections_bring_cam_to_attention(discount):
    """Eq. 5's random features and its exact kernel, discounted alike."""
    memories = attention(cache=8, discount=discount), thick_cam(projections=20_000, discount=discount)
    truth, estimate = map(compiled, memories)
    theta = estimate.init(jax.random.key(0), 2, 3, 3)
    address, content = 0.7 * normal(1, 8, 2), normal(2, 8, 3)
    wanted = truth.window(theta, truth.state((), 2, 3), address, content)
    assert np.allclose(estimate.window(theta, estimate.state((), 2, 3), address, content), wanted, atol=0.05)


def test_a_grid_of_one_rho_is_plain_cam():
    memories = thick_cam(projections=6, rhos=(0.3,)), cam(projections=6, feature_map=favor_plus_plus(0.3))
    thick, plain = map(compiled, memories)
    theta = plain.init(jax.random.key(0), 3, 2, 2)
    address, content = normal(1, 10, 3), normal(2, 10, 2)
    wanted = plain.window(theta, plain.state((), 3, 2), address, content)
    assert np.allclose(thick.window(theta, thick.state((), 3, 2), address, content), wanted, rtol=1e-4, atol=1e-6)


def test_the_slice_read_is_the_nearest_to_eq_11():
    """With far-apart slices, the answer is that of the ρ which Eq. 11 asks for, computed here by hand."""
    rhos, n, t = (0.05, 0.5, 0.95), 3, 6
    thick = compiled(thick_cam(projections=4, discount=0.0, rhos=rhos))
    theta = thick.init(jax.random.key(0), n, 2, 2)
    for size in (0.05, 1.0, 6.0):
        address, content = size * normal(1, t, n), normal(2, t, 2)
        out = thick.window(theta, thick.state((), n, 2), address, content)[-1]
        q, k = (np.asarray(x, np.float64) for x in jax.jit(queries_and_keys)(theta, address))
        s = np.mean(np.sum((q[-1] + k) ** 2, -1))
        rho = (np.sqrt((2 * s + n) ** 2 + 8 * n * s) - 2 * s - n) / (4 * s)
        nearest = rhos[int(np.argmin(np.abs(np.array(rhos) - rho)))]
        plain = compiled(cam(projections=4, discount=0.0, feature_map=favor_plus_plus(nearest)))
        assert np.allclose(out, plain.window(theta, plain.state((), n, 2), address, content)[-1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attention(cache=0), "at least one pattern, got cache = 0"),
        (lambda: attention(cache=4, discount=-1.0), "one number from 0 to 1 per step, got -1.0"),
        (lambda: thick_cam(rhos=()), "at least one ρ"),
        (lambda: thick_cam(rhos=(0.5, 1.0)), r"\(0, 1\), at least 1e-6, got 1.0"),
        (lambda: thick_cam(projections=0), "projections = 0"),
        (lambda: thick_cam(discount=float("nan")), "from 0 to 1 per step, got nan"),
    ],
)
def test_impossible_memories_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
