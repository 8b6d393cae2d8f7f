"""The optax contract of VeLO's architecture, its features by hand, and meta-gradients through it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from mnemosyne.memory.compact import cam
from mnemosyne.memory.recurrent import lstm
from mnemosyne.optimizer import velo as rule
from mnemosyne.optimizer.velo import (
    WINDOWS,
    Losses,
    Traces,
    apart,
    axes,
    no_traces,
    parameter_features,
    tensor_features,
    trace,
    velo,
    watch,
)

PARAMS = {
    "matrix": jax.random.normal(jax.random.key(0), (4, 3)),
    "vector": jnp.linspace(-1.0, 1.0, 5),
    "scalar": jnp.array(0.5),
    "empty": jnp.zeros((0, 2)),
}
TARGET = jax.tree.map(lambda p: p + 0.3, PARAMS)
LEARNED = {
    "lstm": velo(lstm(hidden=6), width=5, bank=4),
    "cam": velo(cam(projections=3), width=5, bank=4),
}


def empty_traces(p) -> Traces:
    (one,) = apart(no_traces(p), jax.tree.structure(p), [p.shape])
    return one


@pytest.fixture(params=LEARNED, ids=str)
def learned(request):
    return LEARNED[request.param]


only_cam = pytest.mark.parametrize("learned", ["cam"], indirect=True)


@pytest.fixture
def theta(learned):
    return learned.init(jax.random.key(0))


def value(params):
    return sum(jnp.sum((p - TARGET[k].astype(p.dtype)) ** 2) for k, p in params.items()).astype(jnp.float32)


def train(learned, theta, params=PARAMS, steps=20, gradient=lambda g: g):
    """(last parameters, last state, losses)"""
    tx = learned.make(theta)

    def step(carry, _):
        params, state = carry
        loss, g = jax.value_and_grad(value)(params)
        updates, state = tx.update(gradient(g), state, params, value=loss, horizon=100)
        return (optax.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(step, (params, tx.init(params)), None, length=steps)
    return params, state, losses


def same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), **tolerance)


def finite(tree):
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_and_dtypes(learned, theta, dtype):
    shapes = [(), (0,), (1,), (5,), (4, 3), (0, 2), (2, 1, 3), (2, 3, 2, 4), (2, 1, 2, 1, 2)]
    tx, params = learned.make(theta), (*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes), {})
    state = jax.eval_shape(tx.init, params)
    update = lambda g, s, p: tx.update(g, s, p, value=jnp.array(1.0), horizon=10)
    updates, after = jax.eval_shape(update, params, state, params)
    describe = lambda tree: jax.tree.map(lambda s: (s.shape, s.dtype), tree)
    assert describe(updates) == describe(params)
    assert describe(state) == describe(after)
    assert all(s.dtype in (jnp.float32, jnp.int32) for s in jax.tree.leaves(state))


def test_fifty_steps_with_random_weights_are_small_and_finite(learned):
    """Whatever the weights, within reason; fresh ones take small steps."""
    run = jax.jit(lambda theta: train(learned, theta, steps=50))
    for seed, noise in ((0, 0.0), (1, 0.0), (2, 0.0), (0, 0.5), (1, 0.5)):
        theta = learned.init(jax.random.key(seed))
        theta = jax.tree.map(lambda w, n=noise: w * (1 + n * jax.random.normal(jax.random.key(w.size), w.shape)), theta)
        params, state, losses = run(theta)
        assert finite((params, state, losses))
        moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b), initial=0.0)), params, PARAMS)
        assert max(moved.values()) > 1e-4
        assert noise or max(moved.values()) < 0.5


def test_meta_gradients_through_twenty_steps_are_finite(learned, theta):
    meta = jax.jit(jax.grad(lambda theta, params: jnp.mean(train(learned, theta, params, 20)[2])))
    somewhere = {k: PARAMS[k] for k in ("matrix", "scalar", "empty")}
    for start in (somewhere, jax.tree.map(jnp.zeros_like, somewhere), {k: TARGET[k] for k in somewhere}):
        assert finite(meta(theta, start))
    parts = jax.tree.map(lambda w: float(jnp.sum(jnp.abs(w))), meta(theta, somewhere))
    for name in ("own", "shared", "memory", "control", "rate", "bank"):
        assert sum(jax.tree.leaves(parts[name])) > 0, name


def test_meta_gradients_are_those_of_finite_differences():
    """In float64 and along a random direction, with gradients and loss taken for given, as `value` is."""
    learned = LEARNED["lstm"]
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)
        theta, params = double(learned.init(jax.random.key(0))), double({"a": PARAMS["matrix"]})
        tx, g = learned.make, {"a": jnp.cos(params["a"])}

        def after_three(theta):
            def step(carry, _):
                p, state = carry
                updates, state = tx(theta).update(g, state, p, value=1.0, horizon=10)
                return (jax.tree.map(lambda x, u: x + u.astype(jnp.float64), p, updates), state), None

            (p, _), _ = jax.lax.scan(step, (params, tx(theta).init(params)), None, length=3)
            return 1e3 * jnp.sum((p["a"] - params["a"]) * jnp.sin(jnp.arange(12.0)).reshape(4, 3))

        way = jax.tree.map(lambda w: jax.random.normal(jax.random.key(w.size), w.shape, jnp.float64), theta)
        _, along = jax.jit(lambda t: jax.jvp(after_three, (t,), (way,)))(theta)
        nudged = jax.jit(lambda eps: after_three(jax.tree.map(lambda w, d: w + eps * d, theta, way)))
        assert np.isclose(along, (nudged(1e-5) - nudged(-1e-5)) / 2e-5, rtol=1e-3)


def test_the_memories_swap_changes_only_the_memorys_weights():
    a, b = (one.init(jax.random.key(0)) for one in LEARNED.values())
    assert jax.tree.structure(a["memory"]) != jax.tree.structure(b["memory"])
    same({**a, "memory": 0.0}, {**b, "memory": 0.0})


def test_the_default_sizes_are_small():
    for memory in (lstm(hidden=64), cam()):
        weights = jax.eval_shape(velo(memory).init, jax.random.key(0))
        assert sum(w.size for w in jax.tree.leaves(weights)) <= 60_000


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip_by_global_norm(10.0), tx),
        lambda tx: optax.partition({"a": tx, "b": optax.adam(1e-2)}, {k: "ab"[k == "vector"] for k in PARAMS}),
        lambda tx: optax.masked(tx, {k: k != "vector" for k in PARAMS}),
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    ],
    ids=["chain", "partition", "masked", "MultiSteps"],
)
def test_composes(wrap):
    learned = LEARNED["cam"]._replace(make=lambda theta: wrap(LEARNED["cam"].make(theta)))
    params, state, _ = jax.jit(lambda theta: train(learned, theta, steps=4))(learned.init(jax.random.key(0)))
    assert finite((params, state))
    assert not np.allclose(params["matrix"], PARAMS["matrix"], atol=1e-8)


def test_tree_map_params_reaches_what_belongs_to_every_parameter(learned, theta):
    tx, seen = learned.make(theta), []
    optax.tree_map_params(tx, lambda leaf, p: seen.append((leaf.shape, p.shape)), tx.init(PARAMS), PARAMS)
    assert seen == [((*p.shape, *n), p.shape) for n in ((3,), ()) for p in jax.tree.leaves(PARAMS)]


@only_cam
def test_vmap_over_runs_equals_separate_runs(learned, theta):
    many = {k: jnp.stack([PARAMS[k], PARAMS[k] + 1.0]) for k in ("matrix", "scalar")}
    tx = learned.make(theta)
    run = jax.jit(lambda p: tx.update(p, tx.init(p), p, value=jnp.sum(p["matrix"]), horizon=5))
    mapped = jax.jit(jax.vmap(run))(many)
    for i in range(2):
        same(jax.tree.map(lambda a, i=i: a[i], mapped), run(jax.tree.map(lambda a, i=i: a[i], many)), atol=1e-5)


def test_tensors_of_one_shape_go_together(monkeypatch):
    params = {name: jnp.sin(jnp.arange(6.0) + i).reshape(2, 3) for i, name in enumerate("abc")}
    params = {**params, "d": jnp.ones(6), "e": jnp.ones(0), "f": jnp.zeros(0)}
    tx = LEARNED["cam"].make(LEARNED["cam"].init(jax.random.key(0)))
    # Not the same function twice, which would be compiled only once.
    update = lambda p: tx.update(p, tx.init(p), p, value=1.0, horizon=9)
    together = jax.jit(lambda p: update(p))(params)
    monkeypatch.setattr(rule, "by_shape", lambda f, shapes, *args: [f(*x) for x in zip(*args, strict=True)])
    same(together, jax.jit(lambda p: update(p))(params), rtol=1e-4, atol=1e-8)


def test_empty_tensors_influence_no_other():
    full = {k: p for k, p in PARAMS.items() if p.size}
    tx = LEARNED["lstm"].make(LEARNED["lstm"].init(jax.random.key(0)))
    update = jax.jit(lambda p: tx.update(p, tx.init(p), p, value=1.0, horizon=9)[0])
    with_empty = update(PARAMS)
    same({k: with_empty[k] for k in full}, update(full), rtol=1e-6)
    assert tx.update({}, tx.init({}), {}, value=1.0, horizon=9)[0] == {}


@only_cam
def test_strange_gradients_and_losses_leave_the_state_finite(learned, theta):
    tx = learned.make(theta)
    step = jax.jit(lambda g, s, v: tx.update(g, s, PARAMS, value=v, horizon=10))
    for bad in (jnp.nan, jnp.inf, -jnp.inf, 3e38, 1e-38, 0.0):
        state = tx.init(PARAMS)
        for g, v in ((1.0, bad), (bad, 1.0), (1.0, bad), (1.0, 1.0)):
            updates, state = step(jax.tree.map(lambda p, g=g: jnp.full_like(p, g), PARAMS), state, jnp.array(v))
            assert finite((updates, state)), bad
        assert int(state.parts[0].steps) == (0 if np.isfinite(bad) else 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"horizon": 10}, r"no value: call tx\.update\(grads, state, params, value=loss, horizon="),
        ({"value": 1.0}, r"got no horizon: call tx\.update"),
        ({}, "no value and no horizon"),
        ({"value": 1.0, "horizon": 10, "params": None}, "got no params"),
        ({"value": jnp.ones(3), "horizon": 10}, r"value must be one number, got an array of shape \(3,\)"),
        ({"value": 1.0, "horizon": 0}, "at least 1, got 0"),
        ({"value": 1.0, "horizon": 10, "params": {**PARAMS, "vector": jnp.ones(4)}}, "gradients and parameters differ"),
    ],
)
def test_a_call_that_lacks_something_says_what_is_right(given, message):
    tx = LEARNED["cam"].make(LEARNED["cam"].init(jax.random.key(0)))
    with pytest.raises(ValueError, match=message):
        tx.update(PARAMS, tx.init(PARAMS), **{"params": PARAMS, **given})


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="at least one, got width = 32, bank = 0"):
        velo(cam(), bank=0)


@only_cam
def test_a_factor_on_the_loss_reported_changes_nothing(learned, theta):
    tx = learned.make(theta)

    def last(factor):
        step = lambda s, x: tx.update(PARAMS, s, PARAMS, value=factor * x, horizon=50)[::-1]
        series = 2.0 + jnp.cos(2.0 * jnp.arange(5.0))
        return jax.tree.map(lambda u: u[-1], jax.lax.scan(step, tx.init(PARAMS), series)[1])

    last = jax.jit(last)
    same(last(1.0), last(1e3), rtol=1e-4, atol=1e-8)
    assert not np.allclose(last(1.0)["matrix"], last(0.0)["matrix"], rtol=1e-3, atol=1e-8)  # yet losses matter


@pytest.mark.parametrize("shape", [(), (7,), (5, 4), (2, 3, 4, 3)])
def test_factors_on_parameters_and_large_gradients_change_no_feature(shape):
    p, g = (jax.random.normal(jax.random.key(i), shape) for i in range(2))
    g = g + jnp.sign(g)  # beyond the clipping and, after many steps, above every floor

    @jax.jit
    def features(p_factor, g_factor):
        traces = jax.lax.fori_loop(0, 3000, lambda _, t: trace(t, g_factor * g), empty_traces(p))
        return parameter_features(p_factor * p, g_factor * g, traces)

    for wanted, got in zip(features(1.0, 1.0), features(30.0, 4.0), strict=True):
        assert np.allclose(wanted, got, rtol=0.02, atol=0.01)


def test_parameter_features_by_hand():
    """A matrix of 3 × 2 after two gradients, with Adafactor's second moment written out."""
    p, gs = np.array([[1.0, -2.0], [0.5, 3.0], [0.1, 0.0]]), np.random.default_rng(0).normal(size=(2, 3, 2))
    traces = empty_traces(jnp.asarray(p, jnp.float32))
    m, v, row, col = np.zeros((3, 2, 3)), np.zeros((3, 2)), np.zeros((2, 3)), np.zeros((3, 3))
    for g in gs:
        traces = trace(traces, jnp.asarray(g, jnp.float32))
        v = 0.999 * v + 0.001 * g**2
        for i, d in enumerate((0.9, 0.99, 0.999)):
            m[..., i] = d * m[..., i] + (1 - d) * g
            row[:, i] = d * row[:, i] + (1 - d) * (g**2).mean(0)  # over the largest axis
            col[:, i] = d * col[:, i] + (1 - d) * (g**2).mean(1)
    root = 1 / np.sqrt(v + 1e-6)
    adafactor = 1 / np.sqrt(row[None] * col[:, None] / row.mean(0))
    channels = [g, np.clip(g, -0.1, 0.1), p, *np.moveaxis(m, -1, 0), v, *np.moveaxis(m * root[..., None], -1, 0), root]
    channels += [*np.moveaxis(g[..., None] * adafactor, -1, 0), g * root, *np.moveaxis(m * adafactor, -1, 0)]
    wanted = np.stack([c / np.sqrt((c**2).mean() + 1e-5) for c in channels], axis=-1)
    own, rows, cols = parameter_features(*(jnp.asarray(a, jnp.float32) for a in (p, g)), traces)
    assert own.shape == (3, 2, 18)
    assert np.allclose(own, wanted, rtol=1e-3, atol=1e-3)
    for got, x in ((rows[0], row), (cols[:, 0], col)):
        sides = np.concatenate([x, 1 / np.sqrt(x + 1e-8)], axis=-1)
        assert np.allclose(got, sides / np.sqrt((sides**2).mean(0) + 1e-5), rtol=1e-3, atol=1e-4)


def test_tensor_features_by_hand():
    p, g = jax.random.normal(jax.random.key(0), (4, 1, 3)), jax.random.normal(jax.random.key(1), (4, 1, 3))
    traces = trace(empty_traces(p), 5.0 * g)
    f = np.asarray(tensor_features(p, traces, jnp.arange(18.0)))
    size = np.sqrt(np.mean(np.asarray(p) ** 2))
    m, v = np.asarray(traces.m) / size, np.asarray(traces.v)[..., None] / size
    log = lambda x: 0.5 * np.clip(np.log(1e-8 + 10 * x), -5, 5)
    centre = m.mean((0, 1, 2), keepdims=True)
    assert f.shape == (30,)
    assert np.array_equal(f[:18], np.arange(18))
    assert np.isclose(f[18], log(v.mean()), rtol=1e-4)
    assert np.array_equal(f[19:24], [0, 0, 1, 0, 0])  # two axes longer than one
    assert np.allclose(f[24:27], log(((m - centre) ** 2).mean((0, 1, 2))), rtol=1e-3)
    assert np.allclose(f[27:], log(((v - centre) ** 2).mean((0, 1, 2))), rtol=1e-3)


def test_loss_features_by_hand():
    """Against plain loops: windows from 10 to 1000 steps, minima so far, and no belief in a sudden jump."""
    series = [3.0, 2.0, 2.5, 1.0, 50.0, 1.5, 0.5]
    losses, windows = Losses(jnp.zeros(WINDOWS), jnp.full(WINDOWS, 1e30)), np.logspace(1, 3, WINDOWS)
    follow = jax.jit(watch)
    means, lowest = np.zeros(WINDOWS), np.full(WINDOWS, np.inf)
    for t, x in enumerate(series):
        losses, f = follow(losses, jnp.array(t), jnp.array(x), jnp.array(1000.0))
        if t:
            x = min(x, 2 * (means / (1 - np.exp(-t / windows))).max())
        means = np.exp(-1 / windows) * means + (1 - np.exp(-1 / windows)) * x
        now = means / (1 - np.exp(-(t + 1) / windows))
        lowest = np.minimum(lowest, now)
        wanted = np.clip((now - lowest)[:-1] / np.maximum(now[1:] - lowest[:-1], 1e-8) - 1, -1, 1) * (t >= 2)
        assert f.shape == (9,)
        assert np.allclose(f, wanted, rtol=1e-2, atol=1e-2), t
    assert np.abs(wanted).max() > 0


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((3, 5), (1, 0)), ((5, 3), (0, 1)), ((4, 4), (1, 0)), ((2, 9, 1, 7), (1, 3)), ((1, 1), (1, 0))],
)
def test_the_two_largest_axes(shape, wanted):
    assert axes(shape) == wanted


def test_a_function_hands_a_loss_on_through_train_state():
    """As docs/optimizers.md writes it."""
    tx = LEARNED["cam"].make(LEARNED["cam"].init(jax.random.key(0)))
    text = Path("docs/optimizers.md").read_text(encoding="utf-8")
    blocks = (block.split("```")[0] for block in text.split("```python\n")[1:])
    (code,) = (block for block in blocks if "def apply_gradients" in block)
    known = {}
    exec(code, known)
    start = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    after = jax.jit(known["apply_gradients"])(start, PARAMS, jnp.array(1.0), 9)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0, horizon=9)
    assert int(after.step) == 1
    same(after.params, optax.apply_updates(PARAMS, updates), rtol=1e-5)


def test_a_traced_horizon_of_nothing_counts_as_one():
    tx = LEARNED["cam"].make(LEARNED["cam"].init(jax.random.key(0)))
    at = jax.jit(lambda horizon: tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0, horizon=horizon)[0])
    same(at(0), at(1))
    assert finite(at(0))
