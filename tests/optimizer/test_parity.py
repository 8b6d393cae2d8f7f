"""The learned optimizers of Metz et al. 2022 against the updates of their authors' package; see `oracle`."""

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.memory.recurrent import LSTMState, lstm
from mnemosyne.optimizer.controlled_adam import nn_adam
from mnemosyne.optimizer.hierarchical import rnn_fc
from mnemosyne.optimizer.perparameter import fc, small_fc
from tests.optimizer import oracle

GOLDEN = Path(__file__).parents[1] / "golden" / "tradeoffs.npz"
OURS = {"small_fc": small_fc(), "fc": fc(), "nn_adam": nn_adam(lstm(hidden=32)), "rnn_fc": rnn_fc(lstm(hidden=64))}


def ours(name):
    """The oracle's weights as ours hold them."""
    w = {key: jnp.asarray(x) for key, x in oracle.weights(name).items()}
    layers = [{"w": w[f"w{i}"], "b": w[f"b{i}"]} for i in range(3)] if "w0" in w else []
    if name == "small_fc":
        return {"layers": layers, "decays": {key: w[key] for key in ("momenta", "second", "factored")}}
    if name == "fc":
        return {"layers": layers}
    start, hidden = LSTMState(w["h"][0], w["c"][0]), w["h"].shape[1]
    memory = cell(w["lstm_w"], w["lstm_b"], hidden)
    both = lambda key: {"w": w[f"{key}_w"], "b": w[f"{key}_b"]}
    if name == "nn_adam":
        adam = jnp.stack([w[key] for key in ("rate", "beta1", "beta2", "epsilon")])
        return {"memory": memory, "start": start, "control": both("control"), "adam": adam}
    told = {key: both(key) for key in ("to_network", "to_memories")}
    return told | {"memory": memory, "start": start, "layers": layers, "shared": w["shared"], "heard": w["heard"]}


def cell(w, b, hidden):
    """Their LSTM, of one input and gates in the order i, g, f, o, as one of address and content, i, f, g, o."""
    reorder = lambda x: jnp.concatenate([jnp.split(x, 4, axis=-1)[i] for i in (0, 2, 1, 3)], axis=-1)
    w, inputs = reorder(w), len(w) - hidden
    return {
        "address": w[:inputs],
        "content": jnp.zeros_like(w[:inputs]),
        "hidden": w[inputs:],
        "bias": reorder(b).at[hidden : 2 * hidden].add(1.0),
        "out": {"w": jnp.eye(hidden), "b": jnp.zeros(hidden)},
    }


def updates(name, tx):
    """Ours on the same gradients, [steps *shape] for each tensor."""
    params = jax.tree.map(jnp.asarray, oracle.setting())
    update = jax.jit(lambda g, s, p, value: tx.update(g, s, p, value=value))
    state, made = tx.init(params), []
    for t in range(oracle.STEPS):
        step, state = update(oracle.gradients(t), state, params, oracle.loss(t))
        params = jax.tree.map(jnp.add, params, step)
        made.append(step)
    return {key: np.stack([step[key] for step in made]) for key in oracle.SHAPES}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as held:
        return dict(held)


@pytest.mark.parametrize("name", OURS)
def test_updates_are_the_authors(name, golden):
    theta, learned = ours(name), OURS[name]
    wanted = jax.eval_shape(lambda: learned.init(jax.random.key(0)))
    assert jax.tree.map(jnp.shape, theta) == jax.tree.map(jnp.shape, wanted)
    for key, u in updates(name, learned.make(theta)).items():
        theirs = golden[f"{name}/{key}"]
        # Theirs are differences of parameters, and as exact as these.
        assert np.abs(u - theirs).max() < 1e-5 * np.abs(theirs).max() + 5e-9, key


def test_weights_and_state_are_counted_as_in_the_paper():
    count = lambda theta: sum(x.size for x in jax.tree.leaves(theta))
    sizes = {name: count(learned.init(jax.random.key(0))) for name, learned in OURS.items()}
    assert sizes["small_fc"] == 197
    assert sizes["fc"] == 1_762
    # A memory takes a pattern as address and content, where their LSTM has one input, and has a read-out of its own.
    assert sizes["nn_adam"] == 6_856 + 19 * 4 * 32 + (32 + 1) * 32
    assert sizes["rnn_fc"] == 35_799 + 52 * 4 * 64 + (64 + 1) * 64
    params = {"w": jnp.zeros((1_000, 1_000))}
    held = {name: learned.make(learned.init(jax.random.key(0))).init(params) for name, learned in OURS.items()}
    per = {name: sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6 for name, state in held.items()}
    assert {name: round(x, 1) for name, x in per.items()} == {
        "small_fc": 16.0,
        "fc": 24.0,
        "nn_adam": 8.0,
        "rnn_fc": 40.0,
    }


@pytest.mark.slow
def test_golden_updates_are_what_the_authors_package_makes_today(golden, tmp_path):
    python = os.environ.get("MNEMOSYNE_ORACLE")
    if not python:
        pytest.skip(
            "MNEMOSYNE_ORACLE names no Python that has learned-optimization 0.0.1; see tests/optimizer/oracle.py"
        )
    path = tmp_path / "anew.npz"
    subprocess.run([python, oracle.__file__, path], check=True)
    with np.load(path) as anew:
        assert anew.keys() == golden.keys()
        for key, x in golden.items():
            assert np.allclose(anew[key], x, rtol=1e-5, atol=5e-9), key
