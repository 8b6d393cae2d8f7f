import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.tasks.models.bert import BERT, Bert
from mnemosyne.tasks.models.checkpoints import BERT_NAMES
from mnemosyne.tasks.models.transformer import count, shapes
from tests.tasks.models import CLOSE, check_bfloat16, check_init, check_remat, fresh, golden, random_params

TINY = Bert(layers=2, heads=3, hidden=12, mlp_dim=20, vocabulary=24, length=16)
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 24)


@jax.jit
def logits(params, *inputs, **more):
    return TINY.apply({"params": params}, *inputs, **more)


def check_logits(module, params, arrays):
    mask = arrays["mask"]
    read = (jnp.asarray(arrays[name]) for name in ("tokens", "types", "mask"))
    got = jax.jit(module.apply)({"params": params}, *read)
    assert not mask.all()
    assert np.allclose(got[mask], arrays["logits"][mask], **CLOSE)


def test_logits_are_those_of_the_kept_checkpoint():
    check_logits(TINY, *golden("bert", TINY, BERT_NAMES))


def test_logits_are_those_of_pytorch(tmp_path):
    module = Bert(layers=3, heads=2, hidden=16, mlp_dim=24, vocabulary=31, length=12)
    config = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 3, "max_position_embeddings": 12}
    made = fresh("bert", module, BERT_NAMES, tmp_path, seed=1, num_attention_heads=2, intermediate_size=24, **config)
    check_logits(module, *made)


def test_base_has_its_published_number_of_parameters():
    assert count(shapes(BERT["base"])) == 109_514_298  # BertForMaskedLM; with a pooler instead of this head 109,482,240


def test_nothing_looks_at_filling():
    params, more = random_params(TINY), jnp.pad(TOKENS, ((0, 0), (0, 3)), constant_values=5)
    mask = (jnp.arange(10) < 7)[None].repeat(2, axis=0)
    short = logits(params, TOKENS)
    for filling in (more, more.at[:, 7:].set(9)):
        assert np.allclose(logits(params, filling, mask=mask)[:, :7], short, atol=1e-4)
    assert not np.allclose(logits(params, more)[:, :7], short, atol=1e-2)
    assert np.isfinite(logits(params, more, mask=jnp.zeros_like(mask))).all()


def test_defaults_are_one_sentence_without_filling():
    params = random_params(TINY)
    spelt = logits(params, TOKENS, jnp.zeros_like(TOKENS), jnp.ones(TOKENS.shape, bool))
    assert np.allclose(logits(params, TOKENS), spelt, atol=1e-5)
    assert not np.allclose(logits(params, TOKENS, jnp.ones_like(TOKENS)), spelt, atol=1e-2)


def test_the_head_is_tied_to_the_embedding():
    params = random_params(TINY)
    assert params["tokens"]["embedding"].shape == (24, 12)
    unused = 23
    seen = TOKENS % unused
    moved = jax.tree.map(jnp.array, params)
    moved["tokens"]["embedding"] = moved["tokens"]["embedding"].at[unused].add(1.0)
    a, b = (logits(p, seen) for p in (params, moved))
    assert np.allclose(a[..., :unused], b[..., :unused])
    assert not np.allclose(a[..., unused], b[..., unused], atol=1e-2)


def test_init_follows_the_key():
    check_init(TINY)


def test_bfloat16_and_remat():
    check_bfloat16(TINY, random_params(TINY), TOKENS)
    check_remat(TINY, random_params(TINY), TOKENS)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="texts have 17 tokens, this model has 16 positions"):
        logits(random_params(TINY), jnp.zeros((1, 17), jnp.int32))
    with pytest.raises(ValueError, match="5 heads do not divide a width of 12"):
        shapes(TINY.clone(heads=5))
