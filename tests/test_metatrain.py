import jax
import numpy as np
import pytest

from mnemosyne import store
from mnemosyne.metatrain import meta_train, read_log
from mnemosyne.truncated import Truncated
from tests.test_truncated import TASKS, trainer


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
    folder = tmp_path_factory.mktemp("whole")
    theta, log = meta_train(small_run(), folder=folder)
    return folder, theta, log


def test_log_and_files(whole):
    folder, theta, log = whole
    assert [row["iteration"] for row in log] == [2, 4, 6, 8]
    assert [row["iteration"] for row in read_log(folder)] == [2, 4, 6, 8]
    assert all(np.isfinite(row["loss"]) and row["skipped"] == 0 for row in log)
    saved = store.load_tree(folder / "theta-000008.safetensors", theta)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (theta, saved)), strict=True))


def test_a_killed_run_ends_in_the_same_bits(whole, tmp_path):
    """Checkpoint every chunk, die after two, go on: θ is bit-identical and the log has no row twice."""

    class Killed(Exception):
        pass

    def die(row):
        if row["iteration"] == 6:
            raise Killed

    with pytest.raises(Killed):
        meta_train(small_run(), folder=tmp_path, report=die)
    with (tmp_path / "log.jsonl").open("a") as f:
        f.write('{"iteration": 99, "lo')  # a line that the crash cut short
    theta, log = meta_train(small_run(), folder=tmp_path)
    assert [row["iteration"] for row in log] == [2, 4, 6, 8]
    for a, b in zip(jax.tree.leaves(theta), jax.tree.leaves(whole[1]), strict=True):
        assert np.array_equal(a, b)
    drop = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert drop(log) == drop(whole[2])


def test_a_folder_of_another_run_is_refused(whole):
    with pytest.raises(ValueError, match="another configuration"):
        meta_train(small_run(seed=1), folder=whole[0])


@pytest.mark.parametrize(("change", "message"), [({"window": 3}, "window 3"), ({"iterations": 7}, "chunk 2")])
def test_sizes_that_do_not_divide_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        meta_train(small_run(**change))
