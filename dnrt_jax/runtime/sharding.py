"""The device mesh and the shardings of arrays, for `jax.jit` on global arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dnrt_jax.runtime.errors import ConfigError

DATA = "data"  # mesh axis of the batch


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices along the axis `data`, in the order of the processes."""
    # Not jax.make_mesh, which may reorder devices: a process would not hold its rows of the batch.
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))


def platform(mesh: Mesh) -> str:
    """ "cpu", "gpu" or "tpu", to choose between equivalent formulations of a computation."""
    return mesh.devices.flat[0].platform


def device_memory() -> int | None:
    """Bytes of a device, where it tells them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Shards the array axis `axis` over the devices."""
    return NamedSharding(mesh, P(*[None] * axis, DATA))


def constrain(tree: Any, sharding: NamedSharding) -> Any:
    """Shards the arrays of `tree` within jit, also inside a `shard_map` over another axis."""
    inside = jax.sharding.get_abstract_mesh()
    at = sharding if inside.empty else NamedSharding(inside, sharding.spec)
    return jax.lax.with_sharding_constraint(tree, at)


def state_shardings(mesh: Mesh, shapes: Any, fsdp: bool) -> Any:
    """The sharding of each array in a tree of shapes: replicated, or with `fsdp` sharded along the
    longest axis that is divisible by the number of devices, if there is one."""

    def place(x: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        if not fsdp or not axes:
            return replicated(mesh)
        return split(mesh, max(axes, key=lambda axis: x.shape[axis]))

    return jax.tree.map(place, shapes)


def check_batch(name: str, size: int, devices: int, accumulate: int = 1) -> None:
    """Raises a ConfigError with a better size if `size` is not divisible by `devices`, in each of
    `accumulate` micro-batches."""
    parts = devices * accumulate
    if size % parts:
        over = f"{devices} devices"
        over += f" x config.train.accumulate={accumulate}" if accumulate > 1 else ""
        near = max(round(size / parts), 1) * parts
        raise ConfigError(f"config.{name}={size} does not divide over {over}; try {near}")
