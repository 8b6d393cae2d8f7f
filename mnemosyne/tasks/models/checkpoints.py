"""Public checkpoints of ViT, BERT and T5 v1.1 as parameters of the models here, a leaf at a time.

A checkpoint is what the `transformers` library saves: `model.safetensors`, or shards with an index. Nothing is
downloaded. No more than one tensor is in the host's memory at a time, whatever the size of the model.

t5 = T5["xxl"].clone(dtype=jnp.bfloat16)
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), shapes(t5))
params = load_checkpoint(folder, T5_NAMES, like, place=onto(shardings), stored=jnp.float32)
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from mnemosyne.store import StoreError, names
from mnemosyne.tasks.files import File, local, read_text, whole
from mnemosyne.tasks.models.misfit import DTYPES, Tensor, misfit
from mnemosyne.tasks.models.public import BERT_NAMES, T5_NAMES, TIED, VISION_NAMES, Names, Stored
from mnemosyne.types import Params

__all__ = ["BERT_NAMES", "T5_NAMES", "VISION_NAMES", "Names", "Place", "Stored", "load_checkpoint", "onto", "to_device"]

Place = Callable[[str, np.ndarray], Any]  # (a leaf's name, its values) → the array to keep
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, OTHERS = (".bin", ".pt", ".pth", ".ckpt"), (".msgpack", ".h5", ".npz")
"""Endings of checkpoints that are no safetensors files."""
ROWS = 1_024  # of two tensors compared at a time


def onto(shardings: Any) -> Place:
    """Place every leaf as a tree of `jax.sharding.Sharding`, shaped like the parameters, says.

    Raises:
        ValueError: when a leaf is placed for which there is no sharding.
    """
    where = dict(zip(names(shardings), jax.tree.leaves(shardings), strict=True))

    def place(name: str, leaf: np.ndarray) -> jax.Array:
        if name not in where:
            raise ValueError(f"no sharding for {name!r}; the tree of shardings must have a leaf for each of `like`")
        return jax.device_put(leaf, where[name])

    return place


def to_device(name: str, leaf: np.ndarray) -> jax.Array:
    """Place a leaf whole on the default device."""
    del name
    return jnp.asarray(leaf)


def load_checkpoint(
    path: File,
    names_of: Names,
    like: Params,
    place: Place = to_device,
    stored: DTypeLike | tuple[DTypeLike, ...] | None = None,
    unused: tuple[str, ...] | str = (),
) -> Params:
    """Load a public checkpoint, one leaf after the other.

    Args:
        path: a `.safetensors` file, or a folder with `model.safetensors` or with shards and their index.
        names_of: `VISION_NAMES`, `BERT_NAMES` or `T5_NAMES`.
        like: the parameters to fill, arrays or shapes, as `transformer.shapes` gives them.
        place: makes an array on a device, or on several, of a leaf in host memory; see `onto`.
        stored: dtype of the checkpoint, if it is another than that of `like`, to which values are then rounded. Several
            for a checkpoint of mixed dtypes.
        unused: patterns of further tensors' names to pass over, such as r"classifier\\..*" for a new head.

    Returns:
        A tree like `like` of what `place` returned.

    Raises:
        StoreError: if a file is missing or damaged, or with a few of the names, shapes and dtypes of each kind that
            are not as they should be, and what to write to load the checkpoint; both before anything is placed. Also
            if a tensor that is kept twice has two values, or a value is too large for the dtype of `like`.
    """
    path = local(path)
    wanted = {
        name: (names_of.stored(name, len(leaf.shape)), leaf)
        for name, leaf in zip(names(like), jax.tree.leaves(like), strict=True)
    }
    with _opened(path) as files:
        found = _tensors(files, names_of)
        _compare(path, found, wanted, names_of, stored, unused)
        _compare_copies(path, found, names_of)
        leaves = [_placed(place, name, found, *wanted[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _placed(place: Place, name: str, found: dict, stored: Stored, leaf: Any) -> Any:
    file, key = found[stored.name]
    # Waiting frees the host's copy before the next tensor is read.
    return jax.block_until_ready(place(name, stored.load(_rounded(key, file.get_tensor(key), leaf.dtype))))


def _rounded(key: str, values: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # which is looked for
        rounded = values.astype(dtype, copy=False)
    if rounded is not values and np.isinf(rounded).sum() > np.isinf(values).sum():
        raise StoreError(f"{key} has values beyond {jnp.finfo(dtype).max}, the largest of {jnp.dtype(dtype).name}")
    return rounded


@contextmanager
def _opened(path: Path) -> Iterator[list[Any]]:
    """All files of a checkpoint, mapped and not read."""
    listed = _parts(path)
    with ExitStack() as stack:
        files = []
        for part, held in listed.items():
            try:
                file = stack.enter_context(safe_open(whole(part), framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise StoreError(f"{part} is damaged or no safetensors file: {error}{_other(part)}") from error
            if lost := sorted(held - set(file.keys())):
                more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
                raise StoreError(f"{part} lacks {lost[0]}{more}, which {INDEX} says it holds: download both again")
            files.append(file)
        yield files


def _parts(path: Path) -> dict[Path, set[str]]:
    """The files of a checkpoint, each with the tensors that an index says it holds."""
    if not path.is_dir():
        return {path: set()}
    if _there(path / SINGLE):
        return {path / SINGLE: set()}
    if not _there(path / INDEX):
        raise StoreError(f"{path} holds neither {SINGLE} nor {INDEX}{_instead(path)}")
    parts: dict[Path, set[str]] = {}
    try:
        for name, part in json.loads(read_text(path / INDEX))["weight_map"].items():
            if Path(part).name != part:
                raise StoreError(f"{path / INDEX} names files outside its folder: {part}")
            parts.setdefault(path / part, set()).add(name)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StoreError(f"{path / INDEX} is damaged: {error!r}") from error
    if not parts:
        raise StoreError(f"{path / INDEX} is damaged: it names no tensor")
    return dict(sorted(parts.items()))


def _there(path: Path) -> bool:
    """Whether there is a file, or a link whose end is missing, which is named later."""
    return path.exists() or path.is_symlink()


def _instead(folder: Path) -> str:
    """What a folder holds that could be meant, and what to write then."""
    for depth in ("", "*/", "*/*/"):
        if found := sorted(folder.glob(f"{depth}*.safetensors")):
            return f": is {found[0] if len(found) == 1 and not depth else found[0].parent} meant?"
    others = sorted(p for p in folder.glob("*model*") if p.suffix in (*TORCH, *OTHERS))
    return _other(*others) if others else ": save the model with safetensors"


def _other(*paths: Path) -> str:
    """How a checkpoint of another format becomes one with safetensors."""
    if paths[0].suffix not in (*TORCH, *OTHERS):
        return ""
    begin = f"\n{paths[0].name} is of another format"
    if paths[0].suffix in OTHERS:
        return f"{begin}: load it with what wrote it, and save the model with safetensors"
    return f"""{begin}. Convert it once, where PyTorch is:
    import torch; from safetensors.torch import save_file
    tensors = {{}}
    for part in {[path.name for path in paths]}:
        tensors |= torch.load(part, map_location="cpu", weights_only=True)
    save_file({{name: x.clone().contiguous() for name, x in tensors.items()}}, "{SINGLE}")"""


def _tensors(files: list[Any], names_of: Names) -> dict[str, tuple[Any, str]]:
    """Where each tensor is: its name of today → (file, name there)."""
    found: dict[str, tuple[Any, str]] = {}
    for file in files:
        for key in file.keys():  # noqa: SIM118
            name = names_of.today(key)
            if name in found:
                raise StoreError(f"the checkpoint holds {name} twice: as {found[name][1]} and as {key}")
            found[name] = (file, key)
    for other, name in (*names_of.copies, *names_of.tied):
        if name not in found and other in found:
            found[name] = found.pop(other)
    return found


def _compare(
    path: Path, found: dict, wanted: dict, names_of: Names, stored: Any, unused: tuple[str, ...] | str
) -> None:
    def dtypes(leaf: Any) -> tuple[str, ...]:
        allowed = stored if isinstance(stored, tuple | list) else (leaf.dtype if stored is None else stored,)
        known = [jnp.dtype(dtype).name for dtype in allowed]
        return tuple(DTYPES.get(name, name) for name in known)

    should = {s.name: Tensor(s.shape(tuple(leaf.shape)), dtypes(leaf)) for s, leaf in wanted.values()}
    mine = (unused,) if isinstance(unused, str) else unused
    spare = [*names_of.unused, *mine, *(re.escape(copy) for copy, _ in names_of.copies)]
    have = {}
    for name, (file, key) in found.items():
        if name in should or not (_passed(name, spare) or _again(name, found, names_of)):
            tensor = file.get_slice(key)
            have[name] = Tensor(tuple(tensor.get_shape()), (tensor.get_dtype(),))
    if lines := misfit(have, should, {s.name: leaf for leaf, (s, _) in wanted.items()}, names_of):
        raise StoreError(f"{path} does not hold what was asked for:\n" + "\n".join(lines))
    for name in should:
        if _again(name, found, names_of):
            raise StoreError(f"{path}: {name} is the embedding once more.\n{TIED}")


def _passed(name: str, patterns: list[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _again(name: str, found: dict, names_of: Names) -> bool:
    """Whether a tensor that may be one of its own is another's copy."""
    return any(name == other and of in found and _equal(found[other], found[of]) for other, of in names_of.tied)


def _compare_copies(path: Path, found: dict, names_of: Names) -> None:
    for copy, name in names_of.copies:
        if copy in found and name in found and not _equal(found[copy], found[name]):
            raise StoreError(f"{path}: {copy} should be {name} once more, but differs from it")


def _equal(*places: tuple[Any, str]) -> bool:
    """Whether two tensors have the same values, a few rows at a time."""
    a, b = (file.get_slice(key) for file, key in places)
    if a.get_shape() != b.get_shape():
        return False
    cuts = (slice(i, min(i + ROWS, b.get_shape()[0])) for i in range(0, b.get_shape()[0], ROWS))
    return all(np.array_equal(a[cut], b[cut]) for cut in cuts)
