"""The folder of a run: one process at a time, and records that survive a kill.

config.json  classes.json  metrics.jsonl  summary.json  curves.png  checkpoints/
and TensorBoard event files
"""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorboardX
from flax import traverse_util

from dnrt_jax import config as schema
from dnrt_jax.config import Config
from dnrt_jax.runtime.checkpoint import CheckpointError, restore, write_atomically


class WorkdirError(RuntimeError):
    """A folder that cannot serve this run. The message is one line."""


class Workdir:
    """Opens, or makes, the folder of a run and holds its lock until the process ends.

    Of a run's several processes, which share the folder, only the main one locks and writes.

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
        if is_main:
            self._acquire(path)

    def _acquire(self, path: str | Path) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise WorkdirError(f"--workdir={path}: {error.strerror}; choose another") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # dies with its process
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            raise WorkdirError(f"--workdir={path}: in use by {owner}; choose another") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def check_space(self, checkpoint_bytes: int) -> None:
        """Raises a WorkdirError unless two checkpoints of that size fit: a new one is whole before
        an old one goes."""
        free, needed = shutil.disk_usage(self.path).free, 2 * checkpoint_bytes
        if self._is_main and free < needed:
            raise WorkdirError(
                f"--workdir={self.path}: {free / 1e6:.1f} MB are free, two checkpoints take "
                f"{needed / 1e6:.1f} MB; make room or choose another"
            )

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Around what may find that there is no run: takes a folder away that was made for it."""
        try:
            yield
        except BaseException:
            if self._is_new:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def write_json(self, name: str, value: Any) -> None:
        if self._is_main:
            write_atomically(self.path / name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of a file of this folder; None if there is none."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    def records(self) -> list[dict[str, Any]]:
        return self._records

    def rewind(self, step: int) -> None:
        """Forgets what was recorded after `step`: the run takes those steps again."""
        self._records = [record for record in self._records if record["step"] <= step]
        if self._is_main:
            lines = (json.dumps(record) + "\n" for record in self._records)
            write_atomically(self.path / "metrics.jsonl", "".join(lines))
            self._writer = tensorboardX.SummaryWriter(str(self.path), purge_step=step + 1)

    def record(self, values: dict[str, Any]) -> None:
        """Appends one record, with its `step`, to metrics.jsonl and to TensorBoard."""
        self._records.append(values)
        if not self._is_main:
            return
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        assert self._writer is not None, "rewind() opens the records"
        for key, value in values.items():
            if key not in ("step", "epoch") and value is not None:
                self._writer.add_scalar(key, value, values["step"])

    def close(self) -> None:
        if self._writer:
            self._writer.close()
        if self._is_main:
            self._lock.close()


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line torn by a kill is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def best_record(records: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The first record of the highest `metric`, as acc: of validation, where there is one, else of
    the test."""
    evaluated = [r for r in records if f"test/{metric}" in r]
    score = lambda r: r.get(f"valid/{metric}", r[f"test/{metric}"])
    return max(evaluated, key=score, default=None)


def find_step(folder: Path, name: str) -> int | None:
    """The step that "best" or a number names; None for "latest", the newest that is whole.

    Raises:
      CheckpointError: for another name, or "best" before the first evaluation.
    """
    if name == "latest":
        return None
    if name == "best":
        config = schema.from_json((folder / "config.json").read_text())
        best = best_record(read_records(folder), config.eval.metric)
        if best is None:
            raise CheckpointError(f"{folder}: nothing was evaluated yet, so no step is the best")
        return best["step"]
    if not name.isdecimal():
        raise CheckpointError(f"--checkpoint={name}: give latest, best or a step")
    return int(name)


class Run(NamedTuple):
    """What a run has made: variables {"params": ..., "batch_stats": ...} and what they are of."""

    config: Config
    variables: dict[str, Any]
    class_names: tuple[str, ...] | None  # None in a folder of before there was classes.json


def read_run(folder: Path, checkpoint: str = "latest") -> Run:
    """The weights of a run, which may still be running.

    Args:
      checkpoint: "latest", "best" or a step.

    Raises:
      WorkdirError, CheckpointError: one line on what is missing or damaged.
    """
    try:
        config = schema.from_json((folder / "config.json").read_text())
        schema.validate(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise WorkdirError(f"{folder}: not the folder of a run, by its config.json") from None
    restored = restore(folder / "checkpoints", None, find_step(folder, checkpoint))
    if restored is None:
        raise WorkdirError(f"{folder}: no checkpoint yet")
    arrays = {tuple(name.split("/")): np.asarray(value) for name, value in restored.state.items()}
    variables = {path: v for path, v in arrays.items() if path[0] in ("params", "batch_stats")}
    names = folder / "classes.json"
    class_names = tuple(json.loads(names.read_text())) if names.exists() else None
    return Run(config, traverse_util.unflatten_dict(variables), class_names)
