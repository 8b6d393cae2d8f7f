"""The experiments of notebooks 02 to 04 at sizes that take seconds."""

import jax.numpy as jnp
import numpy as np
import pandas as pd

from mnemosyne.book.studies import capacity, random_features, retrieval
from mnemosyne.optimizer import zoo


def test_pairs_have_the_sums_asked_for():
    x, y = random_features.pairs((0.25, 2.0), 5, seed=0)
    assert np.allclose(jnp.sum((x + y) ** 2, -1), [0.25, 2.0], rtol=1e-5)


def test_feature_studies_report_each_map_and_seed():
    means = random_features.unbiasedness(0.4, (0.5,), 4, 4, [0, 1], 500)
    assert len(means) == 4 * 2
    assert list(means["map"].unique()) == list(random_features.maps(0.4))
    assert means.z.abs().max() < 5
    measured = random_features.variances(0.4, (0.5,), 4, 4, [0, 1], 2_000)
    plain = measured[measured.projections == "independent"]
    assert len(plain) == 4 * 2
    assert np.allclose(plain["r Var / K²"], plain["formula"], rtol=0.3)
    table, slopes = random_features.against_features(0.4, 0.5, 4, (4, 16), [0, 1], 2_000)
    assert len(table) == 4 * 2 * 2
    assert np.allclose(slopes["log-log slope against r"], -1, atol=0.15)


def test_the_largest_feature_never_shrinks():
    table = random_features.largest_features(0.4, (1.0, 1.0), 0, 1_000)
    for _, group in table.groupby("map"):
        assert group.largest.is_monotonic_increasing


def test_costs_are_those_of_equal_features():
    s = np.array([0.5, 4.0])
    costs = random_features.costs(s, [2, 8])
    assert all(c.shape == (2, 2) for c in costs.values())
    assert np.allclose(costs["FAVOR+"][0], np.expm1(s))
    assert (costs["FAVOR++"] <= costs["FAVOR+"] * (1 + 1e-9)).all()
    assert (costs["hyperbolic FAVOR++"] <= costs["hyperbolic"] * (1 + 1e-3)).all()


def test_typical_sum_is_that_of_the_shipped_weights():
    theta, _ = zoo.load_weights(zoo.path_of("light"))
    assert 0 < random_features.typical_sum_of(theta) < 100


def test_more_state_reads_better():
    errors = random_features.causal_errors([0], 6, t=12, n=4, m=8).set_index("memory").error
    assert len(errors) == 8
    assert errors["hyperbolic, the state of 8 slices"] < errors["hyperbolic"]
    assert abs(errors["thickened, 8 slices"] / errors["oracle ρ"] - 1) < 0.5


def test_signs_hold_at_the_bound():
    rows = capacity.signs_at_the_bound([(12, 6, 1)], [0, 1])
    assert list(rows.others) == ["worst", "random", "random"]
    assert (rows["signs right"] == 1).all()


def test_the_worst_multiset_fails_a_fixed_factor_above_the_bound():
    rows = capacity.first_wrong_sign([24], [0]).set_index("which").M
    assert np.isclose((rows["worst multiset"] - 1) / rows["Theorem 4.3"], 2 * np.exp(2) / (np.exp(2) - 1), rtol=1e-3)
    assert rows["random"] > rows["worst multiset"]


def test_energy_changes_agree_with_the_theorem():
    rows = capacity.energy_changes([(4, 2, 0)], [(0.1, 4)], [0, 1], 5_000)
    weighted = rows[rows.draws == "weighted"]
    assert np.allclose(weighted["measured variance"], weighted["predicted variance"], rtol=0.2)
    assert rows.z.abs().max() < 4


def test_capacity_grows_with_dimension():
    rows = capacity.stored_by_definition([4, 12], [0], repeats=3)
    median = rows.groupby(["ρN", "N"]).M.median()
    assert median[0, 12] > median[0, 4]
    assert median[0, 12] >= median[1, 12]


def test_growth_is_told_seed_by_seed():
    n = np.arange(4, 20, 2)
    held = pd.concat([pd.DataFrame({"N": n, "seed": k, "M": np.exp(slope * n)}) for k, slope in ((0, 0.3), (1, 0.5))])
    found = capacity.growth(held).set_index("seed")
    assert np.allclose(found.slope, [0.3, 0.5])
    assert np.allclose(found.exponential, 1)
    assert (found.power < 0.99).all()


def test_reads_need_fewer_features_than_energies():
    rows = capacity.retrieved([(6, 3)], [4, 64, 1024], [0], 30)
    assert set(rows.how) == {"regular", "exact read", "energy", "read"}
    assert ((rows.low <= rows.probability + 1e-9) & (rows.probability <= rows.high + 1e-9)).all()
    by_way = rows[rows.r == 64].set_index("how").probability
    assert by_way["read"] > by_way["energy"]


def test_features_needed_interpolate_on_a_logarithmic_axis():
    compact = pd.DataFrame({"N": 4, "how": "read", "r": [1, 100], "probability": [0.0, 1.0]})
    ceilings = pd.DataFrame({"N": 4, "how": ["regular", "exact read"], "r": 0, "probability": [1.0, 0.8]})
    energy = compact.assign(how="energy", probability=[0.0, 0.2])
    needed = capacity.features_needed(pd.concat([ceilings, compact, energy]), 0.625)
    assert list(needed.how) == ["read"]
    assert np.isclose(needed.features[0], 10.0)


def test_query_costs_are_flat_for_the_compact_memory():
    table, micro = capacity.query_costs([4, 64], n=8, r=16, batch=4, rounds=1)
    operations = table.pivot(index="M", columns="memory", values="operations")
    assert operations.compact[4] == operations.compact[64]
    assert operations.regular[64] > 10 * operations.regular[4]
    assert (micro > 0).all()
    assert max(capacity.update_costs((8, 16), (32,))) < 10


def test_images_come_back_from_a_memory_that_keeps_them():
    digits = np.where(np.random.default_rng(0).random((40, 36)) < 0.5, -1.0, 1.0).astype(np.float32)
    names = ("modern Hopfield", "compact, energy, r = 512")
    rows = retrieval.wrong_pixels(digits, names, (2,), (0.0, 0.1), (0, 1), 3)
    assert len(rows) == 2 * 2 * 2
    kept = rows[rows.memory == "modern Hopfield"]
    assert (kept.wrong == 0).all()
    swept = retrieval.by_sharpness(digits, (0.5, 4.0), (16,), (0, 1), 3)
    assert list(swept.kernel.unique()) == ["exact", "r = 16"]
    assert swept[(swept.kernel == "exact") & (swept.sharpness == 4.0)].wrong.max() <= 0.1
