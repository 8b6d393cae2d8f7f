import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnemosyne
from mnemosyne import store, zoo
from mnemosyne.architectures import ARCHITECTURES, PARTS
from mnemosyne.mixed import hybrid

TREE = {"a": [jnp.arange(3.0), jnp.zeros((2, 0))], "b": (jnp.array(2, jnp.int32), jnp.array([True, False]))}


def test_round_trip(tmp_path):
    store.save_tree(tmp_path / "x.safetensors", TREE, {"about": "test"})
    back = store.load_tree(tmp_path / "x.safetensors", TREE)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    for a, b in zip(jax.tree.leaves(TREE), jax.tree.leaves(back), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert store.read(tmp_path / "x.safetensors")[1] == {"about": "test"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_another_tree_lists_every_difference(tmp_path):
    store.save_tree(tmp_path / "x.safetensors", {"a": jnp.zeros(3), "c": jnp.zeros(1)})
    with pytest.raises(store.StoreError) as error:
        store.load_tree(tmp_path / "x.safetensors", {"a": jnp.zeros(4), "b": jnp.zeros(2)})
    for name in ("a: ", "b: missing", "c: "):
        assert name in str(error.value)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"\xff" * 64, lambda b: b""])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    store.save_tree(path, TREE)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(store.StoreError, match="damaged"):
        store.read(path)


@pytest.mark.parametrize("name", zoo.shipped())
def test_shipped_weights_load_and_have_card_and_log(name):
    theta, learned = zoo.load_weights(zoo.path_of(name))
    assert learned is ARCHITECTURES[name]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(theta))
    card = zoo.card(name)
    for needed in ("Command", "Data", "Versions", "Seed", "Differences from the paper", name):
        assert needed in card
    log = zoo.training_log(name)
    assert log.iteration.is_monotonic_increasing
    assert np.isfinite(log.loss).all()


UNTRAINED = {"tensor", "super"}


def test_every_architecture_has_weights_but_these():
    assert zoo.available() == sorted(ARCHITECTURES.keys() - UNTRAINED)
    for name in UNTRAINED:
        with pytest.raises(ValueError, match=f"no weights named '{name}'"):
            mnemosyne.pretrained(name)


def test_what_is_put_together_has_the_weights_of_its_parts(monkeypatch):
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    grads = {"w": jnp.arange(6.0).reshape(3, 2) - 2.0, "b": jnp.array([0.5, -1.0])}
    whole, parts = (
        tx.update(grads, tx.init(params), params)[0]
        for tx in (mnemosyne.pretrained("hybrid"), hybrid(mnemosyne.pretrained("light")))
    )
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert zoo.files_of("hybrid") == [zoo.path_of("light")]
    assert zoo.digest("hybrid") == zoo.digest("light")
    assert zoo.card("hybrid").startswith("# hybrid")
    assert zoo.card("light") in zoo.card("hybrid")
    with pytest.raises(ValueError, match="no weights named 'hybrid'"):
        zoo.path_of("hybrid")
    monkeypatch.setitem(PARTS, "mixed", {"a": "light", "b": "odd"})
    assert "mixed" in zoo.available()
    assert zoo.files_of("mixed") == [zoo.path_of("light"), zoo.path_of("odd")]
    assert zoo.digest("mixed") not in (zoo.digest("light"), zoo.digest("odd"))


def test_all_weights_stay_below_two_megabytes():
    assert sum(zoo.path_of(n).stat().st_size for n in zoo.shipped()) < 2e6


def test_an_unknown_name_suggests_a_near_one():
    with pytest.raises(ValueError, match="did you mean 'coordinate'"):
        mnemosyne.pretrained("cordinate")
    with pytest.raises(ValueError, match="There are: coordinate, hybrid, light, lstm"):
        mnemosyne.pretrained("xyz")


def test_weights_of_an_unknown_or_another_architecture_are_refused(tmp_path):
    theta = ARCHITECTURES["light"].init(jax.random.key(0))
    path = tmp_path / "w.safetensors"
    store.save_tree(path, theta)
    with pytest.raises(store.StoreError, match="names the architecture None"):
        zoo.load_weights(path)
    zoo.save_weights(path, theta, "heavy")
    with pytest.raises(store.StoreError, match="this version knows coordinate"):
        zoo.load_weights(path)
    zoo.save_weights(path, theta, "odd")
    with pytest.raises(store.StoreError, match="does not hold what was asked for"):
        zoo.load_weights(path)
