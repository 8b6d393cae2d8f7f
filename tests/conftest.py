"""Shape and dtype checks are on for every test; broadcasting across ranks is an error."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

from jaxtyping import install_import_hook

with install_import_hook("mnemosyne", "beartype.beartype"):
    import mnemosyne

import jax
import matplotlib
import nbformat
import pytest

from mnemosyne.optimizer.rule import COORDINATE, LIGHT
from mnemosyne.tasks import data
from tests.helpers import rule_of

assert mnemosyne
matplotlib.use("Agg")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the time tests take


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """A process holds some 65,000 maps of memory, and compiled programs, three each, are not to use them up."""
    yield
    jax.clear_caches()


@pytest.fixture(params=[COORDINATE, LIGHT], ids=["coordinate", "light"])
def config(request):
    return request.param


@pytest.fixture
def theta(config):
    """Untrained weights: laws hold for any."""
    return rule_of(config).init(jax.random.key(0))


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


CELLS = {
    "01_good": 'from mnemosyne.book import open_run\nrun = open_run("01_good", scale, seed)\n'
    'run.claim("x", held=True, ours=f"seed {seed}")\nrun.claims()\nrun.close()',
    "02_bad": "print('before')\nraise RuntimeError('on purpose')",
}

CLAIMS = """[x]
paper = "mnemosyne"
says = "p"
rule = "r"
judge = "whole"
anywhere = true

[empirical]
paper = "memformers"
says = "better"
rule = "below {limit} in every cell; partly: in half"
judge = "all_or_half"
"""


def notebook(source):
    cells = [nbformat.v4.new_code_cell('scale: str = "quick"\nseed: int = 0'), nbformat.v4.new_code_cell(source)]
    cells[0].metadata["tags"] = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of two notebooks, of which the second fails, in the place of this one."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "mnemosyne").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/claims.toml").write_text(CLAIMS, encoding="utf-8")
    for name, source in CELLS.items():
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(nbformat.writes(notebook(source)), encoding="utf-8")
    monkeypatch.setenv("MNEMOSYNE_ROOT", str(tmp_path))
    for name in ("MNEMOSYNE_OUTPUT", "MNEMOSYNE_FORCE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path
