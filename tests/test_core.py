"""What the optimizer needs is what the project requires, and no extra: checked where nothing else is installed."""

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mnemosyne.book import folders
from mnemosyne.optimizer import zoo

ROOT = folders.root()
REQUIRED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]

TRAIN = """
import importlib, pkgutil
import jax, jax.numpy as jnp, optax
import mnemosyne, mnemosyne.memory, mnemosyne.optimizer, mnemosyne.store, mnemosyne.theory, mnemosyne.types

for room in (mnemosyne.memory, mnemosyne.optimizer, mnemosyne.theory):
    for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)

x = jax.random.normal(jax.random.key(0), (32, 4))
y = jnp.sin(x).sum(axis=1, keepdims=True)
params = {"in": 0.5 * jax.random.normal(jax.random.key(1), (4, 8)), "out": jnp.zeros((8, 1))}
loss = lambda p: jnp.mean((jnp.tanh(x @ p["in"]) @ p["out"] - y) ** 2)
tx = mnemosyne.pretrained()

def step(carry, _):
    params, state = carry
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = tx.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), value

_, losses = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=50))(params)
print(float(losses[0]), float(losses[-1]))
"""


def closure(texts):
    """Names of the distributions that requirements lead to here."""
    names, stack = set(), [(Requirement(text), {""}) for text in texts]
    while stack:
        r, extras = stack.pop()
        if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in extras):
            name, asked = canonicalize_name(r.name), {"", *r.extras}
            if (name, *sorted(asked)) not in names:
                names.add((name, *sorted(asked)))
                stack += [(Requirement(text), asked) for text in metadata.requires(name) or []]
    return {name for name, *_ in names}


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Run Python with a folder of links, to the required packages and to this one, in the place of site-packages."""
    site = tmp_path_factory.mktemp("site")
    (site / "mnemosyne").symlink_to(ROOT / "mnemosyne")
    for name in closure(REQUIRED):
        for file in metadata.files(name):
            top = site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not top.exists():
                top.symlink_to(Path(file.locate()).parents[len(file.parts) - 2] if file.parts[1:] else file.locate())

    def python(*args):
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(site)}
        command = [sys.executable, "-S", *args]
        return subprocess.run(command, cwd=site, env=environment, capture_output=True, check=False, encoding="utf-8")

    return python


def test_the_core_is_small():
    core = closure(REQUIRED)
    assert {"jax", "optax", "safetensors"} <= core
    assert not core & {"flax", "pandas", "matplotlib", "scikit-learn", "tyro", "tokenizers", "tensorflow-datasets"}
    assert len(core) + 1 == 12  # with the package itself, as README says


def test_a_network_trains_with_the_core_alone(core):
    done = core("-c", TRAIN)
    assert done.returncode == 0, done.stderr
    first, last = map(float, done.stdout.split())
    assert last < 0.8 * first


def test_a_card_is_printed_with_the_core_alone(core):
    card = core("-m", "mnemosyne", "weights", "card")
    assert card.stdout.strip() == zoo.card(zoo.RECOMMENDED).strip(), card.stderr
    listed = core("-m", "mnemosyne", "weights", "list")
    assert listed.stdout.startswith("coordinate"), listed.stderr


EXTRA_OF = {"reproduce": "book", "publish": "book", "meta-train": "book", "search": "book", "data list": "tasks"}


@pytest.mark.parametrize("command", EXTRA_OF)
def test_a_command_says_which_extra_is_missing(core, command):
    done = core("-m", "mnemosyne", *command.split())
    assert done.returncode == 1
    assert done.stderr.startswith(f"mnemosyne {command.split()[0]} needs ")
    assert done.stderr.endswith(f"which is not installed: pip install 'mnemosyne-optimizer[{EXTRA_OF[command]}]'\n")
    assert core("-c", "import pandas").returncode == 1
