"""What the tests of public models share: outputs and checkpoints of the `transformers` library, kept and fresh."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.tasks.models.checkpoints import load_checkpoint
from mnemosyne.tasks.models.transformer import shapes

GOLDEN = Path(__file__).parents[1] / "golden"
LAYERS = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
TINY = {
    "vit": {**LAYERS, "image_size": 8, "patch_size": 4, "num_labels": 5},
    "bert": {**LAYERS, "vocab_size": 24, "max_position_embeddings": 16},
    "t5": {"vocab_size": 24, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 3},
}
"""Sizes of the kept models, in the library's words."""
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def golden(kind, module, names):
    """The kept checkpoint of a tiny model as (parameters, arrays)."""
    with np.load(GOLDEN / f"{kind}.npz", allow_pickle=False) as f:
        arrays = {name: f[name] for name in f.files}
    return load_checkpoint(GOLDEN / f"{kind}.safetensors", names, shapes(module)), arrays


def fresh(kind, module, names, folder, **config):
    """A checkpoint just made with PyTorch as (parameters, arrays); skips where there is none."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.golden import make_checkpoints

    arrays = getattr(make_checkpoints, kind)(folder, **config)
    return load_checkpoint(folder, names, shapes(module)), arrays


def random_params(module, seed=0):
    """Parameters none of which are zero, so that every one of them is felt."""
    leaves, tree = jax.tree.flatten(shapes(module))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def check_bfloat16(module, params, *inputs, **more):
    """A bfloat16 computation is near the float32 one, gives float32 and leaves parameters and gradients float32."""

    @partial(jax.jit, static_argnums=1)
    def logits(params, dtype):
        return module.clone(dtype=dtype).apply({"params": params}, *inputs, **more)

    exact, rough = logits(params, jnp.float32), logits(params, jnp.bfloat16)
    assert exact.dtype == rough.dtype == jnp.float32
    assert 0 < float(jnp.abs(rough - exact).max()) < 0.1 * float(jnp.abs(exact).max())
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(logits(p, jnp.bfloat16) ** 2)))(params)
    assert all(g.dtype == jnp.float32 and jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes(module.clone(dtype=jnp.bfloat16))))


def check_remat(module, params, *inputs):
    """Computing layers again changes neither names nor gradients."""
    again = module.clone(remat=True)
    assert jax.tree.structure(shapes(again)) == jax.tree.structure(params)
    loss = lambda params, m: jnp.sum(m.apply({"params": params}, *inputs) ** 2)
    a, b = (jax.jit(jax.grad(partial(loss, m=m)))(params) for m in (module, again))
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(a))  # a key's bias has none, up to rounding
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.allclose(x, y, rtol=1e-4, atol=1e-5 * largest)


def check_init(module):
    """The same key gives the same parameters, another key others."""
    init = jax.jit(lambda key: module.init(key, *module.example())["params"])
    a, b, c = (init(jax.random.key(k)) for k in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(c), strict=True))
