"""How a number came: versions, device, commit."""

import os
import platform
from importlib.metadata import version

import jax


def versions() -> str:
    """Versions of what numbers depend on, as one line."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)])


def device() -> str:
    """What computed: the accelerator's kind and number, or the cores this process may use."""
    first = jax.devices()[0]
    if first.platform == "cpu":
        affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
        cores = len(affinity(0)) if affinity else os.cpu_count()
        return f"{cores} {platform.machine()} CPU cores"
    return f"{jax.device_count()} × {first.device_kind}"
