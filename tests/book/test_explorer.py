import matplotlib.pyplot as plt
import numpy as np
import pytest

from mnemosyne.book import explorer


def test_snapshot_asks_for_the_middle_memory():
    shot = explorer.snapshot(n=12, memories=7, r=512, discount=0.0)
    assert {len(w) for w in shot.weights.values()} == {7}
    assert all(np.isclose(w.sum(), 1, atol=1e-4) for w in shot.weights.values())
    assert shot.weights["exact"].argmax() == 3
    assert (shot.strips["input"] != shot.strips["asked for"]).sum() == 2
    assert shot.disagreement < 1e-4


def test_many_features_bring_the_weights_to_the_exact_ones():
    shot = explorer.snapshot(n=2, memories=7, r=65_536)
    for name in ("hyperbolic", "FAVOR++"):
        assert np.abs(shot.weights[name] - shot.weights["exact"]).max() < 0.05


def test_a_strong_discount_forgets_the_oldest():
    shot = explorer.snapshot(memories=60, discount=1.0)
    assert shot.weights["exact"][0] < 1e-20
    assert shot.weights["exact"][-1] > 0.5


def test_it_draws_three_panels():
    fig = explorer.draw(explorer.snapshot(n=8, memories=4))
    assert len(fig.axes) == 3
    assert fig.axes[2].get_yticklabels()[0].get_text() == "asked for"
    plt.close(fig)


@pytest.mark.parametrize("wrong", [{"n": 1}, {"memories": 0}, {"r": 1}, {"discount": -0.1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"needs N ≥ 2, M ≥ 1, r ≥ 2, λ ≥ 0, got N ="):
        explorer.snapshot(**wrong)


def test_a_rho_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 1\), at least 1e-6, got 1.0"):
        explorer.snapshot(rho=1.0)


def test_no_sliders_in_a_batch(monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_BATCH", "1")
    assert "JupyterLab" in explorer.sliders()


def test_sliders_draw_the_picture(monkeypatch):
    widgets = pytest.importorskip("ipywidgets")
    monkeypatch.delenv("MNEMOSYNE_BATCH", raising=False)
    calls = {}
    monkeypatch.setattr(widgets, "interact", lambda show, **kw: calls.update(show=show, **kw))
    monkeypatch.setattr(plt, "show", lambda: None)
    assert explorer.sliders() is None
    assert set(calls) == {"show", "n", "memories", "r", "discount", "rho", "seed"}
    calls.pop("show")(**{name: slider.value for name, slider in calls.items()})
    assert len(plt.gcf().axes) == 3
    plt.close("all")
