"""Updates of the learned optimizers of Metz et al. 2022 as their authors' released package makes them.

Run by a Python that has the wheel, which needs old names of JAX and two packages that do nothing here:

    pip install --no-deps learned-optimization==0.0.1
    pip install jax flax optax dm-haiku gin-config absl-py chex tqdm
    python tests/optimizer/oracle.py golden.npz

`setting`, `weights` and `gradients` are what both sides are given; they need NumPy alone.
"""

import sys
import types
from pathlib import Path

import numpy as np

SHAPES = {"a": (), "b": (5,), "c": (3, 4), "d": (2, 3, 4), "e": (2, 3, 2, 3), "one": (1,), "flat": (4, 1)}
"""Ranks zero to four, one element, and a factored axis of one."""

STEPS = 50

WEIGHTS = {
    "small_fc": {
        "w0": (39, 4), "b0": (4,), "w1": (4, 4), "b1": (4,), "w2": (4, 2), "b2": (2,),
        "momenta": (3,), "second": (1,), "factored": (3,),
    },
    "fc": {"w0": (19, 32), "b0": (32,), "w1": (32, 32), "b1": (32,), "w2": (32, 2), "b2": (2,)},
    "nn_adam": {
        "h": (1, 32), "c": (1, 32), "lstm_w": (51, 128), "lstm_b": (128,), "control_w": (32, 4), "control_b": (4,),
        "rate": (), "beta1": (), "beta2": (), "epsilon": (),
    },
    "rnn_fc": {
        "h": (1, 64), "c": (1, 64), "lstm_w": (116, 256), "lstm_b": (256,), "shared": (18,), "heard": (16,),
        "to_network_w": (64, 17), "to_network_b": (17,), "to_memories_w": (64, 18), "to_memories_b": (18,),
        "w0": (54, 32), "b0": (32,), "w1": (32, 32), "b1": (32,), "w2": (32, 18), "b2": (18,),
    },
}  # fmt: skip
"""The shapes of each one's weights."""


def setting(seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters to start from; small ones, since theirs returns parameters and updates are differences of these."""
    rng = np.random.default_rng(seed)
    return {name: (0.01 * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Of a step, each tensor's of another size, shrinking."""
    rng = np.random.default_rng([1, step])
    sizes = dict(zip(SHAPES, 10.0 ** np.arange(-2, 5) / (1 + step / 10), strict=True))
    return {name: (sizes[name] * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def loss(step: int) -> float:
    """Of a step."""
    return 1.0 / (1.0 + step)


def weights(name: str) -> dict[str, np.ndarray]:
    """Drawn for the comparison: large enough that every input matters."""
    rng = np.random.default_rng([2, len(name)])
    drawn = {}
    for key, shape in WEIGHTS[name].items():
        size = 0.02 if key in ("momenta", "second", "factored") else 1.0 / np.sqrt(shape[0]) if len(shape) > 1 else 0.1
        drawn[key] = (size * rng.normal(size=shape)).astype(np.float32)
    if name == "nn_adam":
        logs = {"rate": 1e-3, "beta1": 1 - 0.9, "beta2": 1 - 0.99, "epsilon": 1e-6}
        drawn |= {key: np.float32(0.1 * np.log(x)) for key, x in logs.items()}
    return drawn


def old_names() -> None:
    """Give JAX and Flax the names of 2022, and TensorFlow an empty stand-in."""
    import flax
    import jax

    for name in ("map", "leaves", "flatten", "unflatten", "structure"):
        setattr(jax, f"tree_{name}", getattr(jax.tree_util, f"tree_{name}"))
    jax.tree_multimap = jax.tree_util.tree_map
    for name in ("flax.metrics", "flax.metrics.tensorboard", "tensorflow", "tensorflow.compat", "tensorflow.compat.v2"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["flax.metrics.tensorboard"].SummaryWriter = object
    sys.modules["flax.metrics"].tensorboard = sys.modules["flax.metrics.tensorboard"]
    sys.modules["tensorflow.compat.v2"].enable_v2_behavior = lambda: None
    sys.modules["tensorflow.compat"].v2 = sys.modules["tensorflow.compat.v2"]
    flax.metrics = sys.modules["flax.metrics"]


def as_head_has_it() -> types.ModuleType:
    """small_fc's module with the one line in which the repository differs from the wheel: 1/√(v + 1e-6) of vectors."""
    from learned_optimization.learned_optimizers import mlp_lopt

    path = Path(mlp_lopt.__file__).with_name("adafac_mlp_lopt.py")
    text, released, corrected = path.read_text(encoding="utf-8"), "(fac_vec_v)**-0.5", "(fac_vec_v + 1e-6)**-0.5"
    if released not in text:
        raise ValueError(f"{path} is not that of learned-optimization 0.0.1")
    module = types.ModuleType("adafac_mlp_lopt")
    sys.modules[module.__name__] = module
    exec(compile(text.replace(released, corrected), str(path), "exec"), module.__dict__)
    return module


def theirs(name: str) -> tuple:
    """(their optimizer, its weights as they hold them)."""
    from learned_optimization.learned_optimizers import mlp_lopt, nn_adam, rnn_mlp_lopt

    w = weights(name)
    cell = lambda: {"rnn/linear": {"w": w["lstm_w"], "b": w["lstm_b"]}}
    mlp = lambda: {f"mlp/~/linear_{i}": {"w": w[f"w{i}"], "b": w[f"b{i}"]} for i in range(3)}
    linear = lambda module, key: {module: {"w": w[f"{key}_w"], "b": w[f"{key}_b"]}}
    if name == "small_fc":
        learned, decays = as_head_has_it().AdafacMLPLOpt(), ("momentum", "rms", "adafactor")
        theta = {f"{a}_decays": w[b] for a, b in zip(decays, ("momenta", "second", "factored"), strict=True)}
        theta["nn"] = {"~": {key: w[key] for key in ("w0", "b0", "w1", "b1", "w2", "b2")}}
    elif name == "fc":
        learned, theta = mlp_lopt.MLPLOpt(compute_summary=False), mlp()
    elif name == "nn_adam":
        import haiku as hk

        learned = nn_adam.NNAdam()
        per_layer = {"lr": "rate", "beta1": "beta1", "beta2": "beta2", "epsilon": "epsilon"}
        theta = {f"per_layer_{a}": w[b] for a, b in per_layer.items()}
        theta |= {"lstm_init_state": hk.LSTMState(w["h"], w["c"]), "rnn_params": cell()}
        theta["rnn_to_controls_params"] = linear("rnn_to_controls", "control")
    else:
        import haiku as hk

        learned = rnn_mlp_lopt.RNNMLPLOpt()
        theta = {"initial_from_lstm": w["shared"], "initial_from_mlp": w["heard"], "rnn_params": cell()}
        theta |= {"lstm_init_state": hk.LSTMState(w["h"], w["c"]), "ffmod_params": mlp()}
        theta["rnn_to_ff_params"] = linear("rnn_to_ff", "to_network")
        theta["rnn_to_in_params"] = linear("rnn_to_in", "to_memories")
    return learned, theta


def updates(name: str) -> dict[str, np.ndarray]:
    """All updates, tensors by name: [steps *shape]."""
    import jax
    import jax.numpy as jnp

    learned, theta = theirs(name)
    theta = jax.tree_util.tree_map(jnp.asarray, theta)
    tx = learned.opt_fn(theta)
    state = tx.init(jax.tree_util.tree_map(jnp.asarray, setting()), num_steps=STEPS)
    made = []
    for t in range(STEPS):
        # Not compiled: today's XLA makes 0 of 1 − β⁰ + 1e-8, and NaN of rnn_fc's validation loss.
        after = tx.update(state, gradients(t), loss(t))
        made.append(jax.tree_util.tree_map(lambda new, old: np.asarray(new - old), after.params, state.params))
        state = after
    return {key: np.stack([step[key] for step in made]) for key in SHAPES}


if __name__ == "__main__":
    old_names()
    np.savez_compressed(sys.argv[1], **{f"{name}/{key}": x for name in WEIGHTS for key, x in updates(name).items()})
