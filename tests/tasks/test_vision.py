import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.tasks.models.checkpoints import VISION_NAMES
from mnemosyne.tasks.models.transformer import count, shapes
from mnemosyne.tasks.models.vision import VISION, Patches, VisionTransformer
from tests.tasks.models import CLOSE, check_bfloat16, check_init, check_remat, fresh, golden, random_params

TINY = VisionTransformer(layers=2, heads=3, hidden=12, mlp_dim=20, patch=4, side=8, classes=5)
IMAGES = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))

# As torchvision and timm publish them, at 224 pixels and 1,000 classes; H/32 has (32² − 14²) · 3 · 1,280 numbers more
# in its patches and (16² − 7²) · 1,280 fewer in its positions than H/14.
PUBLISHED = {
    "B/16": 86_567_656,
    "L/16": 304_326_632,
    "L/32": 306_535_400,
    "H/14": 632_045_800,
    "H/32": 632_045_800 + (32**2 - 14**2) * 3 * 1_280 - (16**2 - 7**2) * 1_280,
}


@jax.jit
def logits(params, *inputs, **more):
    return TINY.apply({"params": params}, *inputs, **more)


def test_logits_are_those_of_the_kept_checkpoint():
    params, arrays = golden("vit", TINY, VISION_NAMES)
    got = logits(params, jnp.asarray(arrays["images"]))
    assert np.allclose(got, arrays["logits"], **CLOSE)
    assert np.abs(arrays["logits"]).max() > 0.1


def test_logits_are_those_of_pytorch(tmp_path):
    module = VisionTransformer(layers=3, heads=2, hidden=16, mlp_dim=24, patch=3, side=12, classes=4)
    config = {"image_size": 12, "patch_size": 3, "hidden_size": 16, "num_hidden_layers": 3, "num_labels": 4}
    params, arrays = fresh(
        "vit", module, VISION_NAMES, tmp_path, seed=1, num_attention_heads=2, intermediate_size=24, **config
    )
    got = jax.jit(module.apply)({"params": params}, jnp.asarray(arrays["images"]))
    assert np.allclose(got, arrays["logits"], **CLOSE)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_sizes_have_their_published_number_of_parameters(name):
    assert set(VISION) == set(PUBLISHED)
    assert count(shapes(VISION[name])) == PUBLISHED[name]


def test_patches_are_a_convolution():
    patches = Patches(side=4, features=6)
    params = random_params(TINY)["embedding"] | {"kernel": jax.random.normal(jax.random.key(0), (4, 4, 3, 6))}
    params["bias"] = jnp.arange(6.0)
    convolved = jax.lax.conv_general_dilated(
        IMAGES, params["kernel"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    wanted = convolved.reshape(3, 4, 6) + params["bias"][None, None]
    assert np.allclose(patches.apply({"params": params}, IMAGES), wanted, atol=1e-5)


def test_patches_move_with_their_positions():
    params = random_params(TINY)
    left, right = jnp.split(IMAGES, 2, axis=2)
    swapped = params | {"positions": params["positions"][jnp.array([0, 2, 1, 4, 3])]}
    moved = logits(swapped, jnp.concatenate([right, left], axis=2))
    assert np.allclose(moved, logits(params, IMAGES), atol=1e-4)


def test_vmap_over_parameters_is_a_loop():
    several = [random_params(TINY, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
    together = jax.vmap(lambda p: logits(p, IMAGES))(stacked)
    alone = jnp.stack([logits(p, IMAGES) for p in several])
    assert np.allclose(together, alone, atol=1e-4)


def test_init_starts_from_equal_classes_and_follows_the_key():
    check_init(TINY)
    params = jax.jit(TINY.init)(jax.random.key(0), IMAGES)["params"]
    assert not logits(params, IMAGES).any()


def test_bfloat16_and_remat():
    check_bfloat16(TINY, random_params(TINY), IMAGES)
    check_remat(TINY, random_params(TINY), IMAGES)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="patches of 5 do not tile images of side 8"):
        shapes(TINY.clone(patch=5))
    with pytest.raises(ValueError, match="5 heads do not divide a width of 12"):
        shapes(TINY.clone(heads=5))
    with pytest.raises(ValueError, match=r"images are 12×12, this model is for 8×8"):
        logits(random_params(TINY), jnp.zeros((1, 12, 12, 3)))
