import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.tasks.models.checkpoints import T5_NAMES
from mnemosyne.tasks.models.t5 import T5, EncoderDecoder, buckets, shift_right
from mnemosyne.tasks.models.transformer import count, shapes
from tests.tasks.models import CLOSE, check_bfloat16, check_init, check_remat, fresh, golden, random_params

TINY = EncoderDecoder(layers=2, heads=3, head_dim=4, hidden=8, mlp_dim=12, vocabulary=24)
TOKENS, TARGETS = (jax.random.randint(jax.random.key(k), (2, n), 1, 24) for k, n in ((1, 7), (2, 5)))

# google/t5-v1_1-* and google/flan-t5-*
PUBLISHED = {
    "small": 76_961_152,
    "base": 247_577_856,
    "large": 783_150_080,
    "xl": 2_849_757_184,
    "xxl": 11_135_332_352,
}


@jax.jit
def logits(params, *inputs, **more):
    return TINY.apply({"params": params}, *inputs, **more)


def check_logits(module, params, arrays):
    tokens, targets, mask, target_mask, prompt = (
        jnp.asarray(arrays[name]) for name in ("tokens", "targets", "mask", "target_mask", "prompt")
    )
    apply = jax.jit(lambda *inputs: module.apply({"params": params}, tokens, targets, mask, *inputs))
    for key, given in (("logits", None), ("prompted", prompt)):
        # Filling stands at the decoder's end, so its mask makes no difference before it.
        for decoder_mask in (target_mask, None):
            got = apply(decoder_mask, given)[target_mask]
            assert np.allclose(got, arrays[key][arrays["target_mask"]], **CLOSE)
    assert not np.allclose(arrays["logits"], arrays["prompted"], atol=1e-2)


def test_logits_are_those_of_the_kept_checkpoint():
    check_logits(TINY, *golden("t5", TINY, T5_NAMES))


def test_logits_are_those_of_pytorch(tmp_path):
    module = EncoderDecoder(layers=3, heads=2, head_dim=8, hidden=16, mlp_dim=20, vocabulary=30)
    config = {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 3, "num_heads": 2}
    made = fresh("t5", module, T5_NAMES, tmp_path, seed=1, shard="20KB", **config)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    check_logits(module, *made)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_sizes_have_their_published_number_of_parameters(name):
    assert set(T5) == set(PUBLISHED)
    assert count(shapes(T5[name])) == PUBLISHED[name]


def test_thirty_soft_prompts_of_xxl_are_122880_numbers():
    xxl = T5["xxl"]
    assert (xxl.layers, xxl.heads, xxl.head_dim, xxl.mlp_dim, xxl.vocabulary) == (24, 64, 64, 10_240, 32_128)
    prompt = jax.ShapeDtypeStruct((30, xxl.hidden), jnp.float32)
    assert prompt.size == 122_880
    run = lambda params, prompt: xxl.apply({"params": params}, *xxl.example(), prompt=prompt)
    assert jax.eval_shape(run, shapes(xxl), prompt).shape == (1, 8, 32_128)


def test_buckets_are_those_of_the_public_code():
    _, arrays = golden("t5", TINY, T5_NAMES)
    for kind, bidirectional in (("both_ways", True), ("backwards", False)):
        table = buckets(301, 301, bidirectional)
        for distance in range(-300, 301):
            assert set(np.diagonal(table, distance)) == {arrays[kind][distance + 300]}


def test_buckets_tell_near_distances_apart_and_saturate():
    row = buckets(1, 400, bidirectional=True)[0]
    assert list(row[:9]) == [0, *range(17, 25)]
    assert (np.diff(row) >= 0).all()
    assert row.max() == 31
    assert len(set(row[128:])) == 1
    assert not buckets(1, 400, bidirectional=False).any()


def test_the_decoder_does_not_look_ahead():
    params = random_params(TINY)
    for place in range(TARGETS.shape[1]):
        changed = TARGETS.at[:, place].set((TARGETS[:, place] + 5) % 24)
        a, b = (logits(params, TOKENS, x) for x in (TARGETS, changed))
        assert np.allclose(a[:, :place], b[:, :place], atol=1e-5)
        assert not np.allclose(a[:, place:], b[:, place:], atol=1e-3)


def test_nothing_looks_at_filling():
    params, mask = random_params(TINY), (jnp.arange(10) < 7)[None].repeat(2, axis=0)
    short = logits(params, TOKENS, TARGETS)
    filled = jnp.pad(TOKENS, ((0, 0), (0, 3)), constant_values=3)
    assert np.allclose(logits(params, filled, TARGETS, mask), short, atol=1e-4)
    assert not np.allclose(logits(params, filled, TARGETS), short, atol=1e-3)
    longer = jnp.pad(TARGETS, ((0, 0), (0, 2)))
    assert np.allclose(logits(params, TOKENS, longer)[:, :5], short, atol=1e-4)


def test_a_prompt_of_embedded_tokens_is_those_tokens():
    params = random_params(TINY)
    prompt, mask = params["tokens"]["embedding"][TOKENS[0, :3]], jnp.ones((1, 4), bool)
    whole = logits(params, TOKENS[:1], TARGETS[:1])
    assert np.allclose(logits(params, TOKENS[:1, 3:], TARGETS[:1], prompt=prompt), whole, atol=1e-4)
    assert np.allclose(logits(params, TOKENS[:1, 3:], TARGETS[:1], mask, prompt=prompt), whole, atol=1e-4)
    gradient = jax.grad(lambda p: (logits(params, TOKENS, TARGETS, prompt=p) ** 2).sum())(prompt)
    assert gradient.shape == (3, 8)
    assert jnp.abs(gradient).min() > 0


def test_the_decoder_starts_from_the_start_token():
    assert shift_right(jnp.array([[5, 6, 7], [8, 1, 0]])).tolist() == [[0, 5, 6], [0, 8, 1]]


def test_scores_are_of_order_one_at_the_start():
    module = EncoderDecoder(layers=1, heads=4, head_dim=64, hidden=128, mlp_dim=64, vocabulary=50)
    params = jax.jit(lambda key: module.init(key, *module.example())["params"])(jax.random.key(0))
    params = params["encoder"]["layer_0"]["attention"]
    x = jax.random.normal(jax.random.key(1), (200, 128))
    query, key = ((x @ params[name]["kernel"]).reshape(200, 4, 64) for name in ("query", "key"))
    assert 0.5 < float(jnp.einsum("qhd,khd->hqk", query, key).std()) < 2.0


def test_init_follows_the_key():
    check_init(TINY)


def test_bfloat16_and_remat():
    check_bfloat16(TINY, random_params(TINY), TOKENS, TARGETS, prompt=jnp.ones((2, 8)))
    check_remat(TINY, random_params(TINY), TOKENS, TARGETS)


def test_bfloat16_parameters_stay_so():
    module, params = TINY.clone(dtype=jnp.bfloat16), jax.tree.map(jnp.bfloat16, random_params(TINY))
    out = jax.jit(module.apply)({"params": params}, TOKENS, TARGETS)
    assert np.allclose(out, logits(random_params(TINY), TOKENS, TARGETS), atol=0.3)


def test_a_prompt_of_another_width_is_refused():
    with pytest.raises(ValueError, match="vectors have 9 numbers, this model's have 8"):
        logits(random_params(TINY), TOKENS, TARGETS, prompt=jnp.zeros((2, 9)))
