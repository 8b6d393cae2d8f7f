import json

import jax
import numpy as np
import pytest

from mnemosyne import store
from mnemosyne.metatrain.loop import meta_train
from mnemosyne.metatrain.pes import PESConfig
from mnemosyne.metatrain.replicas import Replicas
from mnemosyne.metatrain.search import SearchConfig
from mnemosyne.metatrain.truncated import MetaConfig, Truncated
from tests.helpers import check_resumed
from tests.metatrain.test_pes import evolution
from tests.metatrain.test_search import search
from tests.metatrain.test_truncated import TASKS, trainer


@pytest.fixture(autouse=True, scope="module")
def short_chunks():
    """A row of the log every two iterations, a checkpoint with each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Truncated, "chunk", 2)
        patch.setattr(Truncated, "save_every", 2)
        yield


def small_run(**change):
    return trainer(**change)._replace(tasks=TASKS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was killed and resumed, and what it should have come to."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *check_resumed(small_run(), folder, die_at=6)


def test_log_and_files(whole):
    folder, theta, log = whole
    assert [row["iteration"] for row in log] == [2, 4, 6, 8]
    written = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["iteration"] for line in written] == [2, 4, 6, 8]
    assert all(np.isfinite(row["loss"]) and row["skipped"] == 0 for row in log)
    saved = store.load_tree(folder / "theta-000008.safetensors", theta)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (theta, saved)), strict=True))


def test_a_folder_of_another_run_is_refused(whole):
    folder, theta, _ = whole
    with pytest.raises(ValueError, match="another configuration"):
        meta_train(small_run(seed=1), folder=folder)
    wider = small_run()
    wider = wider._replace(student=wider.student._replace(init=lambda key: {**theta, "extra": np.zeros(2)}))
    with pytest.raises(ValueError, match="another configuration"):
        meta_train(wider, folder=folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MetaConfig(window=0), "window must be at least 1, got 0"),
        (lambda: MetaConfig(replicas=-1), "replicas must be at least 1, got -1"),
        (lambda: PESConfig(pairs=0), "pairs must be at least 1, got 0"),
        (lambda: SearchConfig(iterations=0), "iterations must be at least 1, got 0"),
    ],
)
def test_counts_below_one_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"), [({"window": 3}, "window 3"), ({"iterations": 7}, "a multiple of 2, got 7")]
)
def test_sizes_that_do_not_divide_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        meta_train(small_run(**change))


CONFIGS = {config.__name__: config for config in (MetaConfig, PESConfig, SearchConfig)}
ABSURD = [
    ("MetaConfig", {"iterations": 2.5}, "iterations must be a whole number, got 2.5"),
    ("MetaConfig", {"iterations": "20"}, "iterations must be a whole number, got '20'"),
    ("MetaConfig", {"coordinates": True}, "coordinates must be a whole number, got True"),
    ("MetaConfig", {"learning_rate": float("nan")}, "learning_rate must be a finite number of at least 0, got nan"),
    ("MetaConfig", {"learning_rate": -1e-3}, "learning_rate must be a finite number of at least 0"),
    ("MetaConfig", {"expert_rate": 0.0}, "expert_rate must be a finite number above 0, got 0.0"),
    ("MetaConfig", {"clip": float("inf")}, "clip must be a finite number above 0, got inf"),
    ("MetaConfig", {"scaling": -1.0}, "scaling must be a finite number of at least 0"),
    ("PESConfig", {"sigma": 0.0}, "sigma must be a finite number above 0"),
    ("PESConfig", {"horizons": ()}, "horizons must hold one at least"),
    ("PESConfig", {"horizons": (0,)}, "each of horizons must be at least 1, got 0"),
    ("SearchConfig", {"marks": ()}, "marks must hold one at least"),
    ("SearchConfig", {"marks": (8.5,)}, "each of marks must be a whole number"),
    ("SearchConfig", {"bound": -1.0}, "bound must be a finite number above 0"),
    *((name, {"seed": 2**32}, "seed must be below 2..32 = 4294967296, got 4294967296") for name in CONFIGS),
    *((name, {"seed": -1}, "seed must be at least 0, got -1") for name in CONFIGS),
    *((name, {"seed": 0.5}, "seed must be a whole number, got 0.5") for name in CONFIGS),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "change", "message"), ABSURD)
def test_absurd_configurations_are_refused_where_they_are_given(name, change, message):
    with pytest.raises(ValueError, match=message):
        CONFIGS[name](**change)


@pytest.mark.parametrize("seed", [0, 2147484, 2**31 - 1, 2**31, 2147484000, 2**32 - 1])
def test_any_seed_of_32_bits_works_and_is_its_own(seed):
    """In a program as alone, and beside others in one program."""
    for make in (evolution, search):
        theta, _ = meta_train(make(iterations=20, seed=seed))
        assert np.isfinite(theta["log_rate"])
    numbers = Replicas(lambda seed: None, ({"seed": seed}, {"seed": 5})).numbers()
    beside = jax.jit(jax.vmap(jax.random.key))(numbers["seed"])
    assert beside[0] == jax.random.key(seed)
    assert beside[1] == jax.random.key(5)
    assert small_run(seed=seed).config.seed == seed
    carry = jax.eval_shape(small_run(seed=seed).start)
    jax.eval_shape(small_run(seed=seed).iterate, carry, tuple(t.data for t in TASKS))
