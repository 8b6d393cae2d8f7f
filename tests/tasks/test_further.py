import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.tasks import further, sets
from mnemosyne.tasks.data.text import load_text
from mnemosyne.tasks.models.further import Dilated, Factors, Rows, Variational, Views
from tests.tasks.test_suite import blank, train


@pytest.fixture(scope="module")
def fresh(digits):
    return {task.name: task for task in sets.release_test(digits, load_text("synthetic"))}


LEARNING = {
    "mosaic by heart": 0.8,
    "matrix of rank 5": 0.9,
    "window of 8": 0.9,
    "dilated 4x16": 0.9,
    "residual mlp 4×48": 0.7,
    "mixer 1x16": 0.95,
    "rows by rnn 32": 0.95,
    "variational 6": 0.8,
    "two views": 0.9,
    "mlp 24 elu batch 8, 40% mislabelled": 0.99,
    "absolute error": 0.9,
    "raw tumours": 0.95,
    "all wines": 0.8,
}


def test_the_names_of_the_fresh_set(fresh):
    assert list(fresh) == list(LEARNING)


@pytest.mark.parametrize("name", LEARNING)
def test_a_task_learns(name, fresh):
    losses, finite, metrics = train(fresh[name], steps=100, rate=3e-2)
    assert finite
    assert losses[-10:].mean() < LEARNING[name] * losses[:5].mean()
    assert all(np.isfinite(v) for v in metrics.values())


def test_a_mosaic_has_its_pixels_in_their_places(digits):
    """Sines and cosines of the lowest frequency tell a place; the brightness there is the image's."""
    task = further.mosaic(digits)
    x, y = (np.concatenate(pair) for pair in zip(task.data["held"], task.data["train"], strict=True))
    assert x.shape == (32 * 32, 28)
    angles = np.arctan2(x[:, :2], x[:, 14:16])  # of frequency one half a turn across: rows, columns
    rows, columns = np.rint(angles / np.pi * 32).astype(int).T
    whole = np.zeros((32, 32))
    whole[rows, columns] = y[:, 0]
    first = np.asarray(digits.train.images[5, ..., 0], np.float64)  # second in the second row
    part = whole[8:16, 8:16]
    assert np.corrcoef(part.ravel(), first.ravel())[0, 1] > 0.999


def test_a_matrix_is_completed_from_entries_that_differ():
    task = further.factorisation((9, 8), rank=2, noise=0.0)
    places = np.concatenate([task.data[part][0] for part in ("train", "held")])
    assert len(np.unique(places, axis=0)) == len(places) == 36
    assert places.max(axis=0).tolist() <= [8, 7]
    found = Factors((9, 8), 2).apply({"params": {"left": jnp.eye(9, 2), "right": jnp.ones((8, 2))}}, places[:4])
    assert np.array_equal(found[:, 0], (places[:4, 0] < 2).astype(float))


def test_dilated_convolutions_see_no_future_and_sixteen_places():
    network, tokens = Dilated(7, 4, 4), jnp.arange(20)[None] % 7
    params = network.init(jax.random.key(0), tokens)
    before = network.apply(params, tokens)
    for place, seen in ((19, 16), (2, 16)):
        after = network.apply(params, tokens.at[0, place].set(6 - tokens[0, place]))
        changed = np.flatnonzero(np.abs(after - before).max(axis=-1)[0] > 1e-7)
        assert changed.min() >= place
        assert changed.max() < place + seen


def test_a_recurrence_reads_rows_from_above():
    network = Rows(4, 3)
    images = jax.random.normal(jax.random.key(0), (2, 5, 6, 1))
    params = network.init(jax.random.key(1), images)["params"]
    h = np.zeros((2, 4))
    for row in range(5):
        x = images[:, row, :, 0] @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
        h = np.tanh(x + h @ params["recurrent"])
    wanted = h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]
    assert np.allclose(network.apply({"params": params}, images), wanted, atol=1e-5)


def test_the_divergence_is_that_of_normals():
    """KL(N(μ, σ²) ‖ N(0, 1)), and a code of mean μ where the noise is nothing."""
    network, inputs = Variational(3, 2), jnp.zeros((1, 6))
    params = network.init(jax.random.key(0), inputs)["params"]
    params["Dense_0"]["bias"] = jnp.array([0.5, -1.0, np.log(4.0), 0.0])
    _, divergence = network.apply({"params": params}, inputs)
    assert np.isclose(divergence[0], 0.5 * (4.0 + 0.25 - 1 - np.log(4.0)) + 0.5 * 1.0, rtol=1e-5)


def test_views_are_unit_vectors_and_pairs_lie_on_the_diagonal(digits):
    task = further.contrastive(digits, noise=0.0, batch_size=4)
    views, which = task.batch(task.data, jax.random.key(0))
    assert np.array_equal(which, [0, 1, 2, 3])
    assert np.array_equal(views[:, 0], views[:, 1])
    network = Views(8, 5)
    units = network.apply(network.init(jax.random.key(1), views), views)
    assert np.allclose(jnp.sum(units**2, axis=-1), 1.0, atol=1e-4)


def test_four_labels_in_ten_are_drawn(digits):
    task = further.mislabelled(digits)
    changed = np.mean(np.asarray(task.data["train"].labels) != np.asarray(digits.train.labels))
    assert 0.3 < changed < 0.42  # a tenth of those drawn are right by chance
    assert np.array_equal(task.data["held"][1], digits.validation.labels)


def test_all_wines_are_in_every_batch():
    task = further.wines()
    a, b = (task.batch(task.data, jax.random.key(k)) for k in range(2))
    assert a[0].shape == (138, 13)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert np.allclose(a[1].sum(axis=1), 1.0)


def test_raw_tumours_keep_their_columns_scales():
    x = further.tumours().data["train"][0]
    spread = np.asarray(x.std(axis=0))
    assert spread.max() / spread.min() > 1e4


def test_every_fresh_task_fits_colour_images():
    for task in sets.release_test(blank(32, 3), load_text("synthetic")):
        params = jax.eval_shape(task.init, jax.random.key(0))
        assert sum(p.size for p in jax.tree.leaves(params)) < 40_000
