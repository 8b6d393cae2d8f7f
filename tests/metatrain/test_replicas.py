from dataclasses import replace

import jax
import numpy as np
import pytest

from mnemosyne.memory.compact import cam
from mnemosyne.metatrain.loop import meta_train
from mnemosyne.metatrain.replicas import Replicas
from mnemosyne.metatrain.students import by_coordinate
from mnemosyne.metatrain.truncated import MetaConfig, Truncated
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.sizes import scale_by_tensor_rms
from tests.helpers import check_resumed
from tests.metatrain.test_truncated import SMALL, TASKS

CONFIG = MetaConfig(iterations=4, horizon=10, window=5, warmup=2, coordinates=16)
RUNS = ({"seed": 0, "discount": 0.1}, {"seed": 1, "discount": 0.1}, {"seed": 1, "discount": 0.5})


def make(seed, discount):
    rule = odd_rule(SMALL, cam(projections=4, discount=discount))
    student = by_coordinate(rule, scale_by_tensor_rms(), CONFIG.coordinates)
    return Truncated(student, TASKS[:1], replace(CONFIG, seed=seed))


@pytest.fixture(autouse=True, scope="module")
def short_chunks():
    """A row of the log and a checkpoint every two iterations."""
    with pytest.MonkeyPatch.context() as patch:
        for trainer in (Replicas, Truncated):
            patch.setattr(trainer, "chunk", 2)
            patch.setattr(trainer, "save_every", 2)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """θ and log of the batch, after checking that a killed run ends in the same bits."""
    return check_resumed(Replicas(make, RUNS), tmp_path_factory.mktemp("several"), die_at=2)


def test_a_run_in_the_batch_is_that_run_alone(whole):
    theta, log = whole
    alone, log_alone = meta_train(make(**RUNS[2]))
    for a, b in zip(*map(jax.tree.leaves, (theta, alone)), strict=True):
        assert np.allclose(a[2], b, rtol=1e-4, atol=1e-5)  # a step of Adam's is 1e-3, however small the gradient
    for row, single in zip(log, log_alone, strict=True):
        assert row["iteration"] == single["iteration"]
        for name in ("loss", "imitation", "gradient_norm"):
            assert np.isclose(row[name][2], single[name], rtol=1e-4), name


def test_runs_differ_in_what_their_numbers_say(whole):
    _, log = whole
    assert all(len(set(row["imitation"])) == 3 for row in log)


def test_a_run_whose_numbers_are_wrong_is_refused():
    with pytest.raises(ValueError, match="discount λ must be one number from 0 to 1"):
        meta_train(Replicas(make, ({"seed": 0, "discount": 0.1}, {"seed": 0, "discount": -1.0})))


def test_another_folder_for_other_runs(tmp_path):
    trainer = Replicas(make, RUNS[:1])
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="another configuration"):
        meta_train(trainer, folder=tmp_path)
