import numpy as np
import pandas as pd
import pytest

from mnemosyne.book import folders
from mnemosyne.book.chapter import open_run
from mnemosyne.book.studies import ablation
from mnemosyne.book.studies.ablation import Setting
from mnemosyne.book.studies.variations import coordinatewise
from mnemosyne.memory.compact import cam
from mnemosyne.metatrain.replicas import Replicas
from mnemosyne.metatrain.truncated import MetaConfig
from mnemosyne.optimizer.paper import paper_rule
from mnemosyne.optimizer.rule import Config
from tests.metatrain.test_truncated import quadratic

SMALL = Config(hidden=4, projections=4, encoders=1, feedforward=6)


@pytest.fixture
def run(checkout, monkeypatch):
    monkeypatch.setattr(Replicas, "chunk", 2)
    return open_run("01_good")


def test_cases_and_seeds_come_back_by_name_and_are_made_once(run, monkeypatch):
    rule = lambda discount: paper_rule(SMALL, cam(projections=4, discount=discount))
    choice = coordinatewise({"λ = 0": {"discount": 0.0}, "λ = 1": {"discount": 1.0}}, rule)
    config = MetaConfig(iterations=4, horizon=10, window=5, warmup=2, coordinates=16)
    common = Setting((quadratic("a", 3),), (quadratic("b", 4),), config, (0, 1), steps=20)
    curves, held_out = ablation.ablate(run, [choice], common)
    assert len(curves) == 2 * 2 * 2
    assert list(curves.variant.unique()) == list(held_out.variant.unique()) == ["λ = 0", "λ = 1"]
    assert held_out.groupby(["variant", "meta_seed"]).seed.nunique().tolist() == [3, 3, 3, 3]
    first = held_out[held_out.step == 0].groupby("seed").train_loss.nunique()
    assert (first == 1).all()  # all variants start from the same networks
    assert not list(folders.cache().glob("meta-training/*"))  # checkpoints are large
    monkeypatch.setattr("mnemosyne.book.chapter.meta_train", None)
    monkeypatch.setattr("mnemosyne.book.chapter.train", None)
    again = ablation.ablate(run, [choice], common)
    assert again[0].equals(curves)
    assert np.allclose(again[1].train_loss, held_out.train_loss)
    score = ablation.scores(curves, held_out)
    assert len(score) == 4
    parts = [ablation.trained(run, choice, common)]
    assert np.allclose(run.summary(ablation.scored, parts).held_out_loss, score.held_out_loss)
    last = held_out[(held_out.step == 20) & (held_out.variant == "λ = 1") & (held_out.meta_seed == 1)].train_loss
    assert np.isclose(score.held_out_loss[3], np.exp(np.log(last).mean()))


def table(**losses):
    rows = [(v, s, x, 2 * x) for v, xs in losses.items() for s, x in enumerate(xs)]
    return pd.DataFrame(rows, columns=["variant", "meta_seed", "meta_loss", "held_out_loss"])


def test_variants_are_compared_meta_seed_by_meta_seed():
    score = table(a=[1.0, 2.0, 4.0], b=[1.2, 2.5, 4.9], c=[0.9, 2.6, 4.0], d=[np.inf, 0.1, 0.2])
    compare = lambda a, b: ablation.against(score, b, "meta_loss").found[a]
    assert compare("a", "b") == "below"  # though the seeds' ranges overlap
    assert compare("b", "a") == "above"
    assert compare("a", "c") == "open"
    assert compare("a", "a") == "level"
    assert compare("d", "b") == "above"  # ahead in two, lost in the third
    assert compare("b", "d") == "below"
    assert compare("d", "d") == "open"
    with pytest.raises(ValueError, match="no scores of 'e'; there are a, b, c, d"):
        compare("a", "e")
    logs = np.log([1.2, 1.25, 4.9 / 4])
    half = 4.302653 * logs.std(ddof=1) / 3**0.5
    row = ablation.against(score, "a", "meta_loss").loc["b"]
    assert ablation.told(row) == f"{row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}] above"
    assert np.allclose(np.log([row.low, row.ratio, row.high]), logs.mean() + half * np.array([-1, 0, 1]), rtol=1e-4)


def test_level_is_within_two_per_cent_by_the_whole_interval():
    assert ablation.level((0.0, 0.019)) is True
    assert ablation.level((0.0, 0.021)) is None
    assert ablation.level((0.05, 0.02)) is False
    assert ablation.level((-np.inf, np.nan)) is False
    score = table(a=[1.0, 2.0, 4.0], near=[1.005, 2.0, 3.98], small=[0.991, 1.98, 3.96])
    found = ablation.against(score, "a", "meta_loss").found
    assert list(found) == ["level", "level", "below"]  # below 1 says more than level
    assert ablation.level(ablation.compared(score, "small", "a")) is True


def test_a_summary_is_the_median_with_lowest_and_highest():
    score = table(a=[1.0, 1.1, 1.2], c=[1.2, 1.3, 9.0])
    short = ablation.summary(score)
    assert short.loc["c"].tolist() == pytest.approx([1.3, 1.2, 9.0, 2.6, 2.4, 18.0])


def test_what_is_lost_counts_as_infinite():
    curves = pd.DataFrame({"variant": "a", "meta_seed": 0, "iteration": [5, 10, 15, 20], "loss": [3.0, 2.0, 2.0, 1.0]})
    held_out = pd.DataFrame({"variant": "a", "meta_seed": 0, "step": [0, 20, 20], "train_loss": [1.0, np.nan, 0.5]})
    score = ablation.scores(curves, held_out)
    assert score.meta_loss[0] == 1.0
    assert np.isinf(score.held_out_loss[0])


def test_costs_count_the_state():
    rows = ablation.costs({"a": paper_rule(SMALL, cam(projections=4))}, parameters=50, rounds=2)
    assert rows.state_bytes[0] == 4 * 8 * (4 + 1)  # 8 features, a content of 4 and Ψ, float32
    assert rows.step_ns[0] > 0
