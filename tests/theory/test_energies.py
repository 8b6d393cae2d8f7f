import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemosyne.memory import features
from mnemosyne.memory.cache import attention
from mnemosyne.memory.features import favor_plus_plus, hyperbolic, independent_projections, positive
from mnemosyne.theory import energies, monte_carlo
from tests import helpers


def signs(seed, *shape):
    return np.random.default_rng(seed).choice([-1.0, 1.0], shape)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_regular_energy_is_eq_6(m, n, seed):
    xi, beta = signs(seed, m, n), signs(seed + 1, 3, n)
    got = energies.regular(jnp.array(xi))(jnp.array(beta))
    assert np.allclose(-np.exp(np.asarray(got, np.float64)), [helpers.energy(b, xi) for b in beta], rtol=1e-4)


def test_regular_energy_does_not_overflow():
    xi = jnp.array(signs(0, 2, 784))
    assert np.isclose(energies.regular(xi)(xi[0]), 784.0, atol=1e-3)


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_restore_is_eq_7_at_every_coordinate(m, n, seed):
    xi, beta = signs(seed, m, n), signs(seed + 1, n)
    wanted = np.array([helpers.asynchronous_update(beta, xi, j) for j in range(n)])
    got = energies.restore(energies.regular(jnp.array(xi)), jnp.array(beta))
    assert (np.asarray(got)[wanted != 0] == wanted[wanted != 0]).all()


def test_a_tie_restores_nothing_and_moves_nothing():
    xi = jnp.array([[1.0, 1.0], [1.0, -1.0]])
    energy = energies.regular(xi)
    assert energies.restore(energy, xi[0]).tolist() == [1.0, 0.0]
    assert energies.capacity(xi) == 1
    assert (energies.descend(energy, xi[0], jax.random.key(0)) == xi[0]).all()


@given(st.integers(2, 6), st.integers(2, 7), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_margins_are_positive_where_bits_are_restored(m, n, seed):
    xi, beta = signs(seed, m, n), signs(seed + 1, n)
    last = energies.margins(xi[0], beta, xi[1:])[-1]
    restored = np.array([helpers.asynchronous_update(beta, xi, j) for j in range(n)]) == xi[0]
    clear = np.abs(last) > 1e-9
    assert ((last > 0) == restored)[clear].all()


def brute_force_capacity(xi, radius):
    """Def. 4.1 from the definition, for every number of memories in turn."""
    n = xi.shape[1]
    flips = energies.ball(n, radius)
    for m in range(1, len(xi) + 1):
        for pattern in xi[:m]:
            for beta in flips * pattern[None]:
                if any(helpers.asynchronous_update(beta, xi[:m], j) != pattern[j] for j in range(n)):
                    return m - 1
    return len(xi)


@pytest.mark.parametrize("radius", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_capacity_is_definition_4_1(radius, seed):
    xi = signs(seed, 12, 6)
    assert energies.capacity(xi, radius) == brute_force_capacity(xi, radius)


def test_the_ball_has_all_its_members_once():
    members = energies.ball(5, 2)
    assert members.shape == (1 + 5 + 10, 5)
    assert len(np.unique(members, axis=0)) == len(members)
    assert ((members < 0).sum(1) <= 2).all()


def test_first_failure_is_where_the_margin_vanishes():
    xi = signs(3, 300, 8)
    failed = energies.first_failure(xi[0], xi[0], xi[1:])
    assert failed is not None
    for m, fine in ((failed - 1, True), (failed, False)):
        energy = energies.regular(jnp.array(xi[:m]))
        assert bool((energies.restore(energy, jnp.array(xi[0])) == xi[0]).all()) is fine
    assert energies.first_failure(xi[0], xi[0], xi[1:2]) is None


@pytest.mark.parametrize("phi", [positive, hyperbolic, favor_plus_plus(0.3)], ids=["+", "cosh", "++"])
def test_compact_energy_is_eq_8(phi):
    xi, beta = jnp.array(signs(0, 4, 5)), jnp.array(signs(1, 3, 5))
    omega = independent_projections(jax.random.key(0), 7, 5)
    summed = jnp.sum(phi.features(xi, omega), axis=0)
    wanted = phi.features(beta, omega) @ summed
    got = energies.compact(energies.store(xi, omega, phi), omega, phi)(beta)
    assert np.allclose(jnp.exp(got), wanted, rtol=1e-4)


def test_storing_one_more_memory_is_one_logaddexp():
    xi, phi = jnp.array(signs(0, 5, 6)), favor_plus_plus(0.3)
    omega = independent_projections(jax.random.key(0), 9, 6)
    grown = jnp.logaddexp(energies.store(xi[:4], omega, phi), energies.store(xi[4:], omega, phi))
    assert np.allclose(grown, energies.store(xi, omega, phi), rtol=1e-5)


def test_many_projections_bring_the_compact_energy_to_the_regular_one():
    xi, phi = jnp.array(signs(0, 3, 4)), favor_plus_plus(0.2)
    omega = independent_projections(jax.random.key(0), 300_000, 4)
    beta = jnp.array(signs(1, 5, 4))
    compact = energies.compact(energies.store(xi, omega, phi), omega, phi)
    assert np.allclose(compact(beta), energies.regular(xi)(beta), atol=0.1)


def test_dynamics_go_downhill_and_repair_a_memory():
    xi = jnp.array(signs(0, 5, 32))
    energy = energies.regular(xi)
    beta = monte_carlo.corrupt(xi[2], jax.random.key(0), 6)
    assert int(jnp.sum(beta != xi[2])) == 6
    end = energies.descend(energy, beta, jax.random.key(1), sweeps=8)
    assert (end == xi[2]).all()
    assert energy(end) > energy(beta)


def test_hopfield_is_attention_without_its_matrices():
    """Eq. 5 with identity maps and the exact kernel, and the modern Hopfield network, are one."""
    n, m = 5, 6
    xi, beta = signs(0, m, n), signs(1, n)
    memory = attention(cache=m + 1)
    theta = monte_carlo.identity_maps(jnp.ones((1, n)))
    state = memory.state((), n, n)
    for x in xi:
        state, _ = memory.step(theta, state, jnp.array(x), jnp.array(x))
    _, out = memory.step(theta, state, jnp.array(beta), jnp.array(beta))  # the query is stored before it is asked
    wanted = energies.hopfield(jnp.array(beta), jnp.array(np.concatenate([xi, beta[None]])))
    assert np.allclose(out, wanted, rtol=1e-4, atol=1e-5)


def test_hebbian_energy_is_the_square_kernel():
    xi, beta = jnp.array(signs(0, 3, 6)), jnp.array(signs(1, 4, 6))
    assert np.allclose(jnp.exp(monte_carlo.hebbian(xi)(beta)), 0.5 * jnp.sum((beta @ xi.T) ** 2, -1) / 6, rtol=1e-4)


@given(st.integers(1, 5), st.integers(2, 6), st.floats(0.05, 0.9), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_variance_is_theorem_a_1_three_ways(m, n, rho, seed):
    xi, beta, i = signs(seed, m, n), signs(seed + 1, n), seed % n
    wanted = helpers.energy_change_variance(xi, beta, i, rho)
    for pair_sum in (None, energies.pair_sum_direct, energies.pair_sum_walsh):
        assert np.isclose(energies.energy_change_variance(xi, beta, i, rho, pair_sum=pair_sum), wanted, rtol=1e-6)
    assert np.isclose(energies.energy_change_variance(xi, beta, i, rho, r=7), wanted / 7, rtol=1e-6)


def test_variance_and_mean_are_those_of_draws():
    """Theorem A.1 against Monte Carlo at N = 4 and Â = ½, where tails are light enough."""
    xi, beta, i, rho, r = signs(0, 3, 4), signs(1, 4), 2, 0.2, 4
    phi, flipped = favor_plus_plus(rho), beta * np.where(np.arange(4) == i, -1, 1)

    def change(key):
        omega = independent_projections(key, r, 4)
        energy = energies.compact(energies.store(jnp.array(xi), omega, phi), omega, phi)
        here, there = jnp.exp(energy(jnp.array(np.stack([beta, flipped]))))
        return here - there

    values = np.asarray(jax.vmap(change)(jax.random.split(jax.random.key(0), 400_000)), np.float64)
    assert abs(values.mean() - energies.energy_change(xi, beta, i)) < 4 * values.std() / len(values) ** 0.5
    assert np.isclose(values.var(), energies.energy_change_variance(xi, beta, i, rho, r), rtol=0.1)


@given(st.floats(0.01, 8.0), st.integers(1, 12), st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_relative_variance_is_the_long_formula(s, n, rho):
    a = (1 / rho - 1) / 8
    shared = (1 + 4 * a) ** n * (1 + 8 * a) ** (-n / 2)
    grown = np.exp(2 * (1 + 4 * a) * s / (1 + 8 * a))  # at x + y = 0 apart from s: ‖x‖² + ‖y‖² + 2xᵀy = s
    assert np.isclose(energies.relative_variance(s, n, rho), shared * grown * np.exp(-s) - 1, rtol=1e-6)
    both = shared * (grown + 1) / 2 * np.exp(-s) - 1
    assert np.isclose(energies.relative_variance(s, n, rho, antithetic=True), both, rtol=1e-6)
    assert np.isclose(energies.relative_variance(s, n), np.exp(s) - 1, rtol=1e-6)
    ratio = energies.relative_variance(s, n, antithetic=True) / energies.relative_variance(s, n)
    assert np.isclose(ratio, (1 - np.exp(-s)) / 2, rtol=1e-6)


def test_feature_bound_is_reached_and_never_passed():
    z, rho = jnp.array([0.5, -0.7, 0.2]), 0.4
    a = (1 / rho - 1) / 8
    peak = (1 + 4 * a) ** 0.5 / (2 * a) * z
    bound = features.feature_bound(float(z @ z), 3, rho)
    assert np.isclose(favor_plus_plus(rho).features(z, peak[None])[0], bound, rtol=1e-4)
    draws = favor_plus_plus(rho).features(z, independent_projections(jax.random.key(0), 100_000, 3)) * 100_000**0.5
    assert draws.max() <= bound


def test_theorem_4_3_holds_at_its_bound():
    """At M as large as allowed and all other memories as harmful as τ permits, every flip has the right sign."""
    n, tau, rho = 24, 0.5, 0.1
    flips, distance = int(rho * n), int(tau * n)
    m = int(energies.memory_bound(n, tau, rho))
    pattern = np.ones(n)
    worst, beta = pattern.copy(), pattern.copy()
    worst[:distance] = -1
    beta[:flips] = -1  # towards the others
    assert (energies.margins(pattern, beta, np.tile(worst, (m - 1, 1)))[-1] > 0).all()


def test_memory_bound_is_the_formula():
    assert np.isclose(energies.memory_bound(20, 0.4, 0.1), np.exp(2 * 20 * 0.2) * (1 - np.exp(-2)) / (2 * np.exp(2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: energies.regular(jnp.zeros((0, 4))), r"M ≥ 1 rows .* got shape \(0, 4\)"),
        (lambda: energies.regular(jnp.ones(4)), r"a single one as xi\[None, :\]"),
        (lambda: energies.regular(jnp.array([[1.0, 0.5]])), r"must be ±1, got 0.5; binarise"),
        (lambda: energies.hopfield(jnp.ones(2), jnp.array([[1.0, 0.0]])), r"must be ±1, got 0"),
        (lambda: energies.capacity(np.array([[1.0, 2.0]])), r"must be ±1, got 2"),
        (lambda: energies.capacity(signs(0, 3, 4), radius=2), r"below 2, got 2"),
        (lambda: energies.regular(jnp.ones((2, 4)))(jnp.ones(3)), r"shape \(3,\) does not fit memories of N = 4"),
        (
            lambda: energies.restore(energies.regular(jnp.ones((2, 3))), jnp.zeros(3)),
            r"one vector of ±1, got shape \(3,\)",
        ),
        (lambda: energies.restore(energies.regular(jnp.ones((2, 3))), jnp.ones((2, 3))), r"vmap over several"),
        (lambda: energies.hopfield(jnp.ones(3), jnp.ones((2, 3)), sharpness=-1.0), r"κ must be above 0, got -1"),
        (lambda: energies.energy_change_variance(np.ones((1, 3)), np.ones(4), 0, 0.5), r"do not|does not fit"),
        (lambda: energies.energy_change_variance(np.ones((1, 3)), np.array([0.0, 1, 1]), 0, 0.5), r"one vector of ±1"),
        (lambda: energies.energy_change_variance(np.ones((1, 300)), np.ones(300), 0, 0.5), r"beyond float64"),
        (lambda: features.feature_bound(1.0, 4, 1.0), r"ρ in \(0, 1\) are bounded"),
        (lambda: energies.memory_bound(10, 0.2, 0.1), r"0 < ρ < τ/2 .* ρ = 0.1, τ = 0.2"),
        (lambda: energies.memory_bound(10, 1.2, 0.1), r"τ = 1.2"),
        (lambda: energies.relative_variance(1.0, 4, 0.0), r"ρ in \(0, 1\]"),
        (lambda: energies.energy_change_variance(signs(0, 2, 4), np.ones(4), 0, 1.0), r"ρ in \(0, 1\), got"),
        (lambda: energies.energy_change_variance(signs(0, 2, 4), np.ones(4), 0, 0.5, 0), r"r ≥ 1"),
        (
            lambda: energies.compact(jnp.zeros(5), jnp.ones((4, 3)), positive),
            r"5 features does not belong to 4 projections",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
