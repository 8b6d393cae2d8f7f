import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnemosyne.tasks import data, sets, suite
from mnemosyne.tasks.data.images import Dataset, Split
from mnemosyne.tasks.data.text import load_text
from mnemosyne.tasks.models.networks import Attentive, ByPatches, Recurrent, patches

SETS = (sets.hard_train, sets.varied_validation, sets.meta_test, sets.release_test)


@pytest.fixture(scope="module")
def text():
    return load_text("synthetic")


@pytest.fixture(scope="module")
def built(digits, text):
    return [make(digits, text) for make in SETS]


def blank(side, channels, classes=10):
    """Images of any size, all zero."""
    part = Split(jnp.zeros((300, side, side, channels), jnp.uint8), jnp.zeros(300, jnp.int32))
    return Dataset("blank", part, part, part, mean=0.0, std=1.0, classes=classes)


def shapes(task):
    """Parameters, loss and metrics, by shape alone."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    loss = jax.eval_shape(lambda p, d: task.loss(p, task.batch(d, jax.random.key(0))), params, task.data)
    return params, loss, jax.eval_shape(task.metrics, params, task.data)


def size(params):
    return sum(p.size for p in jax.tree.leaves(params))


def train(task, steps=40, rate=1e-2):
    """Losses under Adam, and whether every gradient was finite."""
    tx = optax.adam(rate)

    def step(carry, key):
        params, state = carry
        loss, g = jax.value_and_grad(task.loss)(params, task.batch(task.data, key))
        u, state = tx.update(g, state)
        finite = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(g)]))
        return (optax.apply_updates(params, u), state), (loss, finite)

    def run(key):
        params = task.init(key)
        (params, _), out = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))
        return *out, task.metrics(params, task.data)

    losses, finite, metrics = jax.jit(run)(jax.random.key(0))
    return np.asarray(losses), bool(finite.all()), metrics


def test_names_are_unique_and_the_sets_disjoint(built):
    names = [[task.name for task in tasks] for tasks in built]
    together = [name for part in names for name in part]
    assert len(set(together)) == len(together)
    assert [len(part) for part in names] == [26, 8, 16, 13]
    assert max(len(name) for part in names[1:] for name in part) <= 36  # of those that figures show


def test_every_task_fits_colour_images_of_a_hundred_classes(text):
    for make in SETS:
        for task in make(blank(32, 3, classes=100), text):
            params, loss, metrics = shapes(task)
            assert loss.shape == metrics["loss"].shape == ()
            assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))


def test_tasks_on_28x28_images_are_small(text):
    images = blank(28, 1)
    trained = {task.name: size(shapes(task)[0]) for task in sets.varied_train(images, text)}
    assert all(300 <= n <= 3_000 for n in trained.values())
    sizes = {task.name: size(shapes(task)[0]) for task in sets.meta_test(images, text)}
    assert max(sizes.values()) == sizes["mlp 512 relu"] < 31_000
    assert sorted(sizes.values())[-2] < 9_000


def test_the_hard_tasks_are_the_varied_ones_and_more(built, digits, text):
    varied = [task.name for task in sets.varied_train(digits, text)]
    hard = [task.name for task in built[0]]
    assert hard[:15] == varied
    assert sum(name.endswith("batch 1") for name in hard) == 2
    assert sum(name.endswith("by heart") for name in hard) == 2


def test_now_and_then_a_batch_of_few_examples_is_one_of_them_repeated(digits):
    task = suite.by_heart(digits, 32, (4,), "relu", batch_size=8)
    assert jax.tree.leaves(task.data["train"])[0].shape[0] == 32
    drawn = jax.jit(jax.vmap(lambda key: task.batch(task.data, key)))
    inputs, labels = drawn(jax.random.split(jax.random.key(0), 2_000))
    same = np.array([(x == x[0]).all() for x in np.asarray(inputs)])
    assert 0.01 < same.mean() < 0.03
    assert all((y == y[0]).all() for y in np.asarray(labels)[same])


def test_metrics_are_measured_on_a_thousand_examples_at_most():
    many = Split(jnp.zeros((1500, 8, 8, 1), jnp.uint8), jnp.zeros(1500, jnp.int32))
    images = suite.small(Dataset("blank", many, many, many, mean=0.0, std=1.0), 8)
    assert suite.mlp(images, (4,), "tanh").data["held"][0].shape == (1000, 8, 8, 1)
    assert suite.ill_conditioned().data["held"][0].shape[0] == 1000


LEARNING = {
    "conv 8+16": 0.8,
    "gru lm 32": 0.9,
    "attention lm 1x24": 0.8,
    "autoencoder 32-8-32": 0.8,
    "mlp 12×16 tanh": 0.95,
    "diabetes 32+16": 0.8,
    "ill-conditioned 1e4": 0.8,
    "mlp 20 relu loss×1e6": 0.6,
}


@pytest.mark.parametrize("name", LEARNING)
def test_a_task_learns(name, built):
    task = next(t for tasks in built for t in tasks if t.name == name)
    losses, finite, metrics = train(task)
    assert finite
    assert losses[-10:].mean() < LEARNING[name] * losses[:5].mean()
    assert all(np.isfinite(v) for v in metrics.values())


def test_scaling_scales_loss_gradient_and_metric(digits):
    task = suite.mlp(digits, (8,), "tanh")
    params, batch = task.init(jax.random.key(0)), task.batch(task.data, jax.random.key(1))
    loss, g = jax.value_and_grad(task.loss)(params, batch)
    before = task.metrics(params, task.data)
    for factor, name in ((1e-6, "mlp 8 tanh loss×1e-6"), (1e6, "mlp 8 tanh loss×1e6")):
        other = suite.scaled(task, factor)
        scaled, h = jax.value_and_grad(other.loss)(params, batch)
        assert other.name == name
        assert np.isclose(scaled, factor * loss, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(g), jax.tree.leaves(h), strict=True):
            assert np.allclose(b, factor * a, rtol=1e-4, atol=1e-7 * factor)
        after = other.metrics(params, other.data)
        assert np.isclose(after["loss"], factor * before["loss"], rtol=1e-5)
        assert after["accuracy"] == before["accuracy"]


def test_reparametrised_weights_stand_for_the_same_network(digits):
    task = suite.mlp(digits, (8,), "tanh")
    other = suite.reparametrised(task, 0.01)
    params, stored = (t.init(jax.random.key(0)) for t in (task, other))
    assert np.allclose(stored["Dense_0"]["kernel"], 0.01 * params["Dense_0"]["kernel"])
    batch = task.batch(task.data, jax.random.key(1))
    g, h = (jax.grad(t.loss)(p, batch) for t, p in ((task, params), (other, stored)))
    assert np.isclose(other.loss(stored, batch), task.loss(params, batch), rtol=1e-5)
    assert np.allclose(h["Dense_0"]["kernel"], 100 * g["Dense_0"]["kernel"], rtol=1e-3, atol=1e-4)
    assert np.allclose(h["Dense_0"]["bias"], g["Dense_0"]["bias"], rtol=1e-3, atol=1e-6)
    assert np.isclose(other.metrics(stored, other.data)["loss"], task.metrics(params, task.data)["loss"], rtol=1e-5)


@pytest.mark.parametrize("size", [1, 512])
def test_the_batch_size_is_an_argument(size, built):
    task = next(t for t in built[2] if t.name == f"mlp 24 relu batch {size}")
    images, labels = jax.eval_shape(task.batch, task.data, jax.random.key(0))
    assert images.shape == (size, 8, 8, 1)
    assert labels.shape == (size,)


@pytest.mark.parametrize(("side", "size", "stride"), [(8, 3, 2), (7, 3, 2), (8, 2, 2), (5, 3, 1)])
def test_patches_times_a_matrix_are_a_convolution(side, size, stride):
    images = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 3, 4))
    axes = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(images, kernel, (stride, stride), "SAME", dimension_numbers=axes)
    found = patches(images, size, stride) @ kernel.reshape(-1, 4)
    assert found.shape == wanted.shape
    assert np.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_a_convolution_by_patches_is_the_same(size, stride, bias):
    images = jax.random.normal(jax.random.key(0), (2, 7, 7, 3))
    plain, patched = (kind(4, (size, size), stride, use_bias=bias) for kind in (nn.Conv, ByPatches))
    params = jax.tree.map(lambda x: x + 0.1, plain.init(jax.random.key(1), images))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, patched.init(jax.random.key(1), images))
    assert np.allclose(plain.apply(params, images), patched.apply(params, images), atol=1e-5)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_residual_network_by_patches_is_the_same(bottleneck):
    """The same parameters under other names of modules give the same loss."""
    images = suite.small(data.load("digits"), 8)
    plain, patched = (
        suite.residual(images, (1, 2), bottleneck, width=8, batch_size=4, conv=conv) for conv in (nn.Conv, ByPatches)
    )
    params = plain.init(jax.random.key(0))

    def renamed(tree):
        of = {name.replace("Conv_", "ByPatches_"): part for name, part in tree.items()}
        return {name: renamed(part) if isinstance(part, dict) else part for name, part in of.items()}

    batch = plain.batch(plain.data, jax.random.key(1))
    shapes = jax.eval_shape(patched.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, renamed(params)) == jax.tree.map(jnp.shape, shapes)
    assert np.isclose(plain.loss(params, batch), patched.loss(renamed(params), batch), rtol=1e-5)


@pytest.mark.parametrize("network", [Recurrent(7, 4, 5), Attentive(7, 1, 2, 8, 8)], ids=["gru", "attention"])
def test_language_models_see_no_future(network):
    tokens = jnp.arange(12).reshape(2, 6) % 7
    params = jax.jit(network.init)(jax.random.key(0), tokens)
    before, after = (jax.jit(network.apply)(params, t) for t in (tokens, tokens.at[:, 4].set(0)))
    assert before.shape == (2, 6, 7)
    assert np.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not np.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_full_size_convolutions_have_the_papers_shapes(digits):
    """32 channels at stride 2, then 64 and 64, and a linear layer behind the mean over places."""
    task = suite.pooled_conv(digits, (32, 64, 64), (2, 1, 1), batch_size=3)
    params = task.init(jax.random.key(0))
    kernels = [p.shape for p in jax.tree.leaves(params) if p.ndim > 1]
    assert kernels == [(3, 3, 1, 32), (3, 3, 32, 64), (3, 3, 64, 64), (64, 10)]
    batch = task.batch(task.data, jax.random.key(1))
    assert np.isfinite(task.loss(params, batch))


def test_a_residual_block_starts_near_the_identity_path(digits):
    """With all convolutions at zero, what is left of a network without strides is its first layer and its head."""
    task = suite.residual(digits, (1, 1), width=4, batch_size=3)
    assert task.name == "resnet 6, width 4 batch 3"
    params = task.init(jax.random.key(0))
    halved = jax.tree.map(jnp.copy, params)
    halved["Block_0"] = jax.tree.map(jnp.zeros_like, params["Block_0"])
    batch = task.batch(task.data, jax.random.key(1))
    grads = jax.grad(task.loss)(halved, batch)
    assert float(jnp.abs(grads["Conv_0"]["kernel"]).max()) > 0  # around the silent block
    assert float(jnp.abs(task.loss(params, batch) - task.loss(halved, batch))) > 0


def test_the_recurrent_unit_is_flax_gru():
    network, tokens = Recurrent(7, 4, 5), jnp.arange(6)[None] % 7
    params = network.init(jax.random.key(0), tokens)["params"]
    inner, bias = params["Dense_1"]["kernel"], params["Dense_1"]["bias"]
    cut = lambda a: jnp.split(a, 3, axis=-1)
    cell = {f"i{k}": {"kernel": w, "bias": b} for k, w, b in zip("rzn", cut(inner), cut(bias), strict=True)}
    cell |= {f"h{k}": {"kernel": w} for k, w in zip("rzn", cut(params["recurrent"]), strict=True)}
    cell["hn"]["bias"] = jnp.zeros(5)
    h = jnp.zeros((1, 5))
    for x in params["Dense_0"]["kernel"][tokens[0]]:
        h, _ = nn.GRUCell(5).apply({"params": cell}, h, x[None])
    wanted = h @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"][None]
    assert np.allclose(network.apply({"params": params}, tokens)[:, -1], wanted, atol=1e-5)


def test_a_batch_of_text_is_followed_by_itself(text):
    task = suite.recurrent(text, hidden=4, embedding=2, length=20, batch_size=8)
    inputs, targets = task.batch(task.data, jax.random.key(0))
    assert inputs.shape == targets.shape == (8, 20)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert text.decode(np.asarray(inputs[0])) in text.decode(text.train)


def test_the_ill_conditioned_problem_has_its_condition_number():
    task = suite.ill_conditioned(1e4)
    x = np.asarray(task.data["train"][0], np.float64)
    eigenvalues = np.linalg.eigvalsh(x.T @ x / len(x))
    assert 0.8e4 < eigenvalues[-1] / eigenvalues[0] < 1.3e4
    solution = np.linalg.lstsq(x, np.asarray(task.data["train"][1], np.float64), rcond=None)[0]
    held, wanted = (np.asarray(a, np.float64) for a in task.data["held"])
    assert abs(np.mean((held @ solution - wanted) ** 2) - 0.01) < 2e-3


def test_small_pools_only_as_far_as_asked(digits):
    assert suite.small(digits, 7).train.images.shape[1:] == (8, 8, 1)
    assert suite.small(blank(28, 1), 14).train.images.shape[1:] == (14, 14, 1)
    assert suite.small(blank(32, 3), 7).train.images.shape[1:] == (8, 8, 3)
    assert suite.small(blank(28, 1), 16).train.images.shape[1:] == (28, 28, 1)


def test_patches_that_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="do not tile images of side 14"):
        suite.vit(blank(14, 1), layers=1, heads=1, hidden=8, head_dim=8, mlp=8)
