"""Where the leaves of a tree lie on a mesh of devices.

mesh = Mesh(np.reshape(jax.devices(), (4, 2)), ("data", "model"))
params = load_checkpoint(folder, VISION_NAMES, like, place=onto(spread(like, mesh)))
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def spread(like: Any, mesh: Mesh, axis: str = "model") -> Any:
    """Split each leaf over one axis of a mesh, along the largest of its own axes that can be split evenly.

    Args:
        like: arrays or shapes: parameters, or an optimizer's state.
        mesh: devices, with automatic axes, as `jax.sharding.Mesh` makes them.
        axis: of the mesh.

    Returns:
        A `NamedSharding` for each leaf. A leaf none of whose axes the number of devices divides is whole on each.

    Raises:
        ValueError: if the mesh has no such axis.
    """
    if axis not in mesh.shape:
        raise ValueError(f"the mesh has no axis {axis!r}: {', '.join(mesh.axis_names)}")

    def place(leaf: Any) -> NamedSharding:
        even = [i for i, size in enumerate(leaf.shape) if size and size % mesh.shape[axis] == 0]
        if not even:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(even, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(axis if i == longest else None for i in range(len(leaf.shape)))))

    return jax.tree.map(place, like)
