import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.book.studies import trained_memory
from mnemosyne.memory.compact import cam
from mnemosyne.optimizer.paper import paper_rule
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.sizes import scale_by_tensor_rms
from mnemosyne.optimizer.transform import from_rule
from mnemosyne.tasks.data.images import load
from tests.helpers import run_memory, sequence
from tests.metatrain.test_truncated import quadratic

CONFIG = Config(hidden=4, projections=4, encoders=2, feedforward=6)


def test_watching_a_memory_does_not_change_it():
    plain = cam(projections=4)
    seen = trained_memory.watched(plain)
    theta, x = plain.init(jax.random.key(0), 3, 3, 2), sequence(0, 5, 3)
    _, wanted = run_memory(plain, theta, plain.state((), 3, 3), x, x)
    (_, address), outs = run_memory(seen, theta, seen.state((), 3, 3), x, x)
    assert np.array_equal(outs, wanted)
    assert np.array_equal(address, x[-1])
    assert np.allclose(seen.window(theta, seen.state((), 3, 3), x, x), wanted, rtol=1e-4, atol=1e-5)


def test_weights_are_those_of_the_read():
    """Σ_i w_ti c_i, with W_V applied, is what the memory answers at t."""
    memory = cam(projections=4, discount=0.3)
    theta, address, content = memory.init(jax.random.key(0), 3, 2, 2), sequence(0, 6, 5, 3), sequence(1, 6, 5, 2)
    _, outs = run_memory(memory, theta, memory.state((5,), 3, 2), address, content)
    w = trained_memory.attention_weights(theta, address, 0.3)
    assert w.shape == (5, 6, 6)
    assert np.allclose(w.sum(-1), 1.0, rtol=1e-5)
    assert not np.triu(np.asarray(w)[0], 1).any()
    assert np.allclose(jnp.einsum("ptu,upc->tpc", w, content) @ theta["value"], outs, rtol=1e-4, atol=1e-5)


def test_a_memory_without_preferences_looks_at_age_alone():
    t, p = 12, 3
    g = sequence(0, t, p)
    alone = jnp.broadcast_to(trained_memory.age_weights(t, 0.1)[None], (p, t, t))
    assert np.allclose(alone[0, 5, :6] / alone[0, 5, 5], np.exp(-0.1 * np.arange(5, -1, -1)), rtol=1e-5)
    found = trained_memory.preferences(alone, g, 0.1)
    assert found["distance from age alone"] == pytest.approx(0.0, abs=1e-6)
    for name in ("same sign", "size", "recent"):
        assert found[name] == pytest.approx(found[f"{name}, age alone"], rel=1e-5)
    newest = jnp.broadcast_to(jnp.eye(t)[None], (p, t, t))
    found = trained_memory.preferences(newest, g, 0.1)
    assert (found["same sign"], found["recent"], found["size"]) == pytest.approx((1.0, 1.0, 0.0))


def test_a_followed_run_is_the_rules_own():
    """Gradients and addresses are those of the optimizer without anyone watching."""
    task = quadratic("bowl", 3)
    task = task._replace(
        init=lambda key: {"a": jax.random.normal(key, (2,)), "b": jnp.zeros(1)},
        loss=lambda p, batch: jnp.mean((jnp.concatenate([p["a"], p["b"]]) - batch) ** 2),
    )
    rule = paper_rule(CONFIG)
    theta = rule.init(jax.random.key(0))
    trace = trained_memory.follow(task, theta, CONFIG, steps=4)(1)
    assert trace.gradients.shape == (4, 3)
    assert [a.shape for a in trace.addresses] == [(4, 3, 4)] * 2
    init_key, batch_key = jax.random.split(jax.random.key(1))
    tx, params = from_rule(theta, rule, scale_by_tensor_rms()), task.init(init_key)
    g = jax.grad(task.loss)(params, task.batch(task.data, jax.random.fold_in(batch_key, 0)))
    assert np.allclose(trace.gradients[0], np.concatenate([g["a"], g["b"]]), rtol=1e-5)
    assert tx is not None


def test_variances_are_near_the_formula_and_hyperbolic_below_positive():
    memory = cam(projections=4)
    theta = memory.init(jax.random.key(0), 4, 4, 4)
    theta = {**theta, "query": jax.tree.map(lambda a: 0.3 * a, theta["query"]), "key": theta["query"]}
    rows = trained_memory.estimator_variances(
        theta, 0.5 * sequence(0, 6, 5, 4), m=2, pairs=6, seeds=[0, 1], draws=4_000
    )
    assert len(rows) == 3 * 2 * 6
    mean = rows.groupby("map")[["measured", "i.i.d."]].mean()
    assert np.allclose(mean["measured"]["hyperbolic"], mean["i.i.d."]["hyperbolic"], rtol=0.3)
    assert mean["i.i.d."]["hyperbolic"] > 0
    assert (rows.s >= 0).all()


def test_studies_of_a_run_name_encoder_and_seed(monkeypatch):
    """Rows are those of the encoder's own memory and addresses."""
    theta = paper_rule(CONFIG).init(jax.random.key(0))
    trace = trained_memory.Trace(sequence(0, 6, 3), [sequence(1, 6, 3, 4), sequence(2, 6, 3, 4)])
    monkeypatch.setattr(trained_memory, "follow", lambda task, theta, config, steps: lambda seed: trace)
    images = load("digits")
    setting = {"pairs": 4, "m": 2, "seeds": [0], "draws": 50}
    rows = trained_memory.variances_along(images, 1, 6, 0, theta, CONFIG, (1, 2), **setting)
    second = trained_memory.estimator_variances(theta["encoders"][1]["memory"], trace.addresses[1], **setting)
    assert rows[rows.encoder == 2].drop(columns="encoder").equals(second)
    assert set(rows.encoder) == {1, 2}
    found = trained_memory.preferences_along(images, 1, 6, (3, 4), theta, CONFIG)
    assert list(zip(found.seed, found.encoder, strict=True)) == [(3, 1), (3, 2), (4, 1), (4, 2)]
    weights = trained_memory.attention_weights(theta["encoders"][0]["memory"], trace.addresses[0], CONFIG.discount)
    assert found["same sign"][0] == trained_memory.preferences(weights, trace.gradients, CONFIG.discount)["same sign"]
