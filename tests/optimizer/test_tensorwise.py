from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnemosyne.memory.compact import cam
from mnemosyne.memory.layers import layer_norm, linear
from mnemosyne.memory.recurrent import lstm
from mnemosyne.metatrain.students import whole
from mnemosyne.metatrain.truncated import MetaConfig, Truncated
from mnemosyne.optimizer.composite import state_bytes
from mnemosyne.optimizer.paper import remember, two_inputs
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.spatial import metatokens, summarise
from mnemosyne.optimizer.tensorwise import tensorwise
from mnemosyne.optimizer.transform import memory_of
from tests.helpers import quadratic, slow_hierarchy

SMALL = Config(hidden=4, projections=3, encoders=2, feedforward=6)
LENGTH = 4  # so a meta-token stands for 16 elements
RAW = tensorwise(SMALL, prepare=optax.identity(), length=LENGTH)
NORMAL = tensorwise(SMALL, length=LENGTH)
MEMORY = cam(projections=3, discount=0.1)
THETA = RAW.init(jax.random.key(0))

METATOKENS = {(7,): 1, (8, 5): 3, (): 1, (1,): 1, (0, 3): 0, (2, 1, 3, 2, 2): 2, (16,): 1}
GRADIENTS = {
    str(shape): jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(METATOKENS)
}  # of all ranks up to 5, with 0 and 1 elements, one and several chunks and meta-tokens

ORDER = np.arange(22)
PERMUTED = {
    "not": ORDER,
    "within chunks": np.array([3, 1, 2, 0, *range(4, 20), 21, 20]),
    "whole chunks": np.array([4, 5, 6, 7, 0, 1, 2, 3, *range(8, 22)]),
    "across chunks": np.array([5, 1, 2, 3, 4, 0, *range(6, 22)]),
}


@partial(jax.jit, static_argnums=0)
def update(learned, theta, g, state):
    return learned.make(theta).update(g, state)


def two_steps(learned, theta, g):
    """The second updates, and the state after them."""
    _, state = update(learned, theta, g, learned.make(theta).init(g))
    return update(learned, theta, jax.tree.map(jnp.cos, g), state)


@pytest.fixture(scope="module")
def steps():
    """Second updates and states of one network of many tensors, which must not see each other."""
    permuted = {name: jax.random.normal(jax.random.key(9), (22,))[order] for name, order in PERMUTED.items()}
    same = {"flat": GRADIENTS[str((2, 1, 3, 2, 2))].reshape(-1)}
    return two_steps(RAW, THETA, {**GRADIENTS, **permuted, **same})


def slow_steps(theta, gradients):
    """§3.4 for one tensor alone, without padding, blocks or other tensors; the last update."""
    n = metatokens(gradients[0].size, LENGTH, 2)
    state = tuple(MEMORY.state((n,), 4, 4) for _ in range(2))
    for g in gradients:
        r = two_inputs(g.reshape(-1), SMALL.magnitude)
        tokens = slow_hierarchy(theta["levels"], linear(theta["embed"], r), LENGTH)
        state, out = remember(MEMORY, theta["encoders"], state, tokens)
        e = layer_norm(summarise(theta["spatial"], out, jnp.array(n)))
        both = jnp.stack([jnp.concatenate([row, e]) for row in r])
        u = linear(theta["out"], jax.nn.gelu(linear(theta["up"], both)))
    return SMALL.output_scale * u.reshape(g.shape)


@pytest.mark.parametrize("shape", [(8, 5), (2, 1, 3, 2, 2), ()])
def test_a_tensor_in_a_network_is_the_slow_one_alone(steps, shape):
    g = GRADIENTS[str(shape)]
    slow = slow_steps(THETA, [g, jnp.cos(g)])
    assert np.abs(slow).max() > 1e-5
    assert np.allclose(steps[0][str(shape)], slow, rtol=1e-3, atol=1e-7)


def test_the_state_has_so_many_memories_per_tensor():
    bytes_each = 2 * (6 * 4 + 6) * 4  # two encoders, N [4 × 6] and Ψ [6], float32
    assert all(n == -(-int(np.prod(shape)) // LENGTH**2) for shape, n in METATOKENS.items())
    tx = RAW.make(THETA)
    assert state_bytes(tx, GRADIENTS) == sum(METATOKENS.values()) * bytes_each + 4  # and the count of bad steps
    before = jax.eval_shape(tx.init, GRADIENTS)
    updates, after = jax.eval_shape(tx.update, GRADIENTS, before)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, GRADIENTS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert memory_of(before)[0].Psi.shape == (sum(METATOKENS.values()), 6)


def test_a_permutation_within_a_chunk_permutes_the_update(steps):
    """Equivariant within a chunk, and for whole chunks of one meta-token; not across chunks."""
    plain = np.asarray(steps[0]["not"])
    for name in ("within chunks", "whole chunks"):
        assert np.allclose(steps[0][name], plain[PERMUTED[name]], rtol=1e-4, atol=1e-8)
    assert np.abs(steps[0]["across chunks"] - plain[PERMUTED["across chunks"]]).max() > 1e-6


def test_in_one_chunk_every_permutation_permutes_the_update():
    whole_chunk = tensorwise(SMALL, prepare=optax.identity(), length=32)
    g = {name: jax.random.normal(jax.random.key(9), (22,))[order] for name, order in PERMUTED.items()}
    updates, _ = two_steps(whole_chunk, THETA, g)
    for name, order in PERMUTED.items():
        assert np.allclose(updates[name], updates["not"][order], rtol=1e-4, atol=1e-8)


def test_a_shape_is_only_a_name_for_a_sequence(steps):
    assert np.allclose(steps[0][str((2, 1, 3, 2, 2))].reshape(-1), steps[0]["flat"], rtol=1e-5, atol=1e-9)


def test_bfloat16_parameters_have_float32_memories():
    rough = jax.tree.map(lambda x: x.astype(jnp.bfloat16), GRADIENTS)
    updates, state = two_steps(NORMAL, THETA, rough)
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
    assert all(s.dtype != jnp.bfloat16 for s in jax.tree.leaves(state))
    exact, _ = two_steps(NORMAL, THETA, jax.tree.map(lambda x: x.astype(jnp.float32), rough))
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(exact), strict=True):
        assert np.allclose(np.asarray(a, np.float32), b, rtol=0.1, atol=2e-5)


def test_scaling_the_loss_changes_nothing():
    plain, _ = two_steps(NORMAL, THETA, GRADIENTS)
    for factor in (1e-6, 1e6):
        state = NORMAL.make(THETA).init(GRADIENTS)
        for g in (GRADIENTS, jax.tree.map(jnp.cos, GRADIENTS)):
            updates, state = update(NORMAL, THETA, jax.tree.map(lambda x, f=factor: f * x, g), state)
        for a, b in zip(*map(jax.tree.leaves, (plain, updates)), strict=True):
            assert np.allclose(a, b, rtol=1e-3, atol=1e-7)


def test_sharded_parameters_get_the_same_updates():
    assert jax.device_count() == 8
    spread = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
    g = jax.tree.map(lambda x: jax.device_put(x, spread) if x.size > 1 and len(x) % 8 == 0 else x, GRADIENTS)
    assert len(g[str((8, 5))].addressable_shards) == 8
    plain, sharded = (two_steps(NORMAL, THETA, t) for t in (GRADIENTS, g))
    for a, b in zip(*map(jax.tree.leaves, (plain, sharded)), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_memory_and_representation_are_arguments():
    """An LSTM in CAM's place, and a third input."""
    three = lambda g, p: jnp.concatenate([two_inputs(g, p), g[..., None] ** 2], axis=-1)
    learned = tensorwise(SMALL, lstm(hidden=5), three, length=LENGTH)
    theta = learned.init(jax.random.key(0))
    assert theta["embed"]["w"].shape == (3, 4)
    updates, state = two_steps(learned, theta, {"w": jnp.sin(jnp.arange(40.0))})
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
    assert {x.shape for x in jax.tree.leaves(memory_of(state))} == {(3, 5)}


def test_the_meta_gradient_is_that_of_finite_differences():
    """Through a truncated window, with all blocks computed again; it reaches all but the projections."""
    config = MetaConfig(horizon=4, window=2, replicas=1)
    t = Truncated(whole(NORMAL, config.horizon), (quadratic("bowl", 22),), config)
    (task,), theta, key = t.tasks, NORMAL.init(jax.random.key(0)), jax.random.key(1)
    slots = t.fresh(task, key)
    _, rollout = jax.jit(lambda theta: t.rollout(task, task.data, theta, slots, key))(theta)
    loss = lambda theta: t.meta_loss(theta, [slots.state], [rollout], key, jnp.array(1.0))[0]
    both = jax.jit(jax.value_and_grad(loss))
    _, gradient = both(theta)
    leaves, tree = jax.tree.flatten_with_path(gradient)
    frozen = [path[-1].key == "omega" for path, _ in leaves]
    assert [not np.any(x) for _, x in leaves] == frozen
    assert all(np.isfinite(x).all() for _, x in leaves)
    for i in range(3):
        along = jax.random.normal(jax.random.key(i), (sum(x.size for _, x in leaves),))
        parts = jnp.split(along, np.cumsum([x.size for _, x in leaves])[:-1])
        parts = [0.0 * v if f else v for v, f in zip(parts, frozen, strict=True)]
        along = tree.unflatten([v.reshape(x.shape) for v, (_, x) in zip(parts, leaves, strict=True)])
        ahead, _ = both(jax.tree.map(lambda x, v: x + 3e-4 * v, theta, along))
        behind, _ = both(jax.tree.map(lambda x, v: x - 3e-4 * v, theta, along))
        slope = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))
        assert np.isclose(slope, (ahead - behind) / 6e-4, rtol=1e-2)


def bytes_of_temporaries(f, *args):
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


def ten_million():
    """(step, its arguments' shapes) of a tensor of 10⁷ elements."""
    learned = tensorwise()
    step = lambda theta, g, state: learned.make(theta).update(g, state)
    theta, g = jax.eval_shape(learned.init, jax.random.key(0)), {"w": jax.ShapeDtypeStruct((2500, 4000), jnp.float32)}
    return step, (theta, g, jax.eval_shape(lambda theta, g: learned.make(theta).init(g), theta, g))


def test_a_step_of_ten_million_parameters_fits_into_two_gibibytes():
    """By the compiler's own account; nothing is allocated."""
    step, shapes = ten_million()
    assert bytes_of_temporaries(step, *shapes) < 2 * 2**30


@pytest.mark.slow
def test_a_meta_gradient_through_ten_million_parameters_fits_too():
    step, shapes = ten_million()
    meta_loss = lambda theta, g, state: jnp.sum(step(theta, g, state)[0]["w"])
    assert bytes_of_temporaries(jax.grad(meta_loss), *shapes) < 2 * 2**30


@pytest.mark.parametrize("sizes", [{"length": 1}, {"levels": 0}])
def test_sizes_without_a_hierarchy_are_refused(sizes):
    with pytest.raises(ValueError, match="length ≥ 2 and levels ≥ 1"):
        tensorwise(SMALL, **sizes)


def test_gradients_of_another_shape_are_refused_however_many_memories_they_need():
    tx = RAW.make(THETA)
    state = tx.init({"w": jnp.zeros((5, 7))})
    for shape in ((7, 7), (7, 5)):
        with pytest.raises(ValueError, match=rf"\['w'\]: \({shape[0]}, {shape[1]}\) instead of \(5, 7\)"):
            tx.update({"w": jnp.zeros(shape)}, state)
    with pytest.raises(ValueError, match=r"(?s)\['v'\]: \(5, 7\) instead of nothing.*\['w'\]: nothing instead of"):
        tx.update({"v": jnp.zeros((5, 7))}, state)
