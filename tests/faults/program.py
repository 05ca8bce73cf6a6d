"""The training program with one fault injected: python tests/faults/program.py FAULT FLAG ...

The program itself knows nothing of this: a function of it is replaced before it starts.
"""

import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp

from dnrt_jax import main, run
from dnrt_jax.runtime import array_files, checkpoint, lock, spool, storage, workdir
from dnrt_jax.tasks import arrays
from dnrt_jax.training import dispatch, metrics


def before(owner, name, action, at=1):
    """Calls `action` before the `at`-th call of owner.name."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at:
            action()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def after(owner, name, action, at=1):
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        result = original(*args, **kwargs)
        calls[0] += 1
        if calls[0] == at:
            action()
        return result

    setattr(owner, name, wrapped)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_soon():
    threading.Timer(0.05, die).start()  # writing takes a quarter of a second


def ask_to_stop(number=signal.SIGTERM):
    print(f"signal {time.time()}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)


def twice():
    """Asks the main thread twice; the thread that calls this goes no further."""
    ask_to_stop()
    time.sleep(1)
    ask_to_stop()
    time.sleep(60)


def before_writing(name, action, at=1):
    """Calls `action` before the file `name` is written for the `at`-th time."""
    original, calls = storage.write, [0]

    def write(path, data, **options):
        calls[0] += path.name == name
        if path.name == name and calls[0] == at:
            action()
        original(path, data, **options)

    storage.write = write


def before_renaming(name, action, at):
    """Calls `action` when the file `name` was written for the `at`-th time under its other name."""
    original, calls = Path.replace, [0]

    def replace(self, target):
        calls[0] += target.name == name
        if target.name == name and calls[0] == at:
            action()
        return original(self, target)

    Path.replace = replace


def half_a_sweep():
    """Dies after the first manifest of an old checkpoint was deleted, before its arrays are."""
    original = storage.remove_file

    def remove_file(path):
        original(path)
        die()

    storage.remove_file = remove_file


def poisoned(change, at):
    """Changes the state, or the batch, that the dispatch from step `at` on gets."""

    def poison(kind):
        original = kind.run

        def run(self, state, start, count):
            if start <= at < start + count:
                state = change(self, state)
            return original(self, state, start, count)

        kind.run = run

    for kind in (dispatch.Single, dispatch.Scan):
        poison(kind)


def nan_parameter(_, state):
    params = jax.tree.map(lambda x: x, state.params)
    params["head"]["kernel"] = params["head"]["kernel"].at[0, 0].set(np.nan)
    return state.replace(params=params)


def bad_label_at(step):
    """Labels of -1 in the batch of one step, which JAX's cross-entropy takes for the last class."""
    original = arrays.Arrays._draw

    def drawn(self, batch_size, seed, start):
        for i, batch in enumerate(original(self, batch_size, seed, start)):
            if start + i == step:
                batch["label"] = np.full_like(batch["label"], -1)
            yield batch

    arrays.Arrays._draw = drawn


def in_dispatch(action, at):
    """Calls `action` before the `at`-th dispatch of either kind."""
    before(dispatch.Single, "run", action, at)
    before(dispatch.Scan, "run", action, at)


def disk_is_full():
    raise OSError(28, "No space left on device")


def clock_and_host():
    """A clock that goes back by a day, again in the middle of training, and another host."""
    now, days = time.time, [1]
    time.time = lambda: now() - 86400 * days[0]
    in_dispatch(lambda: days.append(days.pop() + 1), 3)
    socket.gethostname = lambda: "elsewhere"


def resident():
    """Prints resident megabytes at every record of training."""
    original = workdir.Workdir.record
    page = os.sysconf("SC_PAGE_SIZE") / 1e6

    def record(self, values):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print(f"resident {values['step']} {pages * page}", flush=True)
        original(self, values)

    workdir.Workdir.record = record


def short_lock():
    """A lock in a bucket that is taken over after two seconds."""
    lock.STALE_SECONDS, spool.BEAT_SECONDS = 2, 0.5


FAULTS = {
    "none": lambda: None,
    "kill before arrays": lambda: before(array_files, "write", die, 2),
    "kill in arrays": lambda: before(ocp.Checkpointer, "save", die_soon, 2),
    "kill before manifest": lambda: before_writing(checkpoint.MANIFEST, die, 2),
    "kill before rename": lambda: before_renaming(checkpoint.MANIFEST, die, 2),
    "kill in verify": lambda: before(checkpoint, "verify", die, 2),
    "kill in sweep": half_a_sweep,
    "stop in compile": lambda: before(run, "calendar_of", ask_to_stop),
    "stop in step": lambda: in_dispatch(ask_to_stop, 3),
    "stop in evaluation": lambda: before(metrics, "classification", ask_to_stop),
    "stop in save": lambda: before(checkpoint, "verify", ask_to_stop),
    "interrupt in step": lambda: in_dispatch(lambda: ask_to_stop(signal.SIGINT), 3),
    "stop twice": lambda: before_writing(checkpoint.MANIFEST, twice, 2),
    "nan parameter": lambda: poisoned(nan_parameter, 12),
    "bad label": lambda: bad_label_at(12),
    "disk full at save": lambda: before(ocp.Checkpointer, "save", disk_is_full, 2),
    "disk full at record": lambda: before(workdir.Workdir, "record", disk_is_full, 3),
    "no space": lambda: setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1)),
    "clock and host": clock_and_host,
    "resident": resident,
    "short lock": short_lock,
}

if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    main.main()
