import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnemosyne.sharding import spread
from mnemosyne.tasks.vision import VisionTransformer
from tests.models import random_params

TINY = VisionTransformer(layers=1, heads=2, hidden=12, mlp_dim=20, patch=4, side=8, classes=6, dtype=jnp.bfloat16)


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.reshape(jax.devices(), (4, 2)), ("data", "model"))


def test_leaves_are_split_along_their_largest_even_axis(mesh):
    like = {
        "w": jnp.zeros((6, 8)),
        "odd": jnp.zeros((3, 4)),
        "one": jnp.zeros(5),
        "none": jnp.zeros(()),
        "e": jnp.zeros(0),
    }
    specs = {name: where.spec for name, where in spread(like, mesh).items()}
    whole = PartitionSpec()
    split = PartitionSpec(None, "model")
    assert specs == {"w": split, "odd": split, "one": whole, "none": whole, "e": whole}
    assert spread(like, mesh, "data")["w"].spec == PartitionSpec(None, "data")
    with pytest.raises(ValueError, match="no axis 'pipe': data, model"):
        spread(like, mesh, "pipe")


def test_a_bfloat16_step_on_eight_devices_is_a_step_on_one(mesh):
    params, tx = random_params(TINY), optax.chain(optax.scale_by_adam(), optax.scale(-1e-2))
    images, labels = jax.random.normal(jax.random.key(1), (16, 8, 8, 3)), jnp.arange(16) % 6

    def loss(params, images, labels):
        logits = TINY.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        gradient = jax.grad(loss)(params, images, labels)
        updates, state = tx.update(gradient, state, params)
        return gradient, optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    alone = step(params, state, images, labels)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.device_put((images, labels), rows)
    spread_out = (jax.device_put(tree, spread(tree, mesh)) for tree in (params, state))
    together = step(*spread_out, *batch)
    assert len(together[1]["layer_0"]["mlp"]["up"]["kernel"].sharding.device_set) == 8
    assert not together[1]["layer_0"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(alone[0]))
    for a, b in zip(jax.tree.leaves(alone[0]), jax.tree.leaves(together[0]), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        assert np.allclose(a, b, rtol=0.03, atol=0.03 * largest)
    # Whatever the model computes in, parameters and moments are float32.
    floats = [x for x in jax.tree.leaves(together[1:]) if x.ndim]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    # Adam's first step is a gradient's sign, which rounding may turn where the gradient is nearly zero.
    for g, a, b in zip(*map(jax.tree.leaves, (alone[0], alone[1], together[1])), strict=True):
        clear = np.abs(g) > 0.1 * largest
        assert np.allclose(a[clear], b[clear], atol=1e-5)
