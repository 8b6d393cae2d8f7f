import hashlib
import math
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne import store
from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.composite import hybrid, super_mnemosyne
from mnemosyne.optimizer.pace import at_pace
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.zoo import pretrained, scale_by_pretrained

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
    assert learned is OPTIMIZERS[name].learned
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(theta))
    card = zoo.card(name)
    for needed in ("Command", "Data", "Versions", "Seed", "Differences from the paper", name):
        assert needed in card
    log = zoo.training_log(name)
    assert log.iteration.is_monotonic_increasing
    assert np.isfinite(log.loss).all()


def test_every_architecture_has_weights():
    assert zoo.available() == sorted(OPTIMIZERS)


def first(tx):
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    grads = {"w": jnp.arange(6.0).reshape(3, 2) - 2.0, "b": jnp.array([0.5, -1.0])}
    return tx.update(grads, tx.init(params), params)[0]


def test_what_is_put_together_has_the_weights_of_its_parts():
    light, tensor, direction = (mnemosyne.pretrained(name) for name in ("light", "tensor", "tensor_averaged"))
    law = zoo.load_weights(zoo.path_of("paced"))[0]["pace"]
    by_hand = {
        "hybrid": hybrid(light),
        "super": super_mnemosyne(light, tensor),
        "tensor_paced": at_pace(law, direction, jnp.bfloat16),
    }
    for name, tx in by_hand.items():
        jax.tree.map(np.testing.assert_array_equal, first(mnemosyne.pretrained(name)), first(tx))
    put_together = [name for name, entry in OPTIMIZERS.items() if entry.parts]
    files = {name: {path.stem for path in zoo.files_of(name)} for name in put_together}
    assert files == {
        "hybrid": {"light"},
        "super": {"light", "tensor"},
        "tensor_paced": {"tensor_averaged", "paced"},
        "super_paced": {"normalised", "tensor_averaged", "paced"},
    }
    assert zoo.digest("hybrid") == zoo.digest("light")
    assert len({zoo.digest(name) for name in put_together}) == len(put_together)
    for name, parts in files.items():
        assert zoo.card(name).startswith(f"# {name}")
        assert all(zoo.card(part) in zoo.card(name) for part in parts)
    with pytest.raises(ValueError, match="no weights named 'super'"):
        zoo.path_of("super")


def test_a_name_is_known_once_all_its_parts_are(monkeypatch):
    mixed = replace(OPTIMIZERS["super"], parts={"light": "light", "tensor": "nothing/pace"})
    monkeypatch.setitem(OPTIMIZERS, "mixed", mixed)
    assert "mixed" not in zoo.available()
    monkeypatch.setitem(OPTIMIZERS, "mixed", replace(mixed, parts={"light": "light", "tensor": "tensor"}))
    assert "mixed" in zoo.available()


def test_what_is_put_together_is_checked_as_a_whole(monkeypatch):
    wrong = replace(OPTIMIZERS["super"], parts={"light": "coordinate", "tensor": "tensor"})
    monkeypatch.setitem(OPTIMIZERS, "super", wrong)
    with pytest.raises(ValueError, match=r"(?s)these weights do not fit 'super':.*\['light'\]"):
        mnemosyne.pretrained("super")


def test_every_record_has_a_label_of_its_own_and_a_color():
    assert len({entry.label for entry in OPTIMIZERS.values()}) == len(OPTIMIZERS)
    assert len({entry.color for entry in OPTIMIZERS.values()}) == len(OPTIMIZERS)
    assert all(re.fullmatch("#[0-9a-f]{6}", entry.color) for entry in OPTIMIZERS.values())
    assert all(entry.differs for entry in OPTIMIZERS.values())


def test_all_weights_stay_below_two_megabytes():
    assert sum(zoo.path_of(n).stat().st_size for n in zoo.shipped()) < 2e6


def test_an_unknown_name_suggests_a_near_one():
    with pytest.raises(ValueError, match="did you mean 'coordinate'"):
        mnemosyne.pretrained("cordinate")
    with pytest.raises(ValueError, match="There are: coordinate, hybrid, light, lstm"):
        mnemosyne.pretrained("xyz")


def test_weights_of_an_unknown_or_another_architecture_are_refused(tmp_path):
    theta = OPTIMIZERS["light"].learned.init(jax.random.key(0))
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


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The shipped weights in a folder of their own, which may be damaged."""
    copy = shutil.copytree(zoo.folder(), tmp_path / "weights")
    monkeypatch.setattr(zoo, "folder", lambda: copy)
    return copy


def test_the_list_of_digests_is_that_of_the_files():
    files = {path.name: path.read_bytes() for path in zoo.folder().glob("*.safetensors")}
    assert zoo.sums() == {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
    assert zoo.digest("light") == zoo.sums()["light.safetensors"]


def zeroed(raw):
    header = 8 + int.from_bytes(raw[:8], "little")
    return raw[:header] + bytes(len(raw) - header)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "damage", [zeroed, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), lambda raw: raw[: len(raw) // 2], lambda raw: b""]
)
@pytest.mark.parametrize(("name", "part"), [("paced", "paced"), ("super_paced", "tensor_averaged")])
def test_damaged_shipped_weights_are_refused(copied, damage, name, part):
    path = copied / f"{part}.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(store.StoreError, match=rf"{part}.safetensors is not the file that ships.*Install mnemosyne"):
        mnemosyne.pretrained(name)


@pytest.mark.bad_input
def test_shipped_weights_under_another_name_are_refused(copied):
    shutil.copy(copied / "light.safetensors", copied / "paced.safetensors")
    with pytest.raises(store.StoreError, match=r"paced.safetensors is not the file that ships"):
        mnemosyne.pretrained("paced")
    listed = (
        (copied / zoo.SUMS).read_text(encoding="utf-8").replace(zoo.sums()["paced.safetensors"], zoo.digest("paced"))
    )
    (copied / zoo.SUMS).write_text(listed, encoding="utf-8")
    with pytest.raises(store.StoreError, match=r"paced.safetensors holds weights of 'light', not of 'paced'"):
        mnemosyne.pretrained("paced")


@pytest.mark.bad_input
def test_shipped_weights_that_are_gone_are_named(copied):
    (copied / "paced.safetensors").unlink()
    with pytest.raises(
        store.StoreError, match=r"paced.safetensors, which ships with the package, cannot be read: No such"
    ):
        mnemosyne.pretrained("paced")


@pytest.mark.bad_input
@pytest.mark.parametrize("text", [None, "", "half a line", "abc  light.safetensors\n", "<html></html>"])
def test_a_damaged_list_of_digests_is_named(copied, text):
    (copied / zoo.SUMS).unlink() if text is None else (copied / zoo.SUMS).write_text(text, encoding="utf-8")
    with pytest.raises(store.StoreError, match=r"SHA256SUMS is (missing or )?damaged.*Install mnemosyne"):
        mnemosyne.pretrained("paced")


TWO = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}


def test_weight_decay_takes_a_share_of_each_weight_beside_the_step():
    plain, decayed = pretrained("light"), pretrained("light", 0.5, weight_decay=0.01)
    steps, _ = plain.update(TWO, plain.init(TWO), TWO)
    updates, _ = decayed.update(TWO, decayed.init(TWO), TWO)
    for name, p in TWO.items():
        assert np.allclose(updates[name], 0.5 * (steps[name] - 0.01 * p), rtol=1e-5)


def test_a_mask_says_which_weights_decay():
    tx = pretrained("light", weight_decay=0.01, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
    zero = jax.tree.map(jnp.zeros_like, TWO)
    updates, _ = tx.update(zero, tx.init(TWO), TWO)
    assert np.allclose(updates["w"], -0.01 * TWO["w"], rtol=1e-5)
    assert not updates["b"].any()


def test_unused_weights_shrink_by_the_share_at_every_step_in_either_form():
    chain = optax.chain(
        scale_by_pretrained("light"), optax.add_decayed_weights(0.01), optax.scale_by_learning_rate(1.0)
    )
    for tx in (pretrained("light", weight_decay=0.01), chain):
        params, state = TWO, tx.init(TWO)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
            params = optax.apply_updates(params, updates)
        assert np.allclose(params["w"], 0.99**3 * TWO["w"], rtol=1e-5)


def test_without_decay_no_parameters_are_needed_and_with_it_they_are():
    tx, decayed = pretrained("light"), pretrained("light", weight_decay=0.1)
    assert tx.update(TWO, tx.init(TWO))[0].keys() == TWO.keys()
    with pytest.raises(ValueError, match="weight_decay needs the parameters"):
        decayed.update(TWO, decayed.init(TWO))


@pytest.mark.parametrize("step_size", [0, 0.5, np.float64(2.0), jnp.array(1.0), lambda t: 1 / (1 + t)])
def test_numbers_and_schedules_are_step_sizes(step_size):
    tx = pretrained("light", step_size)
    assert tx.update(TWO, tx.init(TWO))[0].keys() == TWO.keys()


NO_STEP_SIZES = (math.nan, math.inf, -1.0, True, None, "1", [1.0], jnp.ones(2), jnp.array(jnp.nan))
NO_SCHEDULES = (lambda t: None, lambda t: "x", lambda: 1.0, lambda t: jnp.ones(2))


@pytest.mark.bad_input
@pytest.mark.parametrize("step_size", [*NO_STEP_SIZES, *NO_SCHEDULES])
def test_what_is_no_step_size_is_refused_where_it_is_given(step_size):
    with pytest.raises(ValueError, match="step_size must be a finite number ≥ 0, or a schedule"):
        zoo.check_step_size(step_size)
    with pytest.raises((ValueError, TypeError)):  # types are looked at before, in tests alone
        pretrained("light", step_size)


@pytest.mark.parametrize(("step_size", "factor"), [(1.0, 1.0), (0.5, 0.5), (lambda t: 0.5 + 0.0 * t, 0.5)])
def test_told_the_last_step_updates_come_to_nothing(step_size, factor):
    """Multiplied by √(1 + 10τ) (1 − τ), whatever else multiplies them."""
    plain, told = pretrained("slim"), pretrained("slim", step_size, steps=4)
    states = [plain.init(TWO), told.init(TWO)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25):
        g = jax.tree.map(jnp.ones_like, TWO)
        (u, states[0]), (v, states[1]) = (tx.update(g, s, TWO) for tx, s in zip((plain, told), states, strict=True))
        curve = factor * np.sqrt(1 + 10 * share) * max(1 - share, 0.0)
        for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(v), strict=True):
            assert np.allclose(b, curve * a, rtol=1e-5, atol=1e-12)
            assert np.any(a)


@pytest.mark.bad_input
@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "10", math.nan])
def test_what_is_no_count_of_steps_is_refused_where_it_is_given(steps):
    with pytest.raises(ValueError, match="steps must be a whole number ≥ 1"):
        zoo.ending(steps)
    with pytest.raises((ValueError, TypeError)):
        pretrained("light", steps=steps)


@pytest.mark.bad_input
@pytest.mark.parametrize("weight_decay", [-0.1, 1.0, 2, math.nan, True, "0.1", [0.1]])
def test_what_is_no_share_is_refused_where_it_is_given(weight_decay):
    with pytest.raises(ValueError, match=r"weight_decay must be a number in \[0, 1\)"):
        zoo.check_decay(weight_decay)
    with pytest.raises((ValueError, TypeError)):
        pretrained("light", weight_decay=weight_decay)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "value"),
    [(name, x) for name in ("hidden", "projections", "encoders", "feedforward") for x in (-3, 0, 1.5, True, "8")]
    + [("discount", x) for x in (2, -0.1, math.nan, "0.1")]
    + [(name, x) for name in ("magnitude", "output_scale") for x in (0.0, -1.0, math.inf, "1")],
)
def test_sizes_of_a_rule_that_make_no_sense_are_refused_where_they_are_given(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        Config(**{field: value})


def test_numbers_of_a_rule_may_be_several_under_vmap():
    scales = jax.vmap(lambda scale: replace(Config(), output_scale=scale, discount=scale).output_scale)(jnp.ones(3))
    assert scales.shape == (3,)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", [1e-3, None])
def test_a_learning_rate_in_the_place_of_a_name_is_told(name):
    with pytest.raises(ValueError, match=r"what comes first is a name, such as 'slim', got .*no learning rate"):
        zoo._known(name, zoo.available())  # where `pretrained` goes first; its own argument is checked by type in tests


@pytest.mark.bad_input
def test_a_mask_without_a_decay_is_refused():
    with pytest.raises(ValueError, match="mask says which tensors decay: give weight_decay as well"):
        zoo.pretrained("light", mask={"w": True})


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["paced", "light", "velo_cam"])
def test_parameters_or_another_state_in_the_place_of_the_state_are_told(name):
    tx, params = zoo.pretrained(name), {"w": jnp.ones(3)}
    for other in (params, optax.adam(1e-3).init(params), optax.EmptyState()):
        with pytest.raises(
            ValueError, match=r"made by another optimizer: it is a \w+; .* update\(gradients, state, params\)"
        ):
            tx.update(params, other, params)
