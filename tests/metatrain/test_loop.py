import jax
import numpy as np
import pytest

from mnemosyne import store
from mnemosyne.metatrain.loop import meta_train, read_log
from mnemosyne.metatrain.pes import PESConfig
from mnemosyne.metatrain.search import SearchConfig
from mnemosyne.metatrain.truncated import MetaConfig, Truncated
from tests.helpers import check_resumed
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
    assert [row["iteration"] for row in read_log(folder)] == [2, 4, 6, 8]
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
