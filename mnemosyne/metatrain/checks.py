"""What a configuration must be, said where it is given. Fields of a batch of runs are traced, and pass."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def check_positive(config: Any, *names: str) -> None:
    """Raise a ValueError unless these fields are whole numbers of at least one."""
    for name in names:
        check_whole(name, getattr(config, name), 1)


def check_several(config: Any, *names: str) -> None:
    """Raise a ValueError unless these fields hold whole numbers of at least one, and one at least."""
    for name in names:
        if not getattr(config, name):
            raise ValueError(f"{name} must hold one at least")
        for number in getattr(config, name):
            check_whole(f"each of {name}", number, 1)


def check_above_zero(config: Any, *names: str) -> None:
    """Raise a ValueError unless these fields are finite numbers above zero."""
    _check_real(config, names, lambda number: number > 0, "above 0")


def check_not_negative(config: Any, *names: str) -> None:
    """Raise a ValueError unless these fields are finite numbers of at least zero."""
    _check_real(config, names, lambda number: number >= 0, "of at least 0")


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raise a ValueError unless a seed is a whole number below 2³²: other numbers give the key of one of these."""
    check_whole(name, seed, 0)
    if not isinstance(seed, jax.Array) and seed >= 2**32:
        raise ValueError(f"{name} must be below 2**32 = {2**32}, got {seed}")


def check_chunks(trainer: Any, config: Any) -> None:
    """Raise a ValueError unless a trainer, or a class of trainers, can run a configuration in whole chunks."""
    if config.iterations % trainer.chunk:
        raise ValueError(f"iterations must be a multiple of {trainer.chunk}, got {config.iterations}")


def check_whole(name: str, number: Any, least: int) -> None:
    """Raise a ValueError unless a field's value is a whole number of at least so much."""
    if isinstance(number, jax.Array):
        return
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
        raise ValueError(f"{name} must be a whole number, got {number!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")


def _check_real(config: Any, names: tuple[str, ...], fits: Callable[[Any], bool], wanted: str) -> None:
    for name in names:
        number = getattr(config, name)
        if isinstance(number, jax.Array):
            continue
        plain = isinstance(number, (int, float, np.number)) and not isinstance(number, bool)
        if not (plain and np.isfinite(number) and fits(number)):
            raise ValueError(f"{name} must be a finite number {wanted}, got {number!r}")
