"""Layers are what their formulas say; constructed weights are the methods of linear algebra, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.memformers import Memformer, Tokens, draw, init, layers, methods, predict, skewed

D, N = 5, 20
SKEWED, ISOTROPIC = (1.0, 1.0, 0.5, 0.25, 1.0), (1.0,) * D
KINDS = {"steps": layers.steps(), "preconditioned": layers.preconditioned(), "GD++": layers.gdpp()}
MEMORIES = {
    "none": layers.none(),
    "cgd_like": layers.cgd_like(),
    "lfom": layers.lfom(),
    "present": layers.present(),
    "lfom_by_layer": layers.lfom_by_layer(),
}


def a_prompt(seed=0, stretch=SKEWED, n=N):
    return draw(skewed(jnp.asarray(stretch), jax.random.key(seed)), n, jax.random.key(seed + 100))


def matrix(tokens):
    return jnp.concatenate([tokens.x, tokens.y[None]])


def naive(P, Q, Z):
    """P Z M (Zᵀ Q Z), as the paper writes it."""
    M = jnp.eye(Z.shape[1]).at[-1, -1].set(0.0)
    return P @ Z @ M @ (Z.T @ Q @ Z)


def close(ours, theirs):
    """Within 1e-5 of the largest."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(np.abs(theirs).max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [None, 3])
def test_what_a_kind_writes_is_linear_attention_with_its_matrices(kind, number):
    of = KINDS[kind] if number is None else layers.heads(KINDS[kind], number)
    weights = jax.tree.map(lambda w: 50 * w, of.init(jax.random.key(1), D))
    tokens, (P, Q) = a_prompt().tokens, of.matrices(weights, D)
    pairs = zip(*(m.reshape(-1, D + 1, D + 1) for m in (P, Q)), strict=True)
    each = [naive(p, q, matrix(tokens)) for p, q in pairs]
    written = of.write(weights, tokens)
    found = matrix(Tokens(jnp.zeros_like(tokens.x) if written.x is None else written.x, written.y))
    close(found, sum(each))
    close(layers.attention(P, Q, matrix(tokens)).reshape(-1, D + 1, N + 1).sum(0), sum(each))


@pytest.mark.parametrize("stretch", [SKEWED, ISOTROPIC])
@pytest.mark.parametrize("seed", range(5))
def test_constructed_weights_are_gradient_descent_momentum_and_preconditioned_descent(stretch, seed):
    """To 1e-5, after every layer."""
    tokens, k = a_prompt(seed, stretch).tokens, 6
    rng = np.random.default_rng(seed)
    rates, gamma = rng.uniform(0.2, 1.2, k).astype("f"), rng.uniform(0.0, 0.8, k).astype("f")
    descent = {"attention": {"a": jnp.asarray(rates)}, "memory": {}}
    close(
        predict(Memformer(layers.steps(), layers.none(), k), descent, tokens),
        methods.first_order(tokens, methods.descent(rates)),
    )
    momentum = {"attention": {"a": jnp.ones(k)}, "memory": {"alpha": jnp.asarray(rates), "gamma": jnp.asarray(gamma)}}
    close(
        predict(Memformer(layers.steps(), layers.cgd_like(), k), momentum, tokens),
        methods.first_order(tokens, methods.momentum(rates, gamma)),
    )
    A = np.eye(D, dtype="f") + 0.1 * rng.standard_normal((k, D, D)).astype("f")
    w, known, target = np.zeros(D), np.asarray(tokens.x[:, :-1], float), np.asarray(tokens.y[:-1], float)
    expected = [0.0]
    for a in A:
        w = w - a.T @ known @ (known.T @ w - target) / N
        expected.append(w @ np.asarray(tokens.x[:, -1], float))
    model = Memformer(layers.preconditioned(), layers.none(), k)
    close(predict(model, {"attention": {"A": jnp.asarray(A)}, "memory": {}}, tokens), np.array(expected))


@pytest.mark.parametrize("seed", range(3))
def test_any_linear_first_order_method_is_a_combination_of_registers(seed):
    tokens, k = a_prompt(seed).tokens, 5
    gains = jnp.tril(jax.random.uniform(jax.random.key(seed), (k, k), minval=-0.3, maxval=0.6))
    weights = {"attention": {"a": jnp.ones(k)}, "memory": {"Gamma": gains}}
    model = Memformer(layers.steps(), layers.lfom_by_layer(), k)
    close(predict(model, weights, tokens), methods.first_order(tokens, gains))


def test_constructed_weights_are_gd_plus_plus():
    tokens, rate, shrink, k = a_prompt().tokens, 0.8, 0.3, 4
    eye = jnp.broadcast_to(jnp.eye(D), (k, D, D))
    weights = {"attention": {"A": rate * eye, "B": shrink / rate * eye}, "memory": {}}
    model = Memformer(layers.gdpp(), layers.none(), k)
    close(predict(model, weights, tokens), methods.gd_plus_plus(tokens, [rate] * k, [shrink] * k))


@pytest.mark.parametrize("kind", KINDS)
def test_lfom_adds_every_register_with_its_own_gain_in_all_layers(kind):
    model, tokens = Memformer(KINDS[kind], layers.lfom(), 3), a_prompt().tokens
    weights = init(model, jax.random.key(0), d=D, examples=N)
    weights = jax.tree.map(lambda w: w + 0.3 * jax.random.normal(jax.random.key(w.size), w.shape), weights)
    Z, R, gain = matrix(tokens), [], weights["memory"]["Gamma"]
    full = [matrix(Tokens(jnp.ones((D, N + 1)) if gain.x is None else gain.x[j], gain.y[j])) for j in range(3)]
    for i in range(3):
        P, Q = model.attention.matrices(jax.tree.map(lambda w, i=i: w[i], weights["attention"]), D)
        R.append(naive(P, Q, Z))
        Z = Z + sum(g * r for g, r in zip(full, R, strict=False)) / N
        close(matrix(layers.forward(model, weights, tokens)[i + 1]), Z)


def test_without_the_past_lfom_is_present():
    tokens = a_prompt().tokens
    one = {m: Memformer(layers.preconditioned(), MEMORIES[m], 1) for m in ("lfom", "present")}
    weights = init(one["lfom"], jax.random.key(0), d=D, examples=N)
    np.testing.assert_array_equal(predict(one["lfom"], weights, tokens), predict(one["present"], weights, tokens))
    two = [Memformer(layers.preconditioned(), MEMORIES[m], 2) for m in ("lfom", "present")]
    weights = init(two[0], jax.random.key(0), d=D, examples=N)
    past, without = (predict(model, weights, tokens)[-1] for model in two)
    assert abs(past - without) > 1e-6
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, init(two[1], jax.random.key(0), d=D, examples=N))


@pytest.mark.parametrize("kind", ["steps", "preconditioned"])
def test_heads_that_write_to_y_alone_are_one_head_with_the_sum(kind):
    several, tokens = layers.heads(KINDS[kind], 5), a_prompt().tokens
    weights = jax.tree.map(lambda w: 20 * w, several.init(jax.random.key(0), D))
    summed = jax.tree.map(lambda w: w.sum(0), weights)
    close(several.write(weights, tokens).y, KINDS[kind].write(summed, tokens).y)


def test_heads_that_change_the_inputs_are_not():
    several, tokens = layers.heads(layers.gdpp(), 5), a_prompt().tokens
    weights = several.init(jax.random.key(0), D)
    one = layers.gdpp().write(jax.tree.map(lambda w: w.sum(0), weights), tokens).x
    assert jnp.abs(several.write(weights, tokens).x - one).max() > 0.1 * jnp.abs(one).max()


def test_tied_layers_are_layers_with_the_same_weights():
    tokens = a_prompt().tokens
    model = Memformer(layers.steps(), layers.tied(layers.cgd_like()), 4, distinct=1)
    weights = {"attention": {"a": jnp.array([0.7])}, "memory": {"alpha": jnp.array([0.9]), "gamma": jnp.array([0.4])}}
    apart = jax.tree.map(lambda w: jnp.repeat(w, 4), weights)
    close(predict(model, weights, tokens), predict(Memformer(layers.steps(), layers.cgd_like(), 4), apart, tokens))
    like = init(model, jax.random.key(0), d=D, examples=N)
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, weights)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_single_prompts_side_by_side(kind, memory):
    model = Memformer(KINDS[kind], MEMORIES[memory], 3)
    weights = jax.tree.map(lambda w: w + 0.1, init(model, jax.random.key(0), d=D, examples=N))
    prompts = [a_prompt(seed).tokens for seed in range(3)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *prompts)
    answers = jax.vmap(lambda tokens: predict(model, weights, tokens))(together)
    for ours, tokens in zip(answers, prompts, strict=True):
        np.testing.assert_allclose(ours, predict(model, weights, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_query_changes_no_other_token(memory):
    model, tokens = Memformer(layers.gdpp(), MEMORIES[memory], 3), a_prompt().tokens
    weights = jax.tree.map(lambda w: w + 0.1, init(model, jax.random.key(0), d=D, examples=N))
    other = Tokens(tokens.x.at[:, -1].set(7.0), tokens.y)
    for ours, theirs in zip(*(layers.forward(model, weights, t) for t in (tokens, other)), strict=True):
        np.testing.assert_allclose(ours.x[:, :-1], theirs.x[:, :-1], rtol=1e-6)
        np.testing.assert_allclose(ours.y[:-1], theirs.y[:-1], rtol=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize("memory", MEMORIES)
def test_without_layers_the_answer_is_zero(memory):
    model = Memformer(layers.preconditioned(), MEMORIES[memory], 0)
    weights = init(model, jax.random.key(0), d=D, examples=N)
    assert predict(model, weights, a_prompt().tokens).tolist() == [0.0]


@pytest.mark.bad_input
def test_sizes_that_make_no_sense_are_told():
    model = Memformer(layers.steps(), layers.none(), 2)
    for wrong, sizes in (
        (model._replace(layers=-1), {"d": D, "examples": N}),
        (model._replace(distinct=0), {"d": D, "examples": N}),
        (model, {"d": 0, "examples": N}),
        (model, {"d": D, "examples": 0}),
    ):
        with pytest.raises(ValueError, match="at least"):
            init(wrong, jax.random.key(0), **sizes)
    with pytest.raises(ValueError, match="at least 1 head, got 0"):
        layers.heads(layers.steps(), 0)


@pytest.mark.bad_input
@pytest.mark.parametrize("n", [1, 3])
def test_fewer_examples_than_inputs_leave_w_in_their_span(n):
    """The answer to a query at a right angle to all examples is zero, whatever the memory."""
    tokens = a_prompt(n=n).tokens
    q, _ = np.linalg.qr(np.asarray(tokens.x[:, :-1], float), mode="complete")
    tokens = Tokens(tokens.x.at[:, -1].set(q[:, -1].astype("f")), tokens.y)
    weights = {"attention": {"a": jnp.full(6, 0.5)}, "memory": {"alpha": jnp.ones(6), "gamma": jnp.full(6, 0.3)}}
    answers = predict(Memformer(layers.steps(), layers.cgd_like(), 6), weights, tokens)
    np.testing.assert_allclose(answers, 0.0, atol=1e-5)
