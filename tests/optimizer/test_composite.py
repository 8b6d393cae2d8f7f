import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne.optimizer.composite import by_rank, by_size, hybrid, super_mnemosyne
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.tasks.models.bert import BERT
from mnemosyne.tasks.models.t5 import T5
from mnemosyne.tasks.models.transformer import count, shapes
from mnemosyne.tasks.models.vision import VISION

PARAMS = {"w": jnp.ones((8, 3)), "v": jnp.ones((2, 3)), "b": jnp.zeros(8), "scalar": jnp.array(0.5)}
GRADIENTS = jax.tree.map(lambda p: 1.0 + jnp.cos(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape), PARAMS)
MLP = {"w0": (784, 20), "b0": (20,), "w1": (20, 10), "b1": (10,)}
NETWORKS = {"ViT-B": VISION["B/16"], "ViT-H": VISION["H/14"], "BERT-base": BERT["base"], "T5-XXL": T5["xxl"]}


def untrained(name):
    """An architecture's optimizer; zeros will do for weights where only shapes matter."""
    learned = OPTIMIZERS[name].learned
    theta = jax.eval_shape(learned.init, jax.random.key(0))
    return learned.make(jax.tree.map(lambda x: jnp.zeros(x.shape), theta))


def mlp():
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in MLP.items()}


def test_super_takes_the_largest_tensors_by_the_first():
    tx = super_mnemosyne(optax.sgd(1.0), optax.adam(1.0))
    updates, _ = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
    first, second = optax.sgd(1.0), optax.adam(1.0)
    first, second = (t.update(GRADIENTS, t.init(PARAMS))[0] for t in (first, second))
    for name, wanted in {"w": first, "b": first, "v": second, "scalar": second}.items():  # of 24, 8, 6 and 1 elements
        assert np.allclose(updates[name], wanted[name])


def test_the_share_goes_from_all_to_none():
    labels = {share: by_size(PARAMS, share) for share in (0.0, 0.25, 0.5, 1.0)}
    large = {share: {name for name, label in each.items() if label == "light"} for share, each in labels.items()}
    assert large == {0.0: set(PARAMS), 0.25: {"w", "b"}, 0.5: {"w"}, 1.0: set()}
    assert by_size({}, 0.25) == {}
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share must lie in"):
            super_mnemosyne(optax.identity(), optax.identity(), share)


def test_in_vit_b_the_largest_are_those_of_the_paper():
    """App. B.10: the MLP block of each layer, and the head."""
    labels = jax.tree_util.tree_leaves_with_path(by_size(shapes(VISION["B/16"]), 0.25))
    large = {jax.tree_util.keystr(path, simple=True, separator="/") for path, label in labels if label == "light"}
    assert large == {"head/kernel"} | {f"layer_{i}/mlp/{name}/kernel" for i in range(12) for name in ("up", "down")}


def test_hybrid_leaves_vectors_to_adam():
    tx = hybrid(optax.sgd(1.0))
    assert by_rank(PARAMS) == {"w": "matrix", "v": "matrix", "b": "vector", "scalar": "vector"}
    updates, _ = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
    for name, other in {
        "w": optax.sgd(1.0),
        "v": optax.sgd(1.0),
        "b": optax.adam(1e-3),
        "scalar": optax.adam(1e-3),
    }.items():
        assert np.allclose(updates[name], other.update(GRADIENTS, other.init(PARAMS))[0][name])


@pytest.mark.parametrize("name", ["super", "hybrid"])
def test_learned_parts_keep_their_weights_and_fit_a_scan(name):
    """What each part does in the mixture is what it does alone, two steps on."""
    learned, light = OPTIMIZERS[name].learned, OPTIMIZERS["light"].learned
    theta = learned.init(jax.random.key(0))
    alone = light.make(theta["light"] if name == "super" else theta)

    def last(tx):
        def step(state, _):
            updates, state = tx.update(GRADIENTS, state, PARAMS)
            return state, updates

        return jax.jit(lambda: jax.lax.scan(step, tx.init(PARAMS), length=2)[1])()

    mixed, light_alone = last(learned.make(theta)), last(alone)
    assert np.allclose(mixed["w"], light_alone["w"], rtol=1e-4, atol=1e-9)
    assert not np.allclose(mixed["scalar"], light_alone["scalar"], rtol=1e-2, atol=1e-9)
    assert jax.tree.map(jnp.shape, mixed) == jax.tree.map(lambda p: (2, *p.shape), PARAMS)


@pytest.mark.parametrize("name", ["super", "hybrid"])
def test_tree_map_params_reaches_what_belongs_to_the_parameters_of_every_part(name):
    """With optax's own marks for what another part takes care of."""
    tx, seen = untrained(name), []
    state = tx.init(PARAMS)
    masked = lambda x: isinstance(x, optax.MaskedNode)
    keep = lambda leaf, name: None if masked(leaf) else seen.append(leaf.size)
    optax.tree_map_params(tx, keep, state, {name: name for name in PARAMS}, is_leaf=masked)
    light = {"super": ["b", "w"], "hybrid": ["v", "w"]}[name]
    moments = [PARAMS[x].size for x in ("b", "scalar")] * 2 if name == "hybrid" else []
    assert sorted(seen) == sorted(moments + [PARAMS[x].size * n for x in light for n in (32, 64)])


def test_state_bytes_by_hand():
    """On 784 × 20 × 10: 15,680 + 20 + 200 + 10 parameters in four tensors, each of one meta-token."""
    n, tensors, counter = 15_910, 4, 4  # normalising keeps a number of 4 bytes per tensor, and a count
    pace = 4 + tensors * (2 + 3 + 1 + 1) * 4 + 2 * n  # numbers of each tensor, and the last update in bfloat16
    coordinate = 2 * (16 + 1) * 32 * 4  # two encoders; contents of 16 and the normaliser, each over 32 features
    light = (2 + 1) * 32 * 4
    wanted = {
        "coordinate": n * coordinate + counter,
        "light": n * light + tensors * 4 + 2 * counter,
        "tensor": tensors * (coordinate + 4) + 2 * counter,
        "tensor_averaged": tensors * (coordinate + 4) + 3 * counter + 2 * n,  # the average in bfloat16
        "tensor_paced": tensors * (coordinate + 4) + 4 * counter + 2 * n + pace,
        "super": 15_680 * light + 4 + 2 * counter + 3 * (coordinate + 4) + 3 * counter,
        "hybrid": 15_880 * light + 2 * 4 + 2 * counter + 30 * 8 + 2 * counter,
    }
    assert (coordinate, light) == (4352, 384)
    assert {name: mnemosyne.state_bytes(untrained(name), mlp()) for name in wanted} == wanted
    assert mnemosyne.state_bytes(optax.sgd(1.0), mlp()) == 0
    assert mnemosyne.state_bytes(optax.lion(1.0), mlp()) == 4 * n + counter
    assert mnemosyne.state_bytes(optax.adam(1.0), mlp()) == 8 * n + counter
    assert mnemosyne.state_bytes(optax.adam(1.0), {}) == counter


@pytest.mark.parametrize("network", NETWORKS)
def test_a_large_networks_state_is_a_thirtieth_of_adams(network):
    """Counted without allocating: light would need 4 TB for T5-XXL. Super lies between its parts, above Adam."""
    params = shapes(NETWORKS[network])
    n = count(params)
    per_parameter = {name: mnemosyne.state_bytes(untrained(name), params) / n for name in ("tensor", "super", "light")}
    assert per_parameter["tensor"] < 8 / 25
    assert per_parameter["tensor"] < 8 < per_parameter["super"] < per_parameter["light"]
    tokens = sum(-(-leaf.size // 128**2) for leaf in jax.tree.leaves(params))
    assert np.isclose(n * per_parameter["tensor"], 4352 * tokens, rtol=1e-3)
