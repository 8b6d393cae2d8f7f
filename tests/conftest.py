"""Shape and dtype checks are on for every test; broadcasting across ranks is an error."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from jaxtyping import install_import_hook

with install_import_hook("mnemosyne", "beartype.beartype"):
    import mnemosyne

import jax
import matplotlib
import pytest

from mnemosyne.coordinate import COORDINATE, LIGHT, coordinate_rule
from mnemosyne.tasks import data

assert mnemosyne
matplotlib.use("Agg")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the time tests take


@pytest.fixture(params=[COORDINATE, LIGHT], ids=["coordinate", "light"])
def config(request):
    return request.param


@pytest.fixture
def theta(config):
    """Untrained weights: laws hold for any."""
    return coordinate_rule(config).init(jax.random.key(0))


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")
