"""The references against closed forms, in float64 where there are any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import Polynomial

from mnemosyne.memformers import Tokens, draw, methods, skewed

D, N = 5, 20
SKEWED, ISOTROPIC = (1.0, 1.0, 0.5, 0.25, 1.0), (1.0,) * D


def tokens_of(seed=0, stretch=SKEWED, n=N):
    return draw(skewed(jnp.asarray(stretch), jax.random.key(seed)), n, jax.random.key(seed + 100)).tokens


def in_float64(tokens):
    x, y = np.asarray(tokens.x, float), np.asarray(tokens.y, float)
    known = x[:, :-1]
    n = known.shape[1]
    return known @ known.T / n, known @ y[:-1] / n, x[:, -1]


def left_by(p, tokens):
    """⟨w_k, x⟩ where w − w_k = p(S) w."""
    S, b, query = in_float64(tokens)
    values, v = np.linalg.eigh(S)
    w = np.linalg.solve(S, b)
    return query @ (w - v @ (p(values) * (v.T @ w)))


# First-order methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_first_order_method_leaves_its_polynomial(seed):
    gains = jnp.tril(jax.random.uniform(jax.random.key(seed), (4, 4), minval=-0.2, maxval=0.8))
    answers = methods.first_order(tokens_of(seed), gains)
    expected = [left_by(p, tokens_of(seed)) for p in methods.residuals(gains)]
    np.testing.assert_allclose(answers, expected, atol=1e-5 * max(map(abs, expected)) + 1e-5)


def test_momentum_is_the_heavy_ball():
    rng = np.random.default_rng(0)
    alpha, gamma = rng.uniform(0.2, 1, 5), rng.uniform(0, 0.8, 5)
    S, b, query = in_float64(tokens_of())
    w, r, expected = np.zeros(D), np.zeros(D), [0.0]
    for a, g in zip(alpha, gamma, strict=True):
        r = S @ w - b + g * r
        w = w - a * r
        expected.append(query @ w)
    np.testing.assert_allclose(methods.first_order(tokens_of(), methods.momentum(alpha, gamma)), expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_chebyshev_has_the_smallest_maximum(k):
    """1 / T_k((high + low) / (high − low))."""
    low, high = 0.1, 2.0
    (p,) = methods.residuals(methods.chebyshev(low, high, k))[-1:]
    at = np.linspace(low, high, 2_001)
    bound = 1 / np.cosh(k * np.arccosh((high + low) / (high - low)))
    np.testing.assert_allclose(np.abs(p(at)).max(), bound, rtol=1e-5)


@pytest.mark.bad_input
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_chebyshev_refuses_a_spectrum_that_is_none(low, high):
    with pytest.raises(ValueError, match="0 < low < high"):
        methods.chebyshev(low, high, 3)


def test_no_steps_answer_zero():
    for answers in (
        methods.first_order(tokens_of(), methods.descent([])),
        methods.first_order(tokens_of(), methods.momentum([], [])),
        methods.first_order(tokens_of(), methods.chebyshev(0.1, 1.0, 0)),
        methods.conjugate_gradients(tokens_of(), 0),
        methods.newton_schulz(tokens_of(), 0),
        methods.gd_plus_plus(tokens_of(), [], []),
    ):
        assert answers.tolist() == [0.0]


# The best polynomial --------------------------------------------------------------------------------------------------


def test_one_best_step_has_its_closed_form():
    """Isotropic: step n / (n + d + 1), loss d (d + 1) / (n + d + 1), by second moments of Wishart's distribution."""
    of = methods.spectra(skewed(jnp.ones(D), jax.random.key(0)), N, 40_000, seed=0)
    _, best = methods.best_polynomials(of, 1)
    assert np.isclose(1 / best.roots()[0], N / (N + D + 1), rtol=0.01)
    assert np.isclose(methods.expected_loss(best, of), D * (D + 1) / (N + D + 1), rtol=0.01)


@pytest.mark.parametrize("stretch", [SKEWED, ISOTROPIC])
def test_the_best_polynomial_is_least_squares_over_drawn_questions(stretch):
    """On the same prompts, features ⟨S^j b, x⟩ against ⟨w, x⟩: brute force, which is as good to 0.3%."""
    distribution, k = skewed(jnp.asarray(stretch), jax.random.key(0)), 3
    of = methods.spectra(distribution, N, 4_000, seed=1)
    best = methods.best_polynomials(of, k)[-1]
    rng = np.random.default_rng(0)
    for _ in range(200):
        moved = best + Polynomial([0, *rng.normal(0, 0.05, k)])
        assert methods.expected_loss(moved, of) >= methods.expected_loss(best, of) * (1 - 1e-12)
    root, task = (np.asarray(m, float) for m in distribution)
    x = np.random.default_rng(1).standard_normal((4_000, N, D)) @ root.T
    S = np.einsum("Nni,Nnj->Nij", x, x) / N
    rest, features, target = np.random.default_rng(2), [], []
    for _ in range(50):  # questions of each prompt
        w, query = rest.standard_normal((4_000, D)) @ task.T, rest.standard_normal((4_000, D)) @ root.T
        power, row = np.einsum("Nij,Nj->Ni", S, w), []
        for _ in range(k):
            row.append((power * query).sum(1))
            power = np.einsum("Nij,Nj->Ni", S, power)
        features.append(np.stack(row, 1))
        target.append((w * query).sum(1))
    features, target = np.concatenate(features), np.concatenate(target)
    c = np.linalg.lstsq(features, target, rcond=None)[0]
    fitted = methods.expected_loss(Polynomial([1, *-c]), of)
    assert methods.expected_loss(best, of) <= fitted <= 1.003 * methods.expected_loss(best, of)


@pytest.mark.parametrize("stretch", [SKEWED, ISOTROPIC, tuple(s**0.5 for s in SKEWED)])
def test_the_best_method_is_gradient_descent_with_other_steps(stretch):
    """Its roots are real and positive, so that a memory adds nothing to what a number of layers can reach."""
    of = methods.spectra(skewed(jnp.asarray(stretch), jax.random.key(0)), N, 10_000, seed=0)
    losses = [methods.expected_loss(p, of) for p in methods.best_polynomials(of, 8)]
    assert (np.diff(losses) < 0).all()
    for p in methods.best_polynomials(of, 8)[1:]:
        assert np.isclose(p(0.0), 1.0)
        assert np.abs(p.roots().imag).max() < 1e-6
        assert p.roots().real.min() > 0
        same = methods.residuals(methods.descent(1 / p.roots().real))[-1]
        assert np.isclose(methods.expected_loss(same, of), methods.expected_loss(p, of), rtol=1e-3)


# Methods that adapt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_conjugate_gradients_are_best_in_the_krylov_space(seed):
    """The smallest (w − w_k)ᵀ S (w − w_k) over span{b, S b, … S^{k−1} b}."""
    tokens = tokens_of(seed)
    S, b, query = in_float64(tokens)
    w, answers = np.linalg.solve(S, b), methods.conjugate_gradients(tokens, D)
    for k in range(1, D + 1):
        K, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(S, j) @ b for j in range(k)], 1))
        best = K @ np.linalg.solve(K.T @ S @ K, K.T @ b)
        np.testing.assert_allclose(answers[k], query @ best, atol=1e-4 * np.abs(query @ w) + 1e-4)
    np.testing.assert_allclose(answers[D], methods.ridge(tokens), atol=1e-3)


def test_newton_schulz_doubles_the_degree():
    """p_k(λ) = (1 − λ² / (‖S‖₁ ‖S‖_∞))^(2^k)."""
    S, _, _ = in_float64(tokens_of())
    size = np.abs(S).sum(0).max() ** 2
    for k, answer in enumerate(methods.newton_schulz(tokens_of(), 4)[1:], start=1):
        np.testing.assert_allclose(answer, left_by(lambda x, k=k: (1 - x**2 / size) ** (2**k), tokens_of()), atol=1e-4)
    many = methods.newton_schulz(tokens_of(), 40)[-1]
    np.testing.assert_allclose(many, methods.ridge(tokens_of()), atol=1e-3)


def test_gd_plus_plus_without_a_shrink_is_gradient_descent():
    plain = methods.first_order(tokens_of(), methods.descent([0.7] * 3))
    np.testing.assert_allclose(methods.gd_plus_plus(tokens_of(), [0.7] * 3, [0.0] * 3), plain, atol=1e-5)


def test_the_second_step_of_gd_plus_plus_sees_the_changed_inputs():
    """p_2(λ) = (1 − ηλ)(1 − ηλ(1 − βλ)²)."""
    eta, beta = 0.7, 0.2
    answers = methods.gd_plus_plus(tokens_of(), [eta] * 2, [beta] * 2)
    p = lambda x: (1 - eta * x) * (1 - eta * x * (1 - beta * x) ** 2)
    np.testing.assert_allclose(answers[2], left_by(p, tokens_of()), atol=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 0.1, 2.0])
def test_ridge_is_its_closed_form(penalty):
    S, b, query = in_float64(tokens_of())
    expected = query @ np.linalg.solve(S + penalty * np.eye(D), b)
    np.testing.assert_allclose(methods.ridge(tokens_of(), penalty), expected, rtol=1e-3, atol=1e-4)


# Bad input ------------------------------------------------------------------------------------------------------------


def repeated(seed):
    """Twenty examples of which only three are different."""
    tokens = tokens_of(seed)
    take = jnp.arange(N) % 3
    return Tokens(jnp.c_[tokens.x[:, take], tokens.x[:, -1:]], jnp.append(tokens.y[take], 0.0))


@pytest.mark.bad_input
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [repeated, lambda seed: tokens_of(seed, n=3), lambda seed: tokens_of(seed, n=1)])
def test_where_examples_do_not_determine_w_answers_are_those_of_the_shortest(make, seed):
    tokens = make(seed)
    S, b, query = in_float64(tokens)
    expected = query @ np.linalg.pinv(S, rcond=1e-5) @ b
    np.testing.assert_allclose(methods.ridge(tokens), expected, rtol=1e-2, atol=1e-2)
    many = methods.conjugate_gradients(tokens, 12)
    assert jnp.isfinite(many).all()
    np.testing.assert_allclose(many[-1], expected, rtol=1e-2, atol=1e-2)
    assert jnp.isfinite(methods.newton_schulz(tokens, 12)).all()


@pytest.mark.bad_input
def test_a_prompt_of_zeros_is_answered_by_zero():
    tokens = Tokens(jnp.zeros((D, N + 1)), jnp.zeros(N + 1))
    for answers in (methods.conjugate_gradients(tokens, 4), methods.newton_schulz(tokens, 4), methods.ridge(tokens)):
        np.testing.assert_array_equal(answers, 0.0)


@pytest.mark.bad_input
@pytest.mark.parametrize("seed", range(3))
def test_a_condition_number_of_a_million_in_float32(seed):
    """Covariances 1 to 1e-6: the exact answer is out of float32's reach, and no method says it is not a number.

    Conjugate gradients fit the examples to a thousandth, a stable step descends, a step beyond 2/λ grows.
    """
    tokens = tokens_of(seed, stretch=(1.0, 0.3, 0.1, 0.01, 0.001))
    answers = methods.conjugate_gradients(tokens, 20)
    for found in (answers, methods.newton_schulz(tokens, 20), methods.ridge(tokens)):
        assert jnp.isfinite(found).all()
    S, _, _ = in_float64(tokens)
    assert np.linalg.cond(S) > 1e5
    eachs = [Tokens(tokens.x.at[:, -1].set(tokens.x[:, i]), tokens.y) for i in range(N)]
    fitted = jnp.stack([methods.conjugate_gradients(t, 20)[-1] for t in eachs])
    assert jnp.mean((fitted - tokens.y[:-1]) ** 2) < 2e-1 * jnp.mean(tokens.y[:-1] ** 2)
    top = float(np.linalg.eigvalsh(S)[-1])
    stable = methods.first_order(tokens, methods.descent([1.0 / top] * 40))
    wild = methods.first_order(tokens, methods.descent([4.0 / top] * 40))
    assert jnp.abs(stable).max() < 1e3 < jnp.abs(wild).max()
