import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemosyne.features import MAPS, hyperbolic, independent_projections, orthogonal_projections, positive
from tests.helpers import exact_kernel

DRAWS = {"orthogonal": orthogonal_projections, "independent": independent_projections}


def estimates(phi, draw, x, y, r, repeats):
    def one(key):
        omega = draw(key, r, x.shape[0])
        return phi.features(x, omega) @ phi.features(y, omega)

    return np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(0), repeats)), np.float64)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("name", MAPS)
def test_unbiased_within_four_standard_errors(name, draw):
    x, y = 0.5 * jax.random.normal(jax.random.key(1), (2, 6)) / 6**0.5 * 2
    values = estimates(MAPS[name], DRAWS[draw], x, y, r=6, repeats=4000)
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - exact_kernel(x, y)) < 4 * error


def test_variances_are_the_closed_forms():
    """SPEC §1: (1/r) e^s K² (1 − e^{−s}) and (1/2r) e^s K² (1 − e^{−s})², s = ‖x+y‖²."""
    x, y, r = jnp.array([0.4, -0.2, 0.1]), jnp.array([0.2, 0.3, -0.1]), 8
    s, k = float(jnp.sum((x + y) ** 2)), exact_kernel(x, y)
    wanted = {
        "positive": np.exp(s) * k**2 * (1 - np.exp(-s)) / r,
        "hyperbolic": np.exp(s) * k**2 * (1 - np.exp(-s)) ** 2 / (2 * r),
    }
    for name, variance in wanted.items():
        values = estimates(MAPS[name], independent_projections, x, y, r, repeats=200_000)
        assert np.isclose(values.var(), variance, rtol=0.05), name


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


@pytest.mark.parametrize("name", MAPS)
def test_a_query_is_features_times_a_number(name):
    phi, z = MAPS[name], jax.random.normal(jax.random.key(0), (5, 8))
    omega = orthogonal_projections(jax.random.key(1), 12, 8)
    ratio = np.asarray(phi.query(z, omega) / phi.features(z, omega))
    assert (ratio > 0).all()
    assert np.allclose(ratio, ratio[:, :1], rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_features_and_gradients_stay_finite(size):
    z = jnp.ones(16) * size / 4
    omega = orthogonal_projections(jax.random.key(0), 16, 16)
    for f in (hyperbolic.features, hyperbolic.query, positive.features, positive.query):
        value, gradient = jax.value_and_grad(lambda z, f=f: f(z, omega).sum())(z)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


def test_bfloat16_input_is_accumulated_in_float32():
    z, omega = jnp.ones(8, jnp.bfloat16), orthogonal_projections(jax.random.key(0), 8, 8)
    assert hyperbolic.features(z, omega).dtype == jnp.float32


@pytest.mark.parametrize(("r", "n"), [(0, 4), (4, 0), (-1, 4)])
def test_impossible_sizes_are_refused(r, n):
    with pytest.raises(ValueError, match="r ≥ 1 rows of dimension n ≥ 1"):
        orthogonal_projections(jax.random.key(0), r, n)
