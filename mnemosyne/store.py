"""Pytrees of arrays in safetensors files: written whole or not at all, read against a template."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


class StoreError(Exception):
    """A file that is damaged or holds something else than was asked for."""


def names(tree: Any) -> list[str]:
    """A unique name per leaf, its path: 'encoders.0.memory.query.w'."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def save_tree(path: Path, tree: Any, metadata: dict[str, str] | None = None) -> None:
    """Save a pytree of arrays; an interrupted write leaves the file as it was.

    Args:
        path: a `.safetensors` file in a folder that exists.
        tree: arrays of any floating-point, integer or boolean dtype NumPy has.
        metadata: strings kept in the file's header.
    """
    arrays = dict(zip(names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({k: np.asarray(a, order="C") for k, a in arrays.items()}, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_tree(path: Path, like: Any) -> Any:
    """Load a pytree saved by `save_tree`.

    Args:
        path: the file.
        like: a pytree of arrays or shapes with the structure to fill.

    Raises:
        StoreError: if the file is damaged, or lists every name, shape and dtype that differs from `like`.
    """
    arrays, _ = read(path)
    leaves = jax.tree.leaves(like)
    wanted = {n: (tuple(x.shape), np.dtype(x.dtype)) for n, x in zip(names(like), leaves, strict=True)}
    found = {n: (a.shape, a.dtype) for n, a in arrays.items()}
    if found != wanted:
        differing = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        lines = [f"  {n}: {found.get(n, 'missing')}, wanted {wanted.get(n, 'nothing')}" for n in differing]
        raise StoreError(f"{path} does not hold what was asked for:\n" + "\n".join(lines))
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[n]) for n in names(like)])


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file: (arrays by name, metadata). Raises `StoreError` if it is damaged."""
    try:
        with safe_open(path, framework="numpy") as f:
            return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise StoreError(f"{path} is damaged or no safetensors file: {error}") from error
