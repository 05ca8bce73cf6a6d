"""The folder of a run: locked by one process at a time, with records that survive a kill.

Files: config.json  classes.json  metrics.jsonl  summary.json  curves.png  checkpoints/
and TensorBoard event files.
"""

import fcntl
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorboardX
from flax import traverse_util

from dnrt_jax.config import Config, from_json, to_json, validate
from dnrt_jax.runtime.checkpoint import newest_config, restore, write_atomically
from dnrt_jax.runtime.errors import CheckpointError, WorkdirError
from dnrt_jax.runtime.trackers import Tracker


class Workdir:
    """Opens or creates the folder of a run and locks it until closed; a context manager.

    If a run has several processes, only the main one locks the folder and writes to it. `tracker`
    also gets the records.

    Raises:
      WorkdirError: if the path is a file, not writable, or in use by another run.
    """

    def __init__(self, path: str | Path, *, is_main: bool = True):
        self.path = Path(path).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self._is_main = is_main
        self._is_new = is_main and not self.path.exists()
        self._records = read_records(self.path)
        self._writer: tensorboardX.SummaryWriter | None = None
        self.tracker: Tracker | None = None
        self._config: str | None = None  # content of config.json, once written
        if is_main:
            self._acquire(path)

    def _acquire(self, path: str | Path) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise WorkdirError(f"--workdir={path}: {error.strerror}; choose another") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise WorkdirError(f"--workdir={path}: in use by {owner}; choose another") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def check_space(self, state: Any) -> None:
        """Raises a WorkdirError unless the disk has space for two checkpoints of `state`, as a new
        one is complete before an old one is deleted."""
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        free, needed = shutil.disk_usage(self.path).free, 2 * size
        if self._is_main and free < needed:
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
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def write_json(self, name: str, value: Any) -> None:
        if self._is_main:
            write_atomically(self.path / name, json.dumps(value, indent=2) + "\n")

    def write_config(self, config: Config) -> None:
        """Writes config.json unless it is unchanged."""
        if self._is_main and self._config != (text := to_json(config) + "\n"):
            write_atomically(self.path / "config.json", text)
            self._config = text

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of this folder; None if it does not exist."""
        return read_json(self.path / name)

    def records(self) -> list[dict[str, Any]]:
        return self._records

    def rewind(self, step: int) -> None:
        """Removes the records after `step`, which will be repeated, and opens the logs."""
        self._records = [record for record in self._records if record["step"] <= step]
        if self._is_main:
            lines = (json.dumps(record) + "\n" for record in self._records)
            write_atomically(self.path / "metrics.jsonl", "".join(lines))
            self._writer = tensorboardX.SummaryWriter(str(self.path), purge_step=step + 1)

    def record(self, values: dict[str, Any]) -> None:
        """Appends a record, which must have a `step`, to metrics.jsonl and TensorBoard."""
        self._records.append(values)
        if not self._is_main:
            return
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        assert self._writer is not None, "rewind() opens the records"
        for key, value in values.items():
            if key not in ("step", "epoch") and value is not None:
                self._writer.add_scalar(key, value, values["step"])
        self._writer.flush()  # so that both logs agree after a kill
        if self.tracker:
            self.tracker.log(values)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        for log in filter(None, (self._writer, self.tracker)):
            log.close()
        if self._is_main:
            self._lock.close()


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it does not exist.

    Raises:
      WorkdirError: if it is damaged.
    """
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise WorkdirError(f"{path}: damaged ({error}); repair or delete it") from None


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; an incomplete last line, from a kill, is ignored.

    Raises:
      WorkdirError: if any other line is damaged.
    """
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise WorkdirError(f"{path}: damaged ({error}); delete the line") from None


def read_config(folder: Path) -> Config:
    """The config of the run in `folder`, from config.json or else from the newest checkpoint.

    Raises:
      WorkdirError: if there is neither, or the config is invalid.
    """
    path = folder / "config.json"
    if path.exists():
        text = path.read_text()
    elif (text := newest_config(folder / "checkpoints")) is not None:
        logging.warning("%s is missing: using the config of the newest checkpoint", path)
    else:
        raise WorkdirError(f"{folder}: no run in it, neither config.json nor a checkpoint")
    try:
        config = from_json(text)
        validate(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkdirError(
            f"{path}: not the config of a run ({error}); repair it, or delete it to use that of "
            "the newest checkpoint"
        ) from None
    return config


def best_record(records: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The first record with the highest `metric`, on the validation split if there is one, else on
    the test split."""
    evaluated = [r for r in records if f"test/{metric}" in r]
    score = lambda r: r.get(f"valid/{metric}", r[f"test/{metric}"])
    return max(evaluated, key=score, default=None)


def find_step(folder: Path, name: str) -> int | None:
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


def read_run(folder: Path, checkpoint: str = "latest") -> Run:
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
