"""Devices, processes, and where arrays lie. One global view: see `jax.jit` and GSPMD."""

import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # the client has no public name; Orbax takes the same way
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA = "data"  # the mesh axis that splits the batch
LOST = 75  # exit status, EX_TEMPFAIL: the same command will go on

_leaving = threading.Event()
_watches: list[threading.Thread] = []


def initialize(
    coordinator: str | None, processes: int | None, index: int | None, heartbeat_seconds: int
) -> None:
    """Joins the other processes of this run, if there are any; before anything touches a device.

    Without a coordinator, "HOST:PORT" of process 0, only a SLURM step or a Cloud TPU slice of
    several tasks is joined; JAX then finds its place by itself. When a process is lost the others
    say which and end within twice `heartbeat_seconds`, with status LOST.

    Raises:
      ValueError: if only some of the three are given.
    """
    given = (coordinator, processes, index)
    if any(x is not None for x in given) and None in given:
        raise ValueError("give --coordinator, --processes and --process together")
    tasks = max(
        int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)),
        len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")),
    )
    if coordinator or tasks > 1:
        # JAX ends a process that waits for a lost one, too, but not in one line: it comes second.
        patience = 3 * heartbeat_seconds
        jax.distributed.initialize(
            coordinator, processes, index, heartbeat_timeout_seconds=patience
        )
        watch = threading.Thread(target=_watch, args=(heartbeat_seconds,), daemon=True)
        watch.start()
        _watches.append(watch)


def _watch(seconds: int) -> None:
    """Meets the other processes again and again, until one does not come."""
    client: Any = distributed.global_state.client
    for k in itertools.count():
        try:
            client.wait_at_barrier(f"alive {k}", 1000 * seconds)
        except jax.errors.JaxRuntimeError as error:
            if _leaving.is_set():
                return
            found = re.search(r"timed out task names:\s*([\d,\s]+)", str(error))
            lost = found[1].strip() if found else "0"  # without process 0 nobody can be asked
            print(
                f"error: process {lost} of this run was lost; the same command resumes from the "
                "last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(LOST)
        _leaving.wait(seconds / 4)


def leave(status: int) -> NoReturn:
    """Ends this process: together with the others, or at once where it failed on its own."""
    if jax.process_count() > 1:
        sys.stdout.flush()
        if 0 < status < 128:
            os._exit(status)  # an orderly end would wait for the others
        multihost_utils.sync_global_devices("end")
        _leaving.set()
        jax.distributed.shutdown()  # answers a watch that is waiting
        _watches.pop().join()
    sys.exit(status)


def await_word(heartbeat_seconds: int) -> None:
    """After a failed collective: time for the watch to find out who was lost, and to end us."""
    if jax.process_count() > 1:
        time.sleep(2 * heartbeat_seconds)


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices along the axis `data`, those of one process after those of the one before it."""
    # Not jax.make_mesh, which may reorder them: then a process would hold other rows than its own.
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Splits array axis `axis` over the devices."""
    return NamedSharding(mesh, P(*[None] * axis, DATA))


def state_shardings(mesh: Mesh, shapes: Any, fsdp: bool) -> Any:
    """Where each array of a tree of shapes lies: everywhere, or with `fsdp` split over the devices
    along its longest axis that divides over them, if it has one."""

    def place(x: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        if not fsdp or not axes:
            return replicated(mesh)
        return split(mesh, max(axes, key=lambda axis: x.shape[axis]))

    return jax.tree.map(place, shapes)


def check_batch(name: str, size: int, devices: int) -> None:
    """Raises a ValueError that proposes a batch if `size` does not divide over the devices."""
    if size % devices:
        near = max(round(size / devices), 1) * devices
        raise ValueError(f"config.{name}={size} does not divide over {devices} devices; try {near}")


def own_rows(size: int) -> slice:
    """The rows of a global batch of `size` that this process hands over."""
    part = size // jax.process_count()
    return slice(jax.process_index() * part, (jax.process_index() + 1) * part)


def is_main() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them must ask together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
