"""Runs of several processes: initialization, detection of lost processes, shutdown."""

import itertools
import os
import re
import sys
import threading
import time
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # the client is not public; Orbax accesses it in the same way
from jax.experimental import multihost_utils

from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.sharding import make_mesh, platform, replicated, split

LOST = 75  # exit status EX_TEMPFAIL: the same command resumes the run

_leaving = threading.Event()
_watches: list[threading.Thread] = []


def initialize(
    coordinator: str | None, processes: int | None, index: int | None, heartbeat_seconds: int
) -> None:
    """Joins the other processes of the run, if any. Call it before any use of a device.

    `coordinator` is "HOST:PORT" of process 0. Without it, JAX detects a SLURM step of several
    tasks, and Cloud TPU slices of several hosts if the environment names these, as that of GKE
    does. When a process is lost, the others report which and exit with status LOST within twice
    `heartbeat_seconds`.

    Raises:
      ConfigError: if only some of coordinator, processes and index are given, or the index is not
        one of as many processes.
    """
    given = (coordinator, processes, index)
    if any(x is not None for x in given) and None in given:
        raise ConfigError("give --coordinator, --processes and --process together")
    if processes is not None and not 0 <= (index or 0) < processes:
        raise ConfigError(f"--process={index}: of --processes={processes} they are 0 and above")
    tasks = max(
        int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)),
        len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")),
        int(os.environ.get("MEGASCALE_NUM_SLICES", 1)),
    )
    if coordinator or tasks > 1:
        # JAX also ends processes that wait for a lost one, with a long message; it comes later.
        patience = 3 * heartbeat_seconds
        jax.distributed.initialize(
            coordinator, processes, index, heartbeat_timeout_seconds=patience
        )
        watch = threading.Thread(target=_watch, args=(heartbeat_seconds,), daemon=True)
        watch.start()
        _watches.append(watch)


def _watch(seconds: int) -> None:
    """Meets the other processes at a barrier repeatedly; exits when one does not arrive."""
    client: Any = distributed.global_state.client
    for k in itertools.count():
        try:
            client.wait_at_barrier(f"alive {k}", 1000 * seconds)
        except jax.errors.JaxRuntimeError as error:
            if _leaving.is_set():
                return
            found = re.search(r"timed out task names:\s*([\d,\s]+)", str(error))
            lost = found[1].strip() if found else "0"  # the barrier itself needs process 0
            print(
                f"error: process {lost} of this run was lost; the same command resumes from the "
                "last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(LOST)
        _leaving.wait(seconds / 4)


def leave(status: int) -> NoReturn:
    """Ends this process: together with the others, or immediately if it failed alone."""
    if jax.process_count() > 1:
        sys.stdout.flush()
        if 0 < status < 128:
            os._exit(status)  # a regular exit would wait for the others
        multihost_utils.sync_global_devices("end")
        _leaving.set()
        jax.distributed.shutdown()  # ends the barrier of `_watch`
        for watch in _watches:  # none if `initialize` did not see that there are several processes
            watch.join()
    sys.exit(status)


def await_word(heartbeat_seconds: int) -> None:
    """After a failed collective, waits for `_watch` to report the lost process and exit."""
    if jax.process_count() > 1:
        time.sleep(2 * heartbeat_seconds)


def own_rows(size: int) -> slice:
    """The rows of a global batch of `size` that this process provides."""
    part = size // jax.process_count()
    return slice(jax.process_index() * part, (jax.process_index() + 1) * part)


def is_main() -> bool:
    """Whether this is process 0, which alone writes records and prints."""
    return jax.process_index() == 0


class Agreement:
    """Whether a flag is set in any process, told one call later: so nobody waits for the steps that
    the devices run in between."""

    def __init__(self):
        self._asked: Any = None
        self._mesh = make_mesh()
        self._sum = jax.jit(jnp.sum, out_shardings=replicated(self._mesh))

    def any(self, flag: bool) -> bool:
        """All processes must call it together, as often. A single process is told at once."""
        if jax.process_count() == 1:
            return flag
        here = np.full(jax.local_device_count(), flag, np.int32)
        flags = jax.make_array_from_process_local_data(split(self._mesh), here)
        before, self._asked = self._asked, self._sum(flags)
        if platform(self._mesh) == "cpu":  # where several programs with collectives may deadlock
            jax.block_until_ready(self._asked)
        return before is not None and bool(before.addressable_data(0))


def same_in_all(value: int) -> bool:
    """Whether `value` is the same in all processes, which must call it together."""
    if jax.process_count() == 1:
        return True
    values = multihost_utils.process_allgather(np.asarray(value))
    return bool((values == value).all())


def fetch(tree: Any) -> Any:
    """The arrays of `tree` whole, as numpy arrays; all processes must call it together."""
    if all(x.is_fully_addressable or x.is_fully_replicated for x in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
