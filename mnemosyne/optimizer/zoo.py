"""Meta-trained weights that ship inside the package: safetensors files, each with a card."""

import difflib
import hashlib
from importlib import resources
from pathlib import Path

import jax
import optax

from mnemosyne import store
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.transform import check_theta
from mnemosyne.types import Learned, Theta


def folder() -> Path:
    """Where the package keeps its weights."""
    return Path(str(resources.files("mnemosyne.optimizer"))) / "weights"


def shipped() -> list[str]:
    """Names that have a weights file."""
    return sorted(path.stem for path in folder().glob("*.safetensors"))


def available() -> list[str]:
    """Names `pretrained` knows: those, and the optimizers that are put together of them."""
    have = set(shipped())
    return sorted(name for name in OPTIMIZERS if have.issuperset(parts_of(name)))


def parts_of(name: str) -> list[str]:
    """Names of the weights files that a name takes its weights from."""
    return [part.split("/")[0] for part in jax.tree.leaves(OPTIMIZERS[name].parts or name)]


def pretrained(name: str = "paced", step_size: optax.ScalarOrSchedule = 1.0) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer of weights that ship with the package; nothing to tune.

    Args:
        name: "paced", the recommended one: a light memory for the direction, a law for the step's size. Or
            "coordinate" (the paper's: two encoders of width 16, raw gradients, App. B.1), "odd" (the same size, odd by
            construction, normalised per tensor), "light" (one encoder of width 8, §5.3), "normalised" (the direction of
            "paced" alone), "tensor" (a memory for each tensor, §3.2), "tensor_averaged" (of averaged gradients) and
            "tensor_paced" (that at a learned pace, with half of Adam's state), "super" (light on the largest tensors,
            tensor-wise on the others, §5.4) and "super_paced", "hybrid" (light, with Adam on biases and gains, §5.2),
            or a peer: "lstm", "s4", and "velo_lstm" and "velo_cam", whose `update` asks for `value=loss` and
            `horizon=steps`.
        step_size: a factor on every update, or a schedule of it; 1 is what was meta-trained.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `optimizer.from_rule` says what it does and raises.

    Raises:
        ValueError: an unknown name; the message suggests the nearest.
        store.StoreError: a damaged weights file.

    Example:
        tx = mnemosyne.pretrained()
        state = tx.init(params)
        updates, state = tx.update(grads, state)
        params = optax.apply_updates(params, updates)
    """
    files_of(name)  # an unknown name is an error
    learned = OPTIMIZERS[name].learned
    theta = jax.tree.map(load_part, OPTIMIZERS[name].parts or name)
    check_theta(theta, learned.init, f"{name!r}")
    return optax.chain(learned.make(theta), optax.scale_by_learning_rate(step_size, flip_sign=False))


def path_of(name: str) -> Path:
    """The weights file of a name that has one; a ValueError suggests a near one."""
    return _known(name, shipped())


def files_of(name: str) -> list[Path]:
    """The weights file of a name, or those of its parts; a ValueError suggests a near name."""
    _known(name, available())
    return [path_of(part) for part in parts_of(name)]


def _known(name: str, names: list[str]) -> Path:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no weights named {name!r}{hint} There are: {', '.join(names)}.")
    return folder() / f"{name}.safetensors"


def digest(name: str) -> str:
    """SHA-256 of a name's weights, of its parts' one after another."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in files_of(name))).hexdigest()


def card(name: str) -> str:
    """The card of shipped weights: what they were trained on, by which command, and how they did."""
    cards = [path.with_suffix(".md").read_text(encoding="utf-8") for path in files_of(name)]
    made_of = f"# {name}\n\nPut together of the weights below; nothing of it was meta-trained together.\n\n"
    return (made_of if OPTIMIZERS[name].parts else "") + "\n".join(cards)


def training_log(name: str) -> "pd.DataFrame":
    """The meta-training log of shipped weights, one row per chunk of iterations."""
    import pandas as pd  # of an extra

    return pd.read_csv(path_of(name).with_suffix(".csv"))


def load_part(part: str) -> Theta:
    """Shipped weights, or the branch b of those of a: "a/b"."""
    name, *branch = part.split("/")
    theta, _ = load_weights(path_of(name))
    for key in branch:
        theta = theta[key]
    return theta


def load_weights(path: Path) -> tuple[Theta, Learned]:
    """Read weights and the architecture they were made for.

    Raises:
        store.StoreError: if the file is damaged, names no known architecture, or its arrays do not fit it.
    """
    _, metadata = store.read(path)
    name = metadata.get("architecture")
    if name not in OPTIMIZERS:
        raise store.StoreError(
            f"{path} names the architecture {name!r} in its header; this version knows {', '.join(OPTIMIZERS)}"
        )
    learned = OPTIMIZERS[name].learned
    return store.load_tree(path, jax.eval_shape(learned.init, jax.random.key(0))), learned


def save_weights(path: Path, theta: Theta, architecture: str, **about: str) -> None:
    """Write weights with the name of their architecture, and further strings, in the header."""
    store.save_tree(path, theta, {"architecture": architecture, **about})
