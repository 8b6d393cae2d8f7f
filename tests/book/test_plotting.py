"""Drawings: boxes where they were asked for, arrows between them, no text too small to read."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mnemosyne.book import plotting


@pytest.fixture
def ax():
    fig, ax = plotting.canvas(5.5, 1.0)
    yield ax
    plt.close(fig)


def test_a_chain_has_an_arrow_from_each_box_to_the_next(ax):
    parts = [(1.0, "a", "#eee"), (0.5, "b", "#eee"), (1.5, "c", "#eee")]
    lefts = plotting.chain(ax, 0.1, 0.2, 0.6, 0.3, parts)
    assert lefts == pytest.approx([0.1, 1.4, 2.2])
    boxes = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]
    assert [b.get_width() for b in boxes] == [width for width, *_ in parts]
    assert [b.get_x() for b in boxes] == lefts
    arrows = [p for p in ax.patches if isinstance(p, FancyArrowPatch)]
    assert [p.get_path().vertices[0][0] for p in arrows] == pytest.approx([1.1, 1.9], abs=0.05)
    assert [t.get_text() for t in ax.texts] == ["a", "b", "c"]


def test_no_word_of_a_drawing_is_too_small_to_read(ax):
    plotting.box(ax, 0.1, 0.1, 1.0, 0.5, "box")
    assert len(ax.texts) == 1
    assert min(t.get_fontsize() for t in ax.texts) >= 7


def test_a_profile_counts_tasks(ax):
    """Half of the tasks of `a` are at 0.5; its lost one is drawn at the largest factor."""
    ratio = pd.DataFrame({"optimizer": ["a", "a", "b", "b"], "ratio": [np.inf, 0.5, 1.0, 2.0]})
    plotting.profile(ax, ratio, last=5.0)
    a, b = ([list(x) for x in line.get_data()] for line in ax.lines[:2])
    assert a == [[0.5, 5.0], [0.5, 1.0]]
    assert b == [[1.0, 2.0], [0.5, 1.0]]
    assert ax.get_xscale() == "log"
