"""Every shipped optimizer in training code as people write it: meshes, annotations, 64-bit mode, slips."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mnemosyne
from mnemosyne.optimizer import zoo

NAMES = zoo.available()
FEW = ("slim", "paced", "hybrid", "tensor_paced", "velo_cam")
X, Y = (jax.random.normal(jax.random.key(i), (16, n)) for i, n in ((0, 4), (1, 2)))
PARAMS = {
    "a": jax.random.normal(jax.random.key(2), (4, 8)) / 2,
    "b": jnp.zeros(8),
    "c": jax.random.normal(jax.random.key(3), (8, 2)) / 3,
}
SPECS = {"a": PartitionSpec(None, "m"), "b": PartitionSpec("m"), "c": PartitionSpec("m", None)}
LOSS = {"value": 1.0, "horizon": 9}


def loss(params, x=X, **how):
    hidden = jnp.tanh(x @ params["a"] + params["b"].reshape(1, -1))
    return jnp.mean((jnp.einsum("nh,ho->no", hidden, params["c"], **how) - Y) ** 2)


def train(tx, params, steps=3, **how):
    """(parameters, state) after some steps of one jitted function."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda p: loss(p, **how))(params)
        updates, state = tx.update(grads, state, params, value=value, horizon=9)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def mesh_of(kind):
    return jax.make_mesh((2,), ("m",), axis_types=(kind,), devices=jax.devices()[:2])


def same(trees, **tolerance):
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        assert np.allclose(a, b, **tolerance)


def check_sharded(tx, kind):
    """Sharded parameters get the numbers of whole ones and stay sharded."""
    mesh, (whole, _) = mesh_of(kind), train(tx, PARAMS)
    with jax.set_mesh(mesh):
        spread = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), PARAMS, SPECS)
        how = {"out_sharding": PartitionSpec()} if kind == AxisType.Explicit else {}
        parts, _ = train(tx, spread, **how)
    same((whole, parts), rtol=1e-4, atol=1e-6)
    for field, spec in SPECS.items():
        assert parts[field].sharding.is_equivalent_to(NamedSharding(mesh, spec), parts[field].ndim)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_sharded_parameters_get_the_numbers_of_whole_ones_and_stay_sharded(name, kind):
    check_sharded(mnemosyne.pretrained(name), kind)


def test_on_an_explicit_mesh_memories_are_sharded_like_their_parameters():
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        spread = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), PARAMS, SPECS)
        _, state = train(mnemosyne.pretrained("light"), spread, out_sharding=PartitionSpec())
    memories = [x for x in jax.tree.leaves(state) if x.shape[:2] == (4, 8)]
    assert memories
    assert all(x.sharding.spec[:2] == (None, "m") for x in memories)


class Annotated(nn.Module):
    """Weights in boxes that say how to shard them."""

    @nn.compact
    def __call__(self, x):
        marked = lambda init, *axes: nn.with_partitioning(init, axes)
        kernel = marked(nn.initializers.lecun_normal(), None, "m")
        x = nn.Dense(8, kernel_init=kernel, bias_init=marked(nn.initializers.zeros, "m"))(x)
        return nn.Dense(2)(nn.tanh(x))


@pytest.mark.parametrize("name", FEW)
def test_parameters_in_boxes_train_under_the_shardings_that_the_boxes_ask_for(name):
    tx, mesh = mnemosyne.pretrained(name), mesh_of(AxisType.Auto)

    def init(key):
        params = Annotated().init(key, X)["params"]
        return params, tx.init(params)

    def step(params, state):
        value, grads = jax.value_and_grad(lambda p: jnp.mean((Annotated().apply({"params": p}, X) - Y) ** 2))(params)
        updates, state = tx.update(grads, state, params, value=value, horizon=9)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        asked = nn.logical_to_mesh_sharding(nn.get_partition_spec(jax.eval_shape(init, jax.random.key(0))), mesh)
        carry = jax.jit(init, out_shardings=asked)(jax.random.key(0))
        for _ in range(2):
            carry = jax.jit(step, out_shardings=asked)(*carry)
    plain = nn.meta.unbox(init(jax.random.key(0))[0])
    state = tx.init(plain)
    for _ in range(2):
        plain, state = jax.jit(step)(plain, state)
    same((nn.meta.unbox(carry[0]), plain), rtol=1e-4, atol=1e-6)


class Network(nnx.Module):
    def __init__(self, rngs, marked):
        mark = nnx.with_partitioning if marked else lambda init, axes: init
        normal, zeros = nnx.initializers.lecun_normal(), nnx.initializers.zeros
        self.a = nnx.Linear(4, 8, rngs=rngs, kernel_init=mark(normal, (None, "m")), bias_init=mark(zeros, ("m",)))
        self.c = nnx.Linear(8, 2, rngs=rngs, kernel_init=mark(normal, ("m", None)))

    def __call__(self, x):
        return self.c(nnx.tanh(self.a(x)))


def nnx_trains_partitions():
    """Whether this flax does; 0.11 fails in `nnx.Optimizer` with whatever `optax.partition` is made of."""
    model = Network(nnx.Rngs(0), False)
    label = lambda params: jax.tree.map(lambda p: "ab"[p.ndim > 1], params)
    optimizer = nnx.Optimizer(model, optax.partition({"a": optax.sgd(1.0), "b": optax.adam(1.0)}, label), wrt=nnx.Param)
    try:
        optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(X)))(model))
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("name", FEW)
def test_nnx_trains_annotated_parameters_as_plain_ones(name):
    if name == "hybrid" and not nnx_trains_partitions():
        pytest.skip("this flax trains no optax.partition in nnx.Optimizer")

    def losses(marked):
        with jax.set_mesh(mesh_of(AxisType.Auto)):
            model = Network(nnx.Rngs(0), marked)
            optimizer = nnx.Optimizer(model, mnemosyne.pretrained(name), wrt=nnx.Param)

            @nnx.jit
            def step(model, optimizer):
                value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
                optimizer.update(model, grads, value=value, horizon=9)
                return value

            return [float(step(model, optimizer)) for _ in range(4)]

    plain, marked = losses(False), losses(True)
    assert np.allclose(plain, marked, rtol=1e-4)
    assert plain[-1] != plain[0]


@pytest.mark.parametrize("name", NAMES)
def test_in_64_bit_mode_states_are_as_before_and_updates_as_the_gradients(name):
    before = mnemosyne.pretrained(name)
    shapes = lambda tx: jax.eval_shape(tx.init, jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS))
    wanted = [(x.shape, x.dtype) for x in jax.tree.leaves(shapes(before))]
    with jax.enable_x64(True):
        for tx in (before, mnemosyne.pretrained(name)):
            assert [(x.shape, x.dtype) for x in jax.tree.leaves(shapes(tx))] == wanted
            params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), PARAMS)

            def step(carry, _, tx=tx):
                params, state = carry
                updates, state = tx.update(jax.tree.map(lambda p: 1e300 * p, params), state, params, **LOSS)
                return (optax.apply_updates(params, updates), state), updates

            (_, state), updates = jax.eval_shape(
                lambda p, tx=tx, step=step: jax.lax.scan(step, (p, tx.init(p)), length=2), params
            )
            assert all(u.dtype == jnp.float64 for u in jax.tree.leaves(updates))
            assert [x.dtype for x in jax.tree.leaves(state)] == [d for _, d in wanted]


def test_gradients_beyond_float32_count_as_a_large_number_and_infinite_ones_as_none():
    with jax.enable_x64(True):
        tx = mnemosyne.pretrained("light")
        g = {"w": jnp.array([1e300, -1e300, 1e-300, 0.0])}
        updates, state = tx.update(g, tx.init(g))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
        assert updates["w"][0] == -updates["w"][1] != 0.0
        assert [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32] == [0, 1]
        updates, state = tx.update({"w": jnp.array([jnp.inf, -1e300, 0.0, 0.0])}, tx.init(g))
        assert [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32] == [1, 1]
        assert updates["w"][0] == 0.0 != updates["w"][1]


@pytest.mark.parametrize("case", ["a feature that is always zero", "a last layer of zeros", "all zeros"])
@pytest.mark.parametrize("name", NAMES)
def test_meta_gradients_are_finite_where_gradients_are_zero(name, case):
    tx = mnemosyne.pretrained(name)
    x = X.at[:, 0].set(0.0) if case.startswith("a feature") else X
    params = {**PARAMS, "c": 0.0 * PARAMS["c"]} if "last layer" in case else PARAMS
    params = jax.tree.map(jnp.zeros_like, params) if case == "all zeros" else params

    def outer(params, scale):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(lambda p: scale * loss(p, x))(params)
            updates, state = tx.update(grads, state, params, value=value, horizon=3)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=2)
        return loss(params, x)

    gradients = jax.jit(jax.grad(outer, (0, 1)))(params, 1.0)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.bad_input
@pytest.mark.parametrize("name", NAMES)
def test_slips_are_named_before_anything_is_computed(name):
    tx = mnemosyne.pretrained(name)
    state = tx.init(PARAMS)
    another = mnemosyne.pretrained("light" if name != "light" else "odd").init(PARAMS)
    turned = {**PARAMS, "a": PARAMS["a"].T}
    for grads, given, message in (
        (turned, state, r"\['a'\]: \(8, 4\) instead of \(4, 8\)"),
        ({**PARAMS, "d": PARAMS["a"]}, state, r"\['d'\]: \(4, 8\) instead of nothing"),
        ({"a": PARAMS["a"]}, state, r"\['b'\]: nothing instead of \(8,\)"),
        ({**PARAMS, "a": 1j * PARAMS["a"]}, state, "complex64"),
        (PARAMS, another, "made by another optimizer"),
        (PARAMS, optax.adam(1.0).init(PARAMS), "made by another optimizer: it is a tuple"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            tx.update(grads, given, PARAMS, **LOSS)
        assert len(str(error.value)) < 600


@pytest.mark.bad_input
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["complex64", "int32", "bool"])
def test_parameters_of_other_kinds_are_refused(name, dtype):
    with pytest.raises(ValueError, match=rf"\['w'\] has dtype {dtype}"):
        mnemosyne.pretrained(name).init({"w": jnp.ones((3, 2), dtype)})


@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_was_just_made_can_be_donated(name):
    state = mnemosyne.pretrained(name).init(PARAMS)
    later = jax.jit(lambda held: jax.tree.map(lambda x: x + 1, held), donate_argnums=0)(state)
    assert len(jax.tree.leaves(later)) == len(jax.tree.leaves(state)) > 0
