import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mnemosyne.tasks import sets
from mnemosyne.tasks.classification import MLP, MLPSpec, ViT, ViTSpec, classify
from mnemosyne.tasks.data import cifar, sources, text
from mnemosyne.tasks.data import images as data
from mnemosyne.tasks.data.idx import read_idx
from mnemosyne.tasks.models.transformer import patches
from tests.helpers import fitted, sequence


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def originals(contents):
    return [sources.Original(name, hashlib.sha256(c).hexdigest(), len(c)) for name, c in contents.items()]


tfds.disable_progress_bar()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data set of 30 + 10 images in the originals' format, and its source."""
    rng = np.random.default_rng(0)
    contents = [
        idx(rng.integers(0, 256, (30, 28, 28), dtype=np.uint8)),
        idx(np.arange(30, dtype=np.uint8) % 10),
        idx(rng.integers(0, 256, (10, 28, 28), dtype=np.uint8)),
        idx(np.arange(10, dtype=np.uint8)),
    ]
    names = [o.file for o in data.SOURCES["mnist"].files]
    files = tuple(originals(dict(zip(names, contents, strict=True))))
    monkeypatch.setitem(data.SOURCES, "tiny", sources.Source("none", (tmp_path / "web").as_uri() + "/", files, 5))
    for folder in (tmp_path / "web", tmp_path / "data" / "tiny"):
        folder.mkdir(parents=True)
        for name, content in zip(names, contents, strict=True):
            (folder / name).write_bytes(content)
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "tiny"


def prepared(files, folder):
    """The data set that tensorflow-datasets makes of idx files: {part: (images, labels)}."""

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder

        def _info(self):
            image = tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="bytes")
            label = tfds.features.Tensor(shape=(), dtype=np.int32)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(*files[:2]), "test": self._generate_examples(*files[2:])}

        def _generate_examples(self, images, labels):
            for i, (image, label) in enumerate(zip(read_idx(images), read_idx(labels), strict=True)):
                yield i, {"image": image[..., None], "label": np.int32(label)}

    builder = Tiny(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    parts = {part: list(builder.as_data_source(split=part)) for part in ("train", "test")}
    return {k: (np.stack([e["image"] for e in v]), np.array([e["label"] for e in v])) for k, v in parts.items()}


def test_originals_become_the_arrays_of_tensorflow_datasets(tiny, tmp_path):
    loaded = data.load("tiny")
    assert loaded.train.images.shape == (25, 28, 28, 1)
    assert loaded.validation.images.shape == (5, 28, 28, 1)
    together = (np.concatenate(pair) for pair in zip(loaded.train, loaded.validation, strict=True))
    for part, found in (("train", together), ("test", loaded.test)):
        for ours, theirs in zip(found, prepared(data.paths("tiny"), tmp_path / "prepared")[part], strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_originals_are_those_that_tensorflow_datasets_registers(name):
    """Whose list was made by others: address, bytes, SHA-256 and file, a line each."""
    registered = (Path(tfds.__file__).parent / "url_checksums" / f"{name}.txt").read_text(encoding="utf-8")
    known = {tuple(line.split()[-3:]) for line in registered.splitlines()}
    assert {(str(o.bytes), o.sha256, o.file) for o in data.SOURCES[name].files} <= known


def test_missing_and_damaged_originals_are_named(tiny):
    first, second = (tiny / data.SOURCES["tiny"].files[i].file for i in (0, 1))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-3])
    with pytest.raises(data.DataError) as error:
        data.load("tiny")
    message = str(error.value)
    assert f"{first}: missing; sha256 {data.SOURCES['tiny'].files[0].sha256}" in message
    assert f"{second}: damaged" in message
    assert "python -m mnemosyne data fetch tiny" in message
    assert "MNEMOSYNE_DATA" in message


def test_fetch_downloads_checks_and_leaves_nothing_half_done(tiny, tmp_path):
    for path in tiny.iterdir():
        path.unlink()
    assert data.fetch("tiny") == tiny
    data.verify("tiny")
    (tiny / data.SOURCES["tiny"].files[0].file).unlink()
    served = tmp_path / "web" / data.SOURCES["tiny"].files[0].file
    served.write_bytes(b"not it")
    with pytest.raises(data.DataError, match="not the published file"):
        data.fetch("tiny")
    served.unlink()
    with pytest.raises(data.DataError, match="could not download"):
        data.fetch("tiny")
    assert len(list(tiny.iterdir())) == 3


def test_absent_mnist_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match=r"(?s)mnist is not usable.*440fcabf73cc"):
        data.load("mnist")


def test_an_unknown_data_set_lists_those_there_are():
    with pytest.raises(data.DataError, match="digits, digits_low, digits_high, mnist, fashion_mnist"):
        data.load("imagenet")


@pytest.mark.skipif(
    not (data.originals() / "mnist" / "train-images-idx3-ubyte.gz").exists(), reason="no MNIST originals here"
)
def test_real_mnist_has_its_published_statistics():
    mnist = data.load("mnist")
    assert len(mnist.train.labels) == 55_000
    assert abs(mnist.mean - 0.1307) < 5e-4
    assert abs(mnist.std - 0.3081) < 5e-4


def test_digits(digits):
    assert [len(s.labels) for s in (digits.train, digits.validation, digits.test)] == [1197, 300, 300]
    images, labels = data.draw(digits, digits.train, jax.random.key(0), 500)
    assert images.shape == (500, 8, 8, 1)
    assert images.dtype == jnp.float32
    assert abs(float(images.mean())) < 0.1
    assert abs(float(images.std()) - 1) < 0.1
    assert set(np.asarray(labels)) == set(range(10))


def test_halves_of_the_digits_share_no_class_and_leave_none_out(digits):
    low, high = data.load("digits_low"), data.load("digits_high")
    for whole, first, second in zip(digits[1:4], low[1:4], high[1:4], strict=True):
        assert np.array_equal(first.images, whole.images[whole.labels < 5])
        assert np.array_equal(second.labels, whole.labels[whole.labels >= 5] - 5)
    assert low.classes == high.classes == 5
    assert int(high.train.labels.max()) == 4


def test_resizing_interpolates_and_changes_colours(digits):
    larger = data.resize(digits, 16, 3)
    assert larger.name == "digits 16×16×3"
    assert data.resize(digits, 8, 1) is digits
    assert larger.train.images.shape == (1197, 16, 16, 3)
    assert larger.train.images.dtype == jnp.uint8
    assert abs(larger.mean - digits.mean) < 0.01
    assert np.array_equal(larger.train.images[..., 0], larger.train.images[..., 2])
    flat = data.Split(jnp.full((2, 4, 4, 3), 90, jnp.uint8).at[..., 2].set(0), jnp.zeros(2, jnp.int32))
    colour = data.Dataset("flat", flat, flat, flat, 0.0, 1.0)
    assert (data.resize(colour, 6, 1).test.images == 60).all()
    assert np.array_equal(data.resize(colour, 4, 3).test.images, flat.images)
    with pytest.raises(ValueError, match="images of 3 channels do not become images of 2: 1 or 3"):
        data.resize(colour, 4, 2)


def test_pooling_is_a_mean(digits):
    pooled = data.pool(digits, 2)
    assert pooled.name == "digits/2"
    block = np.asarray(digits.train.images[0, :2, 2:4, 0], np.float32).mean()
    assert abs(float(pooled.train.images[0, 0, 1, 0]) - block) <= 0.5


def test_a_product_with_patches_is_a_strided_convolution():
    images, kernel = sequence(1, 2, 6, 9, 2), sequence(2, 3, 3, 2, 5)
    dims = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(images, kernel, (3, 3), "VALID", dimension_numbers=dims)
    found = patches(images, 3) @ kernel.reshape(-1, 5)
    assert found.shape == (2, 2 * 3, 5)
    assert np.allclose(found, wanted.reshape(2, 6, 5), rtol=1e-4, atol=1e-5)


SPECS = [MLPSpec((20, 28), "relu"), MLPSpec((20,), "sigmoid"), ViTSpec(2, 3, 16, 8, 24, patch=2)]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_task_learns(digits, spec):
    losses, before, later = fitted(classify(digits, spec), steps=150, key=1)
    assert np.mean(losses[-10:]) < 0.6 * float(losses[0])
    assert later["accuracy"] > before["accuracy"] + 0.2
    assert later["loss"] < before["loss"]


def test_parameter_counts_by_hand():
    count = lambda module, shape: sum(
        p.size for p in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape)))
    )
    assert count(MLP((20,), "sigmoid"), (1, 28, 28, 1)) == 784 * 20 + 20 + 200 + 10
    d, h, e, m, tokens, patch = 16, 2, 8, 16, 16, 7
    attention = 3 * (d * h * e + h * e) + h * e * d + d
    block = attention + 2 * 2 * d + d * m + m + m * d + d
    vit = patch * patch * d + d + tokens * d + 3 * block + 2 * d + d * 10 + 10
    assert count(ViT(3, h, d, e, m, patch), (1, 28, 28, 1)) == vit


def test_patches_that_do_not_tile_are_refused(digits):
    with pytest.raises(ValueError, match="patches of 3 do not tile"):
        classify(digits, ViTSpec(1, 1, 8, 8, 8, patch=3)).init(jax.random.key(0))


def test_held_out_networks_are_in_no_other_set():
    seen = {str(spec) for spec, _ in (*sets.META_TRAIN, *sets.META_VALIDATION)}
    held = {str(spec) for spec in (*sets.FIG10, sets.held_out_vit(7))}
    assert not seen & held
    assert not {s for s, _ in sets.META_TRAIN} & {s for s, _ in sets.META_VALIDATION}


def test_sets_build(digits):
    tasks = sets.build([m for m in sets.META_TRAIN if isinstance(m[0], MLPSpec)], digits)
    assert [t.name for t in tasks] == ["mlp 24 sigmoid digits", "mlp 20+28 relu digits/2", "mlp 36 sigmoid digits/2"]
    assert len({t.name for t in tasks}) == len(tasks)


@pytest.mark.parametrize("side", [8, 28])
def test_an_ablation_is_small_and_measured_on_other_shapes(digits, side):
    few = digits.train.images[:9]
    large = np.repeat(np.repeat(few, 4, axis=1), 4, axis=2)[:, 2:30, 2:30]  # as many pixels as MNIST's
    train, held_out = sets.ablation(digits._replace(train=digits.train._replace(images=few if side == 8 else large)), 2)
    assert len({t.name for t in (*train, *held_out)}) == 4
    assert [t.name.split()[0] for t in (*train, *held_out)] == ["mlp", "mlp", "mlp", "vit"]
    for task in (*train, *held_out):
        assert sum(p.size for p in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))) < 2_000


def test_signs_are_binary_images(digits):
    signs = data.signs(digits.test)
    assert signs.shape == (300, 64)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert (signs[5].reshape(8, 8)[..., None] > 0).tolist() == (digits.test.images[5] > 127).tolist()


def place(folder, name, contents, monkeypatch):
    """Make files a data set's originals, in `folder` as $MNEMOSYNE_DATA."""
    source = data.SOURCES[name]._replace(files=tuple(originals(contents)), held_back=2)
    monkeypatch.setitem(data.SOURCES, name, source)
    monkeypatch.setenv("MNEMOSYNE_DATA", str(folder))
    (folder / (source.folder or name)).mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        (folder / (source.folder or name) / file).write_bytes(content)


@pytest.fixture(scope="module")
def colour():
    """Two parts of 6 and 3 colour images with labels below 100."""
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 100, n)) for n in (6, 3)]


def differences(images, labels):
    """Code as the subsets are: planes R−G, G, B−G, differenced along both axes modulo 256."""
    r, g, b = np.moveaxis(images, -1, 0)
    planes = np.stack([r - g, g, b - g])
    rows = np.diff(planes, axis=3, prepend=np.zeros_like(planes[..., :1]))
    stored = io.BytesIO()
    np.savez(stored, d=np.diff(rows, axis=2, prepend=np.zeros_like(rows[:, :, :1])), y=labels)
    return stored.getvalue()


def archive(members):
    stored = io.BytesIO()
    with tarfile.open(fileobj=stored, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stored.getvalue()


def records(images, *labels):
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([*(np.uint8(k)[:, None] for k in labels), pixels], axis=1).tobytes()


def agrees(loaded, colour):
    (images, labels), (test_images, test_labels) = colour
    assert [len(s.labels) for s in (loaded.train, loaded.validation, loaded.test)] == [4, 2, 3]
    for name, wanted in (("images", images), ("labels", labels)):
        found = np.concatenate([getattr(loaded.train, name), getattr(loaded.validation, name)])
        assert np.array_equal(found, wanted), name
    assert np.array_equal(loaded.test.images, test_images)
    assert np.array_equal(loaded.test.labels, test_labels)


def test_difference_coded_subsets_are_decoded_exactly(colour, tmp_path, monkeypatch):
    contents = {"train.npz": differences(*colour[0]), "test.npz": differences(*colour[1])}
    place(tmp_path, "cifar100_10k", contents, monkeypatch)
    loaded = data.load("cifar100_10k")
    agrees(loaded, colour)
    assert loaded.classes == data.pool(loaded, 4).classes == 100
    assert data.pool(loaded, 4).train.images.shape == (4, 8, 8, 3)


def test_cifar100_archive_takes_the_fine_label(colour, tmp_path, monkeypatch):
    members = {f"{part}.bin": records(x, y // 5, y) for part, (x, y) in zip(("train", "test"), colour, strict=True)}
    place(tmp_path, "cifar100", {"cifar-100-binary.tar.gz": archive(members)}, monkeypatch)
    agrees(data.load("cifar100"), colour)


def test_cifar10_archive_joins_its_batches_in_order(colour, tmp_path):
    (x, y), (test_x, test_y) = colour
    members = {
        "data_batch_2.bin": records(x[4:], y[4:] % 10),
        "data_batch_1.bin": records(x[:4], y[:4] % 10),
        "batches.meta.txt": b"airplane",
        "test_batch.bin": records(test_x, test_y % 10),
    }
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(archive(members))
    images, labels = cifar.read_archive(path, "train", 10)
    assert np.array_equal(images, x)
    assert np.array_equal(labels, y % 10)
    assert np.array_equal(cifar.read_archive(path, "test", 10)[0], test_x)


@pytest.mark.parametrize(("call", "name"), [(data.load, "cifar10_15k"), (data.fetch, "cifar10_15k")])
def test_absent_files_without_an_address_say_where_to_put_them(call, name, tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path))
    with pytest.raises(
        data.DataError, match=r"(?s)b0cb779f25ef.*no public address: put them into .*cifar, or use cifar10"
    ):
        call(name)


def test_absent_cifar_archive_is_offered_for_download(tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"(?s)c4a38c50a1bc.*170,052,171 bytes.*data fetch cifar10\n"):
        data.load("cifar10")


@pytest.mark.skipif(not data.paths("cifar10_15k")[0].exists(), reason="no CIFAR-10 subset here")
def test_real_cifar_subset_is_balanced():
    subset = data.load("cifar10_15k")
    assert subset.train.images.shape == (13_500, 32, 32, 3)
    assert set(np.bincount(subset.validation.labels)) == {150}
    assert abs(subset.mean - 0.4734) < 2e-3  # the published (.4914 + .4822 + .4465) / 3


def test_the_grammar_is_always_the_same_text():
    first, again = (text.load_text("synthetic") for _ in range(2))
    assert np.array_equal(first.train, again.train)
    assert first.vocabulary <= 32
    assert len(first.train) + len(first.validation) == 50_000
    assert first.train.dtype == np.int32
    assert max(first.train.max(), first.validation.max()) < first.vocabulary
    written = first.decode(first.train)
    assert written == text.grammar(50_000)[:45_000]
    for right, wrong in [("this cat sees ", "this cat see "), ("these cats see ", "these cats sees ")]:
        assert right in written
        assert wrong not in written


def test_shakespeare_is_numbered_by_code_point(tmp_path, monkeypatch):
    place(tmp_path, "shakespeare", {"input.txt": b"to be, ro"}, monkeypatch)
    play = text.load_text("shakespeare")
    assert play.symbols == " ,beot\N{REPLACEMENT CHARACTER}"  # "r" is in the held-out part alone
    assert play.decode(play.train) == "to be, "
    assert play.validation.tolist() == [6, 4]


def test_wikitext_keeps_the_frequent_characters_in_lower_case(tmp_path, monkeypatch):
    rare = "".join(map(chr, range(1000, 1100)))
    contents = {"valid.txt.gz": gzip.compress(("Aab" * 2 + rare).encode()), "test.txt.gz": gzip.compress(b"Bz")}
    place(tmp_path, "wikitext2", contents, monkeypatch)
    wiki = text.load_text("wikitext2")
    assert wiki.vocabulary == 64
    assert wiki.decode(wiki.train[:6]) == "aabaab"
    assert wiki.decode(wiki.validation) == "b\N{REPLACEMENT CHARACTER}"


def test_absent_and_misnamed_texts_are_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"(?s)86c4e6aa9db7.*data fetch shakespeare"):
        text.load_text("shakespeare")
    with pytest.raises(data.DataError, match="synthetic, shakespeare, wikitext2, gutenberg"):
        text.load_text("bible")
    with pytest.raises(data.DataError, match=r"text, not images.*load_text\('shakespeare'\)"):
        data.load("shakespeare")
