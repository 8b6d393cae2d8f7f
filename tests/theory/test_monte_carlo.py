import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.memory.cache import attention
from mnemosyne.memory.features import (
    favor_plus_plus,
    hyperbolic,
    independent_projections,
    orthogonal_projections,
    positive,
)
from mnemosyne.memory.thick import thick_cam
from mnemosyne.theory import energies, monte_carlo


def test_kernel_draws_are_of_mean_one_and_reproducible():
    x, y = 0.3 * jax.random.normal(jax.random.key(0), (2, 3, 4))
    drawn = monte_carlo.kernel_draws(positive, x, y, 8, monte_carlo.keys_of([0, 1]), 6_000)
    assert drawn.shape == (2, 6_000, 3)
    error = drawn.reshape(-1, 3).std(0) / 12_000**0.5
    assert (np.abs(drawn.reshape(-1, 3).mean(0) - 1) < 4 * error).all()
    assert not np.allclose(drawn[0], drawn[1])
    assert (monte_carlo.kernel_draws(positive, x, y, 8, monte_carlo.keys_of([1]), 6_000)[0] == drawn[1]).all()
    both = list(monte_carlo.kernels_draws((hyperbolic, positive), x, y, 8, monte_carlo.keys_of([0, 1]), 6_000))
    assert np.allclose(both[1], drawn, rtol=1e-5)
    assert len(np.unique(drawn[0, :, 0])) > 5_900  # no batch repeats another


def test_weighted_draws_measure_the_same_moments():
    xi = jnp.array([[1.0, 1, 1, 1], [-1, -1, 1, 1], [1, -1, 1, -1]])
    args = xi, jnp.array([-1.0, 1, 1, 1]), 3, 0.3
    change, weight = monte_carlo.weighted_energy_change_draws(*args, monte_carlo.keys_of([0, 1]), 50_000)
    assert abs(weight.mean() - 1) < 4 * weight.std() / weight.size**0.5
    mean, variance = energies.energy_change(*args[:3]), energies.energy_change_variance(*args)
    values = weight * change
    assert abs(values.mean() - mean) < 4 * values.std() / values.size**0.5
    assert np.isclose((values * change).mean() - mean**2, variance, rtol=0.05)
    plain = monte_carlo.energy_change_draws(*args, 2, monte_carlo.keys_of([0]), 50_000)
    assert abs(plain.mean() - mean) < 4 * plain.std() / plain.size**0.5


def test_retrievals_put_the_same_question_to_all():
    same = monte_carlo.updates_of(monte_carlo.regular_energy)
    answers = monte_carlo.retrievals({"a": same, "b": same}, monte_carlo.keys_of([0, 1]), 20, n=10, memories=3, wrong=1)
    assert answers["a"].shape == (2, 20)
    assert (answers["a"] == answers["b"]).all()
    untouched = monte_carlo.retrievals(
        {"a": lambda key, xi, beta: beta}, monte_carlo.keys_of([0]), 20, n=10, memories=3, wrong=4
    )
    assert (untouched["a"] == 4).all()


@pytest.mark.parametrize(
    "recall",
    [
        monte_carlo.dynamics_of(monte_carlo.regular_energy),
        monte_carlo.hopfield_read(1.0),
        monte_carlo.cam_read(hyperbolic, 2_048, 0.2),
        monte_carlo.cam_read(favor_plus_plus(0.2), 2_048, 0.2, draw=orthogonal_projections),
    ],
    ids=["regular", "hopfield", "cam", "cam++"],
)
def test_memories_repair_random_patterns(recall):
    wrong = monte_carlo.retrievals({"it": recall}, monte_carlo.keys_of([0]), 20, n=32, memories=3, wrong=3)["it"]
    assert wrong.mean() < 1  # of three


def test_memories_come_from_the_pool():
    pool = jnp.concatenate([jnp.ones((1, 6)), -jnp.ones((1, 6))])
    recall = lambda key, xi, beta: jnp.where(jnp.abs(xi.sum(1)).min() == 6, xi[0], 0.0)
    wrong = monte_carlo.retrievals({"it": recall}, monte_carlo.keys_of([0]), 10, n=6, memories=2, wrong=1, pool=pool)[
        "it"
    ]
    assert (wrong == 0).all()


def test_identity_maps_leave_queries_and_keys_alone():
    memory, xi = attention(cache=3), jax.random.normal(jax.random.key(0), (3, 4))
    theta = monte_carlo.identity_maps(jnp.ones((1, 4)))
    out = memory.window(theta, memory.state((), 4, 4), xi, xi)[-1]
    assert np.allclose(out, jax.nn.softmax(xi @ xi[-1]) @ xi, rtol=1e-4)


def test_a_fine_grid_reads_as_the_oracle_does():
    xi, content = jax.random.normal(jax.random.key(0), (2, 10, 3))
    omega = independent_projections(jax.random.key(1), 32, 3)
    memory = thick_cam(projections=32, discount=0.0, rhos=tuple((i + 0.5) / 64 for i in range(64)))
    grid = memory.window(monte_carlo.identity_maps(omega), memory.state((), 3, 3), xi, content)
    assert jnp.abs(grid - monte_carlo.oracle_reads(omega, xi, content)).mean() < 0.01


def test_separated_vectors_are():
    kept = monte_carlo.separated(monte_carlo.cube(7), 3)
    distances = (kept[:, None] != kept[None]).sum(-1)
    assert distances[~np.eye(len(kept), dtype=bool)].min() == 3
    assert len(kept) == 16  # in this order, the Hamming code
    assert len(monte_carlo.separated(monte_carlo.cube(7), 3, limit=5)) == 5


def test_flops_count_a_matrix_product():
    assert monte_carlo.flops(lambda a, b: a @ b, jnp.ones((8, 16)), jnp.ones((16, 4))) == 2 * 8 * 16 * 4
