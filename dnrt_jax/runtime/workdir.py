"""The folder of a run: locked by one process at a time, with records that survive a kill.

Files: config.json  classes.json  metrics.jsonl  summary.json  curves.png  checkpoints/
and TensorBoard event files.
"""

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorboardX
from flax import traverse_util

from dnrt_jax.config import Config, from_json, to_json, validate
from dnrt_jax.runtime import lock, storage
from dnrt_jax.runtime.checkpoint import newest_config, restore
from dnrt_jax.runtime.errors import CheckpointError, UserError, WorkdirError
from dnrt_jax.runtime.spool import Spool
from dnrt_jax.runtime.storage import AnyPath
from dnrt_jax.runtime.trackers import Tracker
from dnrt_jax.runtime.writer import Writer

CLOSING_SECONDS = 60  # for the checkpoint that is being written, after a signal or an error


class Workdir:
    """Opens or creates the folder of a run, on a disk or in a bucket, and locks it until closed; a
    context manager.

    If a run has several processes, only the main one locks the folder and writes to it, to `local`:
    the folder itself, or for one in a bucket a folder on the disk, which is copied at intervals,
    before the manifest of each checkpoint, and on closing. In the other processes of a run in a
    bucket, `local` is a temporary folder, for profiles. `tracker` also gets the records.

    Raises:
      WorkdirError: if the path is a file, not writable, or in use by another run.
      StorageError: if the bucket cannot be used.
    """

    def __init__(self, path: "str | AnyPath", *, is_main: bool = True):
        self.path = storage.path(path)
        self.checkpoints = self.path / "checkpoints"
        self._is_main = is_main
        self._is_new = is_main and not storage.is_dir(self.path)
        self._is_removed = False
        self._lock = lock.acquire(self.path) if is_main else None
        try:
            self._records = read_records(self.path)
        except Exception:
            if self._lock:
                self._lock.release()
            raise
        self._spool = None
        if isinstance(self._lock, lock.ObjectLock):
            self._spool = Spool(self.path, self._lock)
        if self._spool:
            self.local = self._spool.local
        else:
            self.local = self.path if isinstance(self.path, Path) else Path(tempfile.mkdtemp())
        self.writer = Writer(self.checkpoints, before=self._flush)
        self.tracker: Tracker | None = None
        self._events: tensorboardX.SummaryWriter | None = None
        self._config: str | None = None  # content of config.json, once written

    def _flush(self) -> None:
        if self._spool:
            self._spool.copy()

    def check(self) -> None:
        """Raises what went wrong in the background: a save, or the loss of the lock."""
        if self._spool:
            self._spool.check()
        self.writer.check()

    def check_space(self, state: Any) -> None:
        """Raises a WorkdirError unless the disk has space for two checkpoints of `state`, as a new
        one is complete before an old one is deleted."""
        if not self._is_main or not isinstance(self.path, Path):
            return
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        free, needed = shutil.disk_usage(self.path).free, 2 * size
        if free < needed:
            raise WorkdirError(
                f"--workdir={self.path}: {free / 1e6:.1f} MB are free, two checkpoints take "
                f"{needed / 1e6:.1f} MB; make room or choose another"
            )

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Context manager that, on an error, removes the folder if it was created for this run."""
        try:
            yield
        except BaseException:
            if self._is_new:
                self._remove()
            raise

    def _remove(self) -> None:
        """Deletes the folder, unless another run has taken it over."""
        try:
            if isinstance(self._lock, lock.ObjectLock):
                self._lock.confirm()
            storage.remove_folder(self.path)
            self._is_removed = True
        except UserError as late:
            logging.warning("%s", late)  # the error that comes first is reported

    def _write(self, name: str, text: str) -> None:
        storage.write(self.local / name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        if self._is_main:
            self._write(name, json.dumps(value, indent=2) + "\n")

    def write_config(self, config: Config) -> None:
        """Writes config.json unless it is unchanged."""
        if self._is_main and self._config != (text := to_json(config) + "\n"):
            self._write("config.json", text)
            self._config = text

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of this folder; None if it does not exist."""
        written = read_json(self.local / name) if self._spool else None
        return read_json(self.path / name) if written is None else written

    def records(self) -> list[dict[str, Any]]:
        return self._records

    def rewind(self, step: int) -> None:
        """Removes the records after `step`, which will be repeated, and opens the logs."""
        self._records = [record for record in self._records if record["step"] <= step]
        if self._is_main:
            lines = (json.dumps(record) + "\n" for record in self._records)
            self._write("metrics.jsonl", "".join(lines))
            self._events = tensorboardX.SummaryWriter(str(self.local), purge_step=step + 1)

    def record(self, values: dict[str, Any]) -> None:
        """Appends a record, which must have a `step`, to metrics.jsonl and TensorBoard."""
        self._records.append(values)
        if not self._is_main:
            return
        with (self.local / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        assert self._events is not None, "rewind() opens the records"
        for key, value in values.items():
            if key not in ("step", "epoch") and value is not None:
                self._events.add_scalar(key, value, values["step"])
        self._events.flush()  # so that both logs agree after a kill
        if self.tracker:
            self.tracker.log(values)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.close()
        except Exception as late:
            if error is None:
                raise
            logging.warning("%s", late)  # the error that comes first is reported

    def close(self) -> None:
        """Waits for the checkpoint that is being written, copies the last records to a bucket, and
        unlocks the folder. Where one of these fails, the others are done nevertheless.

        Raises: the first error.
        """
        steps = [partial(self.writer.wait, CLOSING_SECONDS)]
        steps += [log.close for log in (self._events, self.tracker) if log]
        steps += [] if self._is_removed else [self._flush]
        steps += [self._spool.close] if self._spool else []
        steps += [self._lock.release] if self._lock else []
        errors = []
        for step in steps:
            try:
                step()
            except Exception as error:
                errors.append(error)
        if not self._spool and storage.is_remote(self.path):
            with suppress(OSError):  # it has a profile
                self.local.rmdir()
        for late in errors[1:]:
            logging.warning("%s", late)
        if errors:
            raise errors[0]


def read_json(path: AnyPath) -> Any:
    """The content of a JSON file; None if it does not exist.

    Raises:
      WorkdirError: if it is damaged.
    """
    try:
        return json.loads(storage.read(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise WorkdirError(f"{path}: damaged ({error}); repair or delete it") from None


def read_records(folder: AnyPath) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; an incomplete last line, from a kill, is ignored.

    Raises:
      WorkdirError: if any other line is damaged.
    """
    path = folder / "metrics.jsonl"
    try:
        return [json.loads(line) for line in storage.read(path).split(b"\n")[:-1]]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise WorkdirError(f"{path}: damaged ({error}); delete the line") from None


def read_config(folder: AnyPath) -> Config:
    """The config of the run in `folder`, from config.json or else from the newest checkpoint.

    Raises:
      WorkdirError: if there is neither, or the config is invalid.
    """
    path = folder / "config.json"
    try:
        text = storage.read(path).decode()
    except FileNotFoundError:
        text = newest_config(folder / "checkpoints")
        if text is None:
            raise WorkdirError(
                f"{folder}: no run in it, neither config.json nor a checkpoint"
            ) from None
        logging.warning("%s is missing: using the config of the newest checkpoint", path)
    try:
        config = from_json(text)
        validate(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if _lacks_module(error):
            raise WorkdirError(
                f"{path}: a module of the run is missing ({error}); is its folder on PYTHONPATH?"
            ) from None
        raise WorkdirError(
            f"{path}: not the config of a run ({error}); repair it, or delete it to use that of "
            "the newest checkpoint"
        ) from None
    return config


def _lacks_module(error: BaseException | None) -> bool:
    """Whether an error comes from a module that was not found, as that of a task of the user's."""
    while error and not isinstance(error, ModuleNotFoundError):
        error = error.__context__
    return error is not None


def best_record(records: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The first record with the highest `metric`, on the validation split if there is one, else on
    the test split."""
    evaluated = [r for r in records if f"test/{metric}" in r]
    score = lambda r: r.get(f"valid/{metric}", r[f"test/{metric}"])
    # NaN, as the AUC of a split of one class, is never the best.
    return max(evaluated, key=lambda r: (not math.isnan(score(r)), score(r)), default=None)


def find_step(folder: AnyPath, name: str) -> int | None:
    """The step for "best" or a number; None for "latest", the newest intact checkpoint.

    Raises:
      CheckpointError: for any other name, or "best" before the first evaluation.
    """
    if name == "latest":
        return None
    if name == "best":
        config = read_config(folder)
        best = best_record(read_records(folder), config.eval.metric)
        if best is None:
            raise CheckpointError(f"{folder}: nothing was evaluated yet, so no step is the best")
        return best["step"]
    if not name.isdecimal():
        raise CheckpointError(f"--checkpoint={name}: give latest, best or a step")
    return int(name)


class Run(NamedTuple):
    """A trained model: the variables {"params": ..., "batch_stats": ...} and their config."""

    config: Config
    variables: dict[str, Any]
    class_names: tuple[str, ...] | None  # None if the folder has no classes.json


def read_run(folder: AnyPath, checkpoint: str = "latest") -> Run:
    """Reads the weights of a run, which may still be running.

    Args:
      checkpoint: "latest", "best" or a step.

    Raises:
      WorkdirError, CheckpointError: if files are missing or damaged.
    """
    config = read_config(folder)
    restored = restore(folder / "checkpoints", None, find_step(folder, checkpoint))
    if restored is None:
        raise WorkdirError(f"{folder}: no checkpoint yet")
    arrays = {tuple(name.split("/")): np.asarray(value) for name, value in restored.state.items()}
    arrays |= {path[1:]: value for path, value in arrays.items() if path[0] == "ema"}
    variables = {path: v for path, v in arrays.items() if path[0] in ("params", "batch_stats")}
    names = read_json(folder / "classes.json")
    class_names = None if names is None else tuple(names)
    return Run(config, traverse_util.unflatten_dict(variables), class_names)
