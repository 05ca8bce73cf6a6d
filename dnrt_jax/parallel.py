"""The device mesh and where arrays lie on it. One global view: see `jax.jit` and GSPMD."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA = "data"  # the mesh axis that splits the batch


def mesh() -> Mesh:
    """All devices of all processes along the axis `data`."""
    return jax.make_mesh((jax.device_count(),), (DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Splits array axis `axis` over the devices."""
    return NamedSharding(mesh, P(*[None] * axis, DATA))


def check_batch(name: str, size: int, devices: int) -> None:
    """Raises a ValueError that proposes a batch if `size` does not divide over the devices."""
    if size % devices:
        near = max(round(size / devices), 1) * devices
        raise ValueError(f"config.{name}={size} does not divide over {devices} devices; try {near}")
