import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemosyne.memory.features import (
    best_rho,
    exact,
    favor_plus_plus,
    hyperbolic,
    hyperbolic_plus_plus,
    independent_projections,
    mean_square_sum,
    orthogonal_projections,
    positive,
    relu,
    square,
)
from tests.helpers import exact_kernel

DRAWS = {"orthogonal": orthogonal_projections, "independent": independent_projections}
SOFTMAX_MAPS = {
    "FAVOR+": positive,
    "hyperbolic": hyperbolic,
    "FAVOR++": favor_plus_plus(0.4),
    "hyperbolic FAVOR++": hyperbolic_plus_plus(0.4),
}
MAPS = {**SOFTMAX_MAPS, "ReLU": relu, "square": square}


def estimates(phi, draw, x, y, r, repeats):
    def one(key):
        return phi.kernel(x, y, draw(key, r, x.shape[0]))

    return np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(0), repeats)), np.float64)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("name", SOFTMAX_MAPS)
def test_unbiased_within_four_standard_errors(name, draw):
    x, y = 0.5 * jax.random.normal(jax.random.key(1), (2, 6)) / 6**0.5 * 2
    values = estimates(MAPS[name], DRAWS[draw], x, y, r=6, repeats=4000)
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - exact_kernel(x, y)) < 4 * error


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(
    ("phi", "kernel"),
    [
        (square, lambda x, y: (x @ x) * (y @ y) + 2 * (x @ y) ** 2),
        (relu, lambda x, y: arc_cosine(x, y)),
    ],
    ids=["square", "ReLU"],
)
def test_other_maps_estimate_the_kernels_their_docstrings_name(phi, kernel, draw):
    x, y = jax.random.normal(jax.random.key(1), (2, 5))
    values = estimates(phi, DRAWS[draw], x, y, r=5, repeats=4000)
    wanted = kernel(np.asarray(x, np.float64), np.asarray(y, np.float64))
    assert abs(values.mean() - wanted) < 4 * values.std() / len(values) ** 0.5


def arc_cosine(x, y):
    """E relu(ωᵀx) relu(ωᵀy) (Cho and Saul 2009, order one)."""
    sizes = np.linalg.norm(x) * np.linalg.norm(y)
    angle = np.arccos(x @ y / sizes)
    return sizes * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)


def variances(x, y, rho):
    """The variance of one projection's estimate, as App. A.1 and its hyperbolic extension give it."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, s, k = len(x), np.sum((x + y) ** 2), exact_kernel(x, y)
    a = (1 / rho - 1) / 8
    b2, d4 = 1 + 4 * a, (1 + 4 * a) ** n
    shared = d4 * np.exp(-x @ x - y @ y) * (1 + 8 * a) ** (-n / 2)
    grown = np.exp(2 * b2 * s / (1 + 8 * a))
    return {
        "FAVOR+": np.exp(s) * k**2 * (1 - np.exp(-s)),
        "hyperbolic": np.exp(s) * k**2 * (1 - np.exp(-s)) ** 2 / 2,
        "FAVOR++": shared * grown - k**2,
        "hyperbolic FAVOR++": shared * (grown + 1) / 2 - k**2,
    }


@pytest.mark.parametrize("name", SOFTMAX_MAPS)
def test_variances_are_the_closed_forms(name):
    x, y, r = jnp.array([0.4, -0.2, 0.1]), jnp.array([0.2, 0.3, -0.1]), 8
    values = estimates(MAPS[name], independent_projections, x, y, r, repeats=200_000)
    assert np.isclose(values.var(), variances(x, y, 0.4)[name] / r, rtol=0.05)


def test_block_orthogonal_rows_lower_the_variance():
    x, y = 0.3 * jax.random.normal(jax.random.key(3), (2, 8))
    ours, plain = (estimates(positive, DRAWS[d], x, y, 8, 20_000).var() for d in ("orthogonal", "independent"))
    assert ours < 0.97 * plain


@pytest.mark.parametrize(("s", "n"), [(0.1, 2), (1.0, 4), (5.0, 4), (20.0, 16)])
def test_best_rho_minimises_the_variance(s, n):
    x = np.full(n, (s / n) ** 0.5 / 2)
    grid = np.linspace(0.002, 0.998, 499)
    best = grid[np.argmin([variances(x, x, rho)["FAVOR++"] for rho in grid])]
    assert abs(float(best_rho(s, n)) - best) < 0.004


def test_best_rho_is_eq_11_and_has_limits():
    s, n = np.array([0.5, 3.0, 50.0], np.float64), 6
    written = (np.sqrt((2 * s + n) ** 2 + 8 * n * s) - 2 * s - n) / (4 * s)
    assert np.allclose(best_rho(jnp.array(s, jnp.float32), n), written, rtol=1e-5)
    assert np.isclose(best_rho(0.0, n), 1.0)
    assert best_rho(0.0, n) < 1
    favor_plus_plus(best_rho(0.0, n))  # is accepted
    assert 0 < best_rho(1e12, n) < 1e-3
    assert jnp.isfinite(jax.grad(lambda s: best_rho(s, n))(0.0))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        best_rho(1.0, 0)


def test_mean_square_sum_is_the_mean_over_pairs():
    q, k = jax.random.normal(jax.random.key(0), (5, 3)), jax.random.normal(jax.random.key(1), (7, 3))
    pairs = np.sum((np.asarray(q)[:, None] + np.asarray(k)[None]) ** 2, -1)
    assert np.isclose(mean_square_sum(q, k), pairs.mean(), rtol=1e-5)


def test_favor_plus_plus_is_favor_plus_at_rho_one():
    z, omega = jax.random.normal(jax.random.key(0), (3, 4)), orthogonal_projections(jax.random.key(1), 8, 4)
    assert np.allclose(favor_plus_plus(1 - 1e-7).features(z, omega), positive.features(z, omega), rtol=1e-4)


def test_favor_plus_plus_is_bounded_in_omega():
    """φ_i ≤ r^{-1/2} D exp(‖z‖² (1/(4Â) + ½)) whatever ω is, with equality at ω = Bz/2Â; FAVOR+ is not."""
    rho, z = 0.4, jnp.array([0.6, -0.8])
    a = (1 / rho - 1) / 8
    bound = (1 + 4 * a) ** 0.5 * np.exp(1 / (4 * a) + 0.5)  # ‖z‖ = 1, N = 2, r = 1
    peak = (1 + 4 * a) ** 0.5 / (2 * a)
    along = [float(favor_plus_plus(rho).features(z, t * z[None])[0]) for t in (0.5 * peak, peak, 2 * peak, 100.0)]
    assert np.isclose(along[1], bound, rtol=1e-4)
    assert max(along) == along[1]
    assert positive.features(z, 50 * z[None])[0] > 100 * bound


@pytest.mark.parametrize("name", MAPS)
def test_log_features_are_logarithms(name):
    z, omega = jax.random.normal(jax.random.key(0), (3, 4)), orthogonal_projections(jax.random.key(1), 8, 4)
    assert np.allclose(jnp.exp(MAPS[name].log_features(z, omega)), MAPS[name].features(z, omega), rtol=1e-4)


def test_exact_kernel_ignores_projections_and_is_the_exponential():
    x, y = jax.random.normal(jax.random.key(0), (2, 5, 4))
    assert np.allclose(exact(x, y, jnp.ones((3, 4))), exact_kernel(x, y), rtol=1e-5)
    assert exact(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).dtype == jnp.float32


def test_variance_falls_as_one_over_r():
    x, y = jnp.array([0.3, -0.2]), jnp.array([0.1, 0.4])
    rs = np.array([2, 4, 8, 16, 32])
    variances = [estimates(positive, independent_projections, x, y, int(r), 20_000).var() for r in rs]
    slope = np.polyfit(np.log(rs), np.log(variances), 1)[0]
    assert abs(slope + 1) < 0.1


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_projections_are_orthogonal_within_blocks(r, n, seed):
    omega = np.asarray(orthogonal_projections(jax.random.key(seed), r, n))
    assert omega.shape == (r, n)
    for start in range(0, r, n):
        block = omega[start : start + n]
        gram = block @ block.T
        off = gram - np.diag(np.diag(gram))
        assert np.abs(off).max() <= 1e-4 * max(1.0, np.abs(gram).max())


def test_projections_have_normal_marginals():
    omega = np.asarray(jax.vmap(lambda k: orthogonal_projections(k, 4, 4))(jax.random.split(jax.random.key(0), 5000)))
    values = omega.reshape(-1)
    assert abs(values.mean()) < 4 / len(values) ** 0.5
    assert abs(values.var() - 1) < 4 * (2 / len(values)) ** 0.5
    assert abs((values**4).mean() - 3) < 0.2


@pytest.mark.parametrize("name", SOFTMAX_MAPS)
def test_a_query_is_features_times_a_number(name):
    phi, z = MAPS[name], jax.random.normal(jax.random.key(0), (5, 8))
    omega = orthogonal_projections(jax.random.key(1), 12, 8)
    ratio = np.asarray(phi.query(z, omega) / phi.features(z, omega))
    assert (ratio > 0).all()
    assert np.allclose(ratio, ratio[:, :1], rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("name", MAPS)
def test_features_and_gradients_stay_finite(name, size):
    z = jnp.ones(16) * size / 4
    omega = orthogonal_projections(jax.random.key(0), 16, 16)
    for f in (MAPS[name].features, MAPS[name].query):
        value, gradient = jax.value_and_grad(lambda z, f=f: f(z, omega).sum())(z)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", MAPS)
def test_bfloat16_input_is_accumulated_in_float32(name):
    z = (0.3 * jax.random.normal(jax.random.key(1), (8,))).astype(jnp.bfloat16)
    omega = orthogonal_projections(jax.random.key(0), 8, 8)
    narrow, wide = MAPS[name].features(z, omega), MAPS[name].features(z.astype(jnp.float32), omega)
    assert narrow.dtype == jnp.float32
    assert (narrow == wide).all()
    assert MAPS[name].features(z, omega.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("r", "n"), [(0, 4), (4, 0), (-1, 4)])
def test_impossible_sizes_are_refused(r, n, draw):
    with pytest.raises(ValueError, match=f"r ≥ 1 rows of dimension n ≥ 1, got r = {r}, n = {n}"):
        DRAWS[draw](jax.random.key(0), r, n)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("z", [jnp.ones(3), jnp.ones((2, 5)), jnp.float32(1.0)], ids=["3", "2x5", "scalar"])
def test_vectors_that_do_not_fit_the_projections_are_refused(name, z):
    omega = orthogonal_projections(jax.random.key(0), 6, 4)
    for f in (MAPS[name].features, MAPS[name].query, MAPS[name].log_features):
        with pytest.raises(ValueError, match=r"do not fit projections of shape \(6, 4\)"):
            f(z, omega)


@pytest.mark.parametrize("rho", [0.0, 1e-300, 1.0, -0.2, 1.5, float("nan"), "0.5", jnp.ones(2)])
@pytest.mark.parametrize("family", [favor_plus_plus, hyperbolic_plus_plus])
def test_a_rho_outside_the_open_unit_interval_is_refused(family, rho):
    with pytest.raises((ValueError, TypeError), match=r"rho|ρ"):
        family(rho)
