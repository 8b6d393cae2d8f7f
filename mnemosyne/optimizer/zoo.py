"""Meta-trained weights that ship inside the package: safetensors files, each with a card, and their SHA-256."""

import difflib
import hashlib
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike

from mnemosyne import store
from mnemosyne.memory.contract import is_traced
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.transform import check_theta, foreign
from mnemosyne.types import Learned, Theta


def folder() -> Path:
    """Where the package keeps its weights."""
    return Path(str(resources.files("mnemosyne.optimizer"))) / "weights"


RECOMMENDED = "slim"
"""What `pretrained()` is."""

SUMS = "SHA256SUMS"
"""Beside the weights: the SHA-256 of each file, as `sha256sum` writes it. `load_weights` compares."""


def shipped() -> list[str]:
    """Names that have a weights file."""
    return sorted(Path(file).stem for file in sums())


def sums() -> dict[str, str]:
    """The SHA-256 that each shipped file must have, by the file's name.

    Raises:
        store.StoreError: if the list is not there or not whole.
    """
    path = folder() / SUMS
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        known = {file: digest for digest, file in lines}
    except (OSError, ValueError) as error:
        raise store.StoreError(f"{path} is missing or damaged ({error}). {_ANEW}") from error
    if not known or any(len(digest) != 64 for digest in known.values()):
        raise store.StoreError(f"{path} is damaged: a line is a SHA-256 and a file's name. {_ANEW}")
    return known


_ANEW = "Install mnemosyne-optimizer anew; in a checkout, `git checkout mnemosyne/optimizer/weights` brings it back."


def available() -> list[str]:
    """Names `pretrained` knows: those, and the optimizers that are put together of them."""
    have = set(shipped())
    return sorted(name for name in OPTIMIZERS if have.issuperset(parts_of(name)))


def parts_of(name: str) -> list[str]:
    """Names of the weights files that a name takes its weights from."""
    return [part.split("/")[0] for part in jax.tree.leaves(OPTIMIZERS[name].parts or name)]


def pretrained(
    name: str = RECOMMENDED,
    step_size: float | int | ArrayLike | Callable = 1.0,
    weight_decay: float | int | Array | None = None,
    mask: Any = None,
    steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer of weights that ship with the package; nothing to tune.

        x ← x + s_t ( u_t − λ x )

    Updates are to be *added*: what stands behind them in an `optax.chain` must neither negate them
    (`optax.scale_by_learning_rate`) nor decay weights (`optax.add_decayed_weights`, which behind these updates makes
    weights grow). `weight_decay` does that rightly; `scale_by_pretrained` gives the form that such chains expect.
    Clipping belongs before, a schedule into `step_size` or behind.

    Args:
        name: "slim", the recommended one: Adam's step and state, and a learned law for the step's size. Or "paced" (a
            light memory for the direction, such a law for the step's size), "coordinate" (the paper's: two encoders of
            width 16, raw gradients, App. B.1), "odd" (the same size, odd by construction, normalised per tensor),
            "light" (one encoder of width 8, §5.3), "normalised" (the direction of "paced" alone), "tensor" (a memory
            for each tensor, §3.2), "tensor_averaged" (of averaged gradients) and "tensor_paced" (that at a learned
            pace, with half of Adam's state), "super" (light on the largest tensors, tensor-wise on the others, §5.4)
            and "super_paced", "hybrid" (light, with Adam on biases and gains, §5.2), or a peer: "lstm", "s4";
            "small_fc" and "nn_adam", whose `update` needs the parameters; "velo_lstm" and "velo_cam", whose `update`
            needs the parameters, `value=loss` and `horizon=steps`.
        step_size: s, a factor on every update, or a schedule of it; 1 is what was meta-trained.
        weight_decay: λ in [0, 1), the share of each weight that a step takes away. It is AdamW's learning rate times
            its decay: 1e-3 · 0.1 there is 1e-4 here. `update` then needs the parameters. None by default.
        mask: which tensors decay, as of `optax.add_decayed_weights`; all by default.
        steps: how many steps training will take, where that is known. Updates then shrink to nothing towards the last
            one, see `ending`, which is multiplied with `step_size`. None by default: training may end at any time.

    Returns:
        An `optax.GradientTransformationExtraArgs`; `optimizer.from_rule` says what it does and raises. Layers that are
        stacked in one array, as `scan` over layers wants them, count as one tensor: see `optimizer.stacked`.

    Raises:
        ValueError: an unknown name, with the nearest; a step size or a decay that is none; a mask without a decay.
        store.StoreError: a damaged weights file.

    Example:
        tx = mnemosyne.pretrained(weight_decay=1e-4, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
        state = tx.init(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    """
    files_of(name)  # an unknown name is an error
    check_step_size(step_size)
    learned = OPTIMIZERS[name].learned
    theta = jax.tree.map(load_part, OPTIMIZERS[name].parts or name)
    check_theta(theta, learned.init, f"{name!r}")
    factor = optax.scale_by_learning_rate(step_size if steps is None else ending(steps, step_size), flip_sign=False)
    if weight_decay is None and mask is not None:
        raise ValueError("mask says which tensors decay: give weight_decay as well, or leave mask out")
    decay = optax.identity() if weight_decay is None else take_share(weight_decay, mask)
    return of_three(optax.chain(learned.make(theta), decay, factor))


def of_three(chain: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A chain of three that tells a state that is not its own in words of its user, who made no chain."""

    def update(updates, state, params=None, **extra):
        if not isinstance(state, tuple | list) or len(state) != 3:
            raise foreign(state)
        return chain.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(chain.init, update)


def take_share(weight_decay: float | int | Array, mask: Any = None) -> optax.GradientTransformation:
    """Take a share of each weight away beside updates that are to be added: u − λ x."""
    check_decay(weight_decay)
    decay = optax.add_decayed_weights(-weight_decay, mask)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("weight_decay needs the parameters: call tx.update(grads, state, params)")
        return decay.update(updates, state, params)

    return optax.GradientTransformation(decay.init, update)


def scale_by_pretrained(name: str = RECOMMENDED) -> optax.GradientTransformationExtraArgs:
    """The updates of `pretrained` with the sign that optax's `scale_by_…` have, for a chain of one's own.

        optax.chain(scale_by_pretrained("light"), optax.add_decayed_weights(1e-4), optax.scale_by_learning_rate(1.0))

    is `pretrained("light", weight_decay=1e-4)`: the rate 1 is what was meta-trained.

    Args:
        name: as of `pretrained`.

    Returns:
        A transformation whose updates are to be *subtracted*; `scale_by_learning_rate` does so.

    Raises:
        ValueError: an unknown name.
    """
    return optax.chain(pretrained(name), optax.scale(-1.0))


def check_step_size(step_size: Any) -> None:
    """Raise a ValueError unless this is a finite number ≥ 0, a scalar array, or a schedule that returns such."""
    right = "a finite number ≥ 0, or a schedule: a function from the count of steps to one"
    if callable(step_size):
        try:
            returned = jax.eval_shape(step_size, jax.ShapeDtypeStruct((), jnp.int32))
        except TypeError as error:
            raise ValueError(f"step_size must be {right}; this function does not return a number: {error}") from error
        leaves = jax.tree.leaves(returned)
        if len(leaves) != 1 or leaves[0].shape != () or not jnp.issubdtype(leaves[0].dtype, jnp.number):
            raise ValueError(f"step_size must be {right}; this function returns {returned}")
        return
    if isinstance(step_size, jax.Array) and step_size.shape == ():
        if is_traced(step_size):
            return
        step_size = step_size.item()
    if not _is_number(step_size) or not 0 <= step_size < math.inf:
        raise ValueError(f"step_size must be {right}; got {step_size!r}")


def ending(steps: Any, step_size: float | int | ArrayLike | Callable = 1.0) -> Callable:
    """A schedule that brings updates to nothing at the last of n steps: s_t √(1 + 10τ) (1 − τ), τ = t/n.

    The root gives back some of what weights take away that must be good at any time: their steps shrink already, as if
    each were the last. The two were chosen among eleven such curves on the validation tasks.

    Raises:
        ValueError: if `steps` is no whole number ≥ 1.
    """
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be a whole number ≥ 1, the steps that training will take; got {steps!r}")

    def schedule(count):
        share = jnp.clip(count / steps, 0.0, 1.0)
        usual = step_size(count) if callable(step_size) else step_size
        return usual * jnp.sqrt(1.0 + 10.0 * share) * (1.0 - share)

    return schedule


def check_decay(weight_decay: Any) -> None:
    """Raise a ValueError unless this is a number in [0, 1), or a traced one."""
    if not is_traced(weight_decay) and not (_is_number(weight_decay) and 0 <= weight_decay < 1):
        raise ValueError(
            f"weight_decay must be a number in [0, 1), the share of each weight that a step takes away (AdamW's "
            f"learning rate times its decay); got {weight_decay!r}"
        )


def _is_number(x: Any) -> bool:
    """Whether this is a real number, of Python, or an array of one number."""
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        return (
            x.shape == () and jnp.issubdtype(x.dtype, jnp.number) and not jnp.issubdtype(x.dtype, jnp.complexfloating)
        )
    return isinstance(x, int | float) and not isinstance(x, bool)


def path_of(name: str) -> Path:
    """The weights file of a name that has one; a ValueError suggests a near one."""
    return _known(name, shipped())


def files_of(name: str) -> list[Path]:
    """The weights file of a name, or those of its parts; a ValueError suggests a near name."""
    _known(name, available())
    return [path_of(part) for part in parts_of(name)]


def _known(name: Any, names: list[str]) -> Path:
    if not isinstance(name, str):
        raise ValueError(
            f"what comes first is a name, such as {RECOMMENDED!r}, got {name!r}. There is no learning rate to give; "
            "step_size is a factor on every update, 1 by default"
        )
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
        store.StoreError: if the file is damaged, names no known architecture, or its arrays do not fit it; of the files
            that ship with the package, if it is not the one that ships, byte for byte, or names another architecture
            than its own.
    """
    if path.parent == folder():
        _check_shipped(path)
    arrays, metadata = store.read(path)
    name = metadata.get("architecture")
    if path.parent == folder() and name != path.stem:
        raise store.StoreError(f"{path} holds weights of {name!r}, not of {path.stem!r}. {_ANEW}")
    if name not in OPTIMIZERS:
        raise store.StoreError(
            f"{path} names the architecture {name!r} in its header; this version knows {', '.join(OPTIMIZERS)}"
        )
    learned = OPTIMIZERS[name].learned
    return store.fill(path, arrays, jax.eval_shape(learned.init, jax.random.key(0))), learned


def _check_shipped(path: Path) -> None:
    wanted = sums().get(path.name, f"none, since {SUMS} beside it has no line for it")
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise store.StoreError(
            f"{path}, which ships with the package, cannot be read: {error.strerror}. {_ANEW}"
        ) from error
    if found != wanted:
        raise store.StoreError(
            f"{path} is not the file that ships with the package: its SHA-256 is {found}, should be {wanted}. {_ANEW}"
        )


def save_weights(path: Path, theta: Theta, architecture: str, **about: str) -> None:
    """Write weights with the name of their architecture, and further strings, in the header."""
    store.save_tree(path, theta, {"architecture": architecture, **about})
