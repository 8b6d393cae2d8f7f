"""One contract over every optimizer this package makes: what an optax user expects, and bad input."""

from functools import cache, partial
from itertools import cycle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mnemosyne
from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.paper import paper_rule
from mnemosyne.optimizer.rule import COORDINATE, LIGHT
from mnemosyne.optimizer.sizes import scale_by_tensor_rms
from mnemosyne.optimizer.transform import from_rule, zero_nonfinite
from tests.helpers import compiled, normal, rule_of

PARAMS = {"w": np.ones((4, 3)), "b": np.zeros(3), "scalar": np.array(0.5), "empty": np.zeros((0, 2))}
PARAMS = {name: jnp.asarray(p, jnp.float32) for name, p in PARAMS.items()}
TARGET = jax.tree.map(lambda p: np.asarray(p) + np.float32(0.3), PARAMS)


def gradient(params):
    return jax.tree.map(lambda p, t: 2 * (p - t).astype(p.dtype), params, jax.tree.map(jnp.asarray, TARGET))


GRADIENT = jax.jit(gradient)(PARAMS)


def distance(params):
    return sum(np.sum((np.asarray(p) - t) ** 2) for p, t in zip(*map(jax.tree.leaves, (params, TARGET)), strict=True))


ROBUST = ("slim", "light", "normalised", "odd", "paced")  # odd, and gradients in units of their own
VELO = ("velo_cam", "velo_lstm")  # ask for the loss and the horizon
MIXED = ("hybrid", "super", "super_paced")  # partitions of the others
SEEING = ("nn_adam", "small_fc")  # look at the parameters
PART = ("tensor_averaged",)  # of tensor_paced, which goes through all that it does
TRAINED = [n for n in zoo.available() if n not in VELO + MIXED + PART]
KINDS = ("slim", "light", "paced", "tensor_paced")  # Adam's state, a memory per parameter, at a pace, one per tensor


@cache
def pretrained(name):
    """Compiled once for all that is tested of it."""
    return compiled(zoo.pretrained(name))


@pytest.fixture(scope="module", params=TRAINED)
def tx(request):
    """Shipped weights, every update compiled once per shape."""
    return pretrained(request.param)


@pytest.fixture(scope="module", params=[n for n in TRAINED if not n.startswith("tensor")])
def elementwise(request):
    """The optimizers whose state has a memory for every parameter."""
    return pretrained(request.param)


@pytest.fixture(scope="module", params=ROBUST)
def robust(request):
    """The optimizers that are to serve networks of any kind and scale."""
    return pretrained(request.param)


def train(tx, params, steps=200, factor=1.0):
    """(parameters, state) after so many steps on a loss multiplied by a factor."""
    return loop(tx, params, steps, factor)


@partial(jax.jit, static_argnums=0)
def loop(tx, params, steps, factor):
    """One program for any number and factor."""

    def step(_, carry):
        params, state = carry
        gradients = jax.tree.map(lambda g: factor * g, gradient(params))
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))


def same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), **tolerance)


def left(tx):
    """The share of the distance that is left: the median of nine starts 1e-6 apart, since some rules are chaotic."""
    nearby = lambda p: p[None] + 1e-6 * jnp.arange(9.0).reshape(-1, *(1,) * p.ndim)
    ends, _ = jax.vmap(lambda params: train(tx, params))(jax.tree.map(nearby, PARAMS))
    return np.median([distance(jax.tree.map(lambda p, i=i: p[i], ends)) for i in range(9)]) / distance(PARAMS)


def test_descends(tx):
    assert left(tx) < 0.3


def test_shapes_and_dtypes_without_allocating(tx):
    state = jax.eval_shape(tx.init, PARAMS)
    updates, after = jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, PARAMS)
    describe = lambda tree: jax.tree.map(lambda s: (s.shape, s.dtype), tree)
    assert describe(state) == describe(after)


def test_extra_arguments_and_no_parameters(tx):
    state = tx.init(PARAMS)
    with_params, _ = tx.update(GRADIENT, state, PARAMS, value=1.0)
    if tx not in map(pretrained, SEEING):
        without, _ = tx.update(GRADIENT, state)
        same(with_params, without)
    else:
        with pytest.raises(ValueError, match=r"call tx\.update"):
            tx.update(GRADIENT, state)


def test_bfloat16_parameters(tx):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    before = tx.init(params)
    updates, state = tx.update(jax.jit(gradient)(params), before, params)
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
    usual = jax.eval_shape(tx.init, PARAMS)
    assert jax.tree.map(lambda s: s.dtype, before) == jax.tree.map(lambda s: s.dtype, usual)
    assert jax.tree.map(lambda s: s.dtype, before) == jax.tree.map(lambda s: s.dtype, state)  # a scan asks for it


WRAPPED = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(10.0), tx),
    "partition": lambda tx: optax.partition({"a": tx, "b": optax.adam(1e-2)}, {k: "ab"[k == "b"] for k in PARAMS}),
    "masked": lambda tx: optax.chain(
        optax.masked(tx, {k: k != "b" for k in PARAMS}),
        optax.masked(optax.set_to_zero(), {k: k == "b" for k in PARAMS}),  # else raw gradients pass through
    ),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "flatten": lambda tx: optax.flatten(tx),
}
OTHERS = [n for n in TRAINED if n not in KINDS]
CROSS = [(name, wrap) for name in KINDS for wrap in WRAPPED] + list(zip(OTHERS, cycle(WRAPPED), strict=False))


@pytest.mark.parametrize(("name", "wrap"), CROSS)
def test_composes(name, wrap):
    """Each kind of state with each wrapper; the others differ in what a memory is made of, and meet one wrapper."""
    assert left(WRAPPED[wrap](zoo.pretrained(name))) < 0.6


def test_two_half_batches_are_one_whole_batch():
    """optax.MultiSteps hands on the mean gradient: parameters and memories end where one whole batch puts them."""
    x, y = normal(0, 3, 8, 4), normal(1, 3, 8)
    params = {"w": jnp.full(4, 0.1), "b": jnp.zeros(())}

    def loss(params, x, y):
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    def run(tx, x, y):
        def step(carry, batch):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, *batch), state, params)
            return (optax.apply_updates(params, updates), state), params

        return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), (x, y)))()

    tx = mnemosyne.pretrained("coordinate")
    (whole, memory), _ = run(tx, x, y)
    halves = (a.reshape(6, 4, *a.shape[2:]) for a in (x, y))
    (halved, state), path = run(optax.MultiSteps(tx, 2).gradient_transformation(), *halves)
    same(halved, whole, rtol=1e-4, atol=1e-5)
    same(state.inner_opt_state, memory, rtol=1e-3, atol=1e-5)
    assert np.array_equal(path["w"][0], path["w"][1])  # nothing moves between two halves
    assert not np.array_equal(path["w"][1], path["w"][2])


def test_inject_hyperparams_and_schedules():
    injected = compiled(optax.inject_hyperparams(mnemosyne.pretrained)(name="light", step_size=0.0))
    state = injected.init(PARAMS)
    updates, _ = injected.update(GRADIENT, state)
    assert not any(np.asarray(u).any() for u in jax.tree.leaves(updates))
    state.hyperparams["step_size"] = jnp.array(1.0)
    moved, _ = injected.update(GRADIENT, state)
    plain = mnemosyne.pretrained("light")
    same(moved, plain.update(GRADIENT, plain.init(PARAMS))[0], rtol=1e-6)  # without jit, as one may
    scheduled = compiled(mnemosyne.pretrained("light", step_size=optax.linear_schedule(0.0, 1.0, 10)))
    first, _ = scheduled.update(GRADIENT, scheduled.init(PARAMS))
    assert not any(np.asarray(u).any() for u in jax.tree.leaves(first))


def test_tree_map_params_reaches_what_belongs_to_every_parameter(tx):
    state = tx.init(PARAMS)
    specs = jax.tree.map(lambda p: p.ndim, PARAMS)
    seen = []
    optax.tree_map_params(tx, lambda leaf, spec: seen.append((leaf.ndim, spec)), state, specs)
    trees = [leaf for leaf in jax.tree.leaves(state) if leaf.shape[:2] == PARAMS["empty"].shape]
    assert len(seen) == len(trees) * len(PARAMS)
    assert all(spec <= ndim for ndim, spec in seen)


def test_train_state_under_jit_with_donation_compiles_once(tx):
    module = nn.Dense(2)
    x = jnp.ones((5, 3))
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    ts = TrainState.create(apply_fn=module.apply, params=params, tx=tx).replace(step=jnp.array(0))

    def step(ts):
        loss = lambda p: jnp.mean((ts.apply_fn({"params": p}, x) - 1.0) ** 2)
        value, grads = jax.value_and_grad(loss)(ts.params)
        return ts.apply_gradients(grads=grads), value

    compiled = jax.jit(step, donate_argnums=0)
    losses = []
    for _ in range(30):
        ts, value = compiled(ts)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    assert compiled._cache_size() == 1


def test_vmap_over_runs_equals_separate_runs(tx):
    many = jax.tree.map(lambda p: np.stack([p, p + np.float32(1.0)]), PARAMS)
    update = lambda p: tx.update(gradient(p), tx.init(p), p)[0]
    mapped = jax.tree.map(np.asarray, jax.jit(jax.vmap(update))(many))
    update = jax.jit(update)
    for i in range(2):
        same(jax.tree.map(lambda a, i=i: a[i], mapped), update(jax.tree.map(lambda a, i=i: a[i], many)), atol=1e-6)


def test_sharded_parameters_get_the_same_updates(elementwise):
    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()), ("x",))
    params = {"w": normal(0, 1024, 8), "b": np.ones(8, np.float32)}
    sharding = {"w": NamedSharding(mesh, PartitionSpec("x")), "b": NamedSharding(mesh, PartitionSpec("x"))}
    grads = jax.tree.map(lambda p: np.sin(3 * p), params)

    @jax.jit
    def two_steps(params, grads):
        step = lambda _, carry: elementwise.update(grads, carry[1], params)
        return jax.lax.fori_loop(0, 2, step, (params, elementwise.init(params)))

    plain, _ = two_steps(params, grads)
    spread, state = two_steps(*(jax.device_put(t, sharding) for t in (params, grads)))
    same(spread, plain, rtol=1e-4, atol=1e-7)
    memory = [s for s in jax.tree.leaves(state) if s.ndim > 1 and s.shape[0] == 1024]
    assert memory
    assert all(len({d.device for d in s.addressable_shards}) == 8 for s in memory)


def test_state_survives_orbax(tx, tmp_path):
    params, state = train(tx, PARAMS, 3)
    del params
    small = jax.tree.map(lambda s: s if s.size else jnp.zeros(1), state)  # orbax refuses empty arrays
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "state", small)
    checkpointer.wait_until_finished()
    back = checkpointer.restore(tmp_path / "state", small)
    assert jax.tree.structure(back) == jax.tree.structure(small)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(small), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_scaling_the_loss_changes_nothing(robust, factor):
    plain, _ = train(robust, PARAMS, 20)
    rescaled, _ = train(robust, PARAMS, 20, factor)
    same(plain, rescaled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [0.0, jnp.nan, jnp.inf, -jnp.inf, 3e38, 1e-38])
def test_strange_gradients_leave_the_state_finite(tx, bad):
    strange = {**GRADIENT, "w": GRADIENT["w"].at[0, 0].set(bad)}
    state = tx.init(PARAMS)
    for g in (GRADIENT, strange, jax.tree.map(lambda x: np.full_like(x, bad), GRADIENT), GRADIENT):
        updates, state = tx.update(g, state, PARAMS)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
    assert int(jax.tree.leaves(state)[0]) == (0 if np.isfinite(bad) else 2)


def test_only_zero_gradients_move_nothing(robust):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    state = robust.init(PARAMS)
    for _ in range(3):
        updates, state = robust.update(zeros, state)
    assert not any(np.asarray(u).any() for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_parameters_that_are_not_floating_are_refused(tx, dtype):
    with pytest.raises(ValueError, match=r"'table'.*floating-point arrays only\. Hold what is not trained apart"):
        tx.init({"w": jnp.ones(2), "table": jnp.ones(3, dtype)})


@pytest.mark.bad_input
@pytest.mark.parametrize(("leaf", "kind"), [("relu", "str"), (max, "builtin_function_or_method")])
def test_a_leaf_that_is_no_array_is_named(leaf, kind):
    with pytest.raises(ValueError, match=rf"'activation'.* is a {kind}, not an array\. Hold what is not trained"):
        zoo.pretrained("light").init({"w": jnp.ones(2), "activation": leaf})


def test_gradients_of_another_tree_are_refused(tx):
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"(?s)\['b'\]: nothing instead of \(3,\)"):
        tx.update({"w": PARAMS["w"]}, state)


def test_gradients_of_another_shape_are_refused(elementwise):
    state = elementwise.init(PARAMS)
    with pytest.raises(ValueError, match=r"\['b'\]: \(4,\) instead of \(3,\)"):
        elementwise.update({**PARAMS, "b": jnp.zeros(4)}, state)


def test_weights_of_other_sizes_are_refused():
    theta = rule_of(LIGHT).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"(?s)do not fit this rule.*embed"):
        from_rule(theta, rule_of(COORDINATE), optax.identity())
    with pytest.raises(ValueError, match=r"(?s)do not fit this rule.*encoders"):
        from_rule(theta, paper_rule(LIGHT), optax.identity())


def test_an_empty_tree_is_fine(tx):
    updates, _ = tx.update({}, tx.init({}), {})
    assert updates == {}


def test_nonfinite_counts():
    tx = compiled(zero_nonfinite())
    state = tx.init({"a": jnp.zeros(2)})
    for value, count in ((1.0, 0), (jnp.nan, 1), (jnp.inf, 2), (2.0, 2)):
        updates, state = tx.update({"a": jnp.array([value, 1.0])}, state)
        assert int(state.steps) == count
        assert float(updates["a"][1]) == 1.0


def test_tensor_rms_is_the_bias_corrected_mean():
    tx, g = compiled(scale_by_tensor_rms(decay=0.5)), np.array([[3.0, 4.0], [0.3, -0.4]], np.float32)
    state = tx.init({"a": jnp.zeros(2)})
    size = 0.0
    for t, row in enumerate(g, start=1):
        updates, state = tx.update({"a": jnp.asarray(row)}, state)
        size = 0.5 * size + 0.5 * np.sqrt((row**2).mean())
        assert np.allclose(updates["a"], row * (1 - 0.5**t) / size, rtol=1e-6)
    with pytest.raises(ValueError, match="decay must lie in"):
        scale_by_tensor_rms(decay=1.0)


def test_the_papers_input_is_one_argument_away(theta, config):
    """Without normalisation the rule sees raw gradients, as in the paper, and is no longer scale-free."""
    raw = compiled(from_rule(theta, rule_of(config), prepare=optax.identity()))
    small, large = (raw.update({"a": s * jnp.ones(3)}, raw.init({"a": jnp.ones(3)}))[0]["a"] for s in (1e-3, 1.0))
    assert not np.allclose(small, large, rtol=0.01)
