"""One run in a folder: a lock on its file .lock, released when its process ends.

On a disk the operating system keeps the lock. In a bucket it is an object that names its owner and
that the owner rewrites at intervals. One that was not rewritten for STALE_SECONDS, or whose owner
was a process of this machine that is gone, is taken over, by a write that succeeds only if nobody
else was faster.
"""

import fcntl
import json
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

from dnrt_jax.runtime import bucket, storage
from dnrt_jax.runtime.errors import WorkdirError
from dnrt_jax.runtime.storage import AnyPath

NAME = ".lock"
STALE_SECONDS, BEAT_SECONDS = 60, 15
WRITE_SECONDS = 10  # of each of three tries, so that a connection that stalls costs no lock


def acquire(folder: AnyPath) -> "FileLock | ObjectLock":
    """Locks a folder, which is made if need be.

    Raises:
      WorkdirError: if it cannot be written, or another run has locked it.
    """
    return FileLock(folder) if isinstance(folder, Path) else ObjectLock(folder)


class FileLock:
    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / NAME).open("a+")
        except OSError as error:
            raise WorkdirError(f"--workdir={folder}: {error.strerror}; choose another") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip()
            self._file.close()
            raise _in_use(folder, owner) from None
        self._file.truncate(0)
        self._file.write(f"{_owner()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.truncate(0)  # so that no copy of the folder names an owner
        self._file.close()


class ObjectLock:
    def __init__(self, folder: Any):
        self._folder, self._name = folder, storage.split(folder / NAME)
        self._content = {"owner": _owner(), "machine": _machine(), "pid": os.getpid()}
        self._content["id"] = uuid.uuid4().hex
        self._mutex = threading.Lock()
        self._generation = self._write(self._free_generation())

    def _free_generation(self) -> str:
        """The generation of the lock object that may be overwritten, "0" if there is none."""
        try:
            info, found = bucket.info(*self._name), self._read()
        except FileNotFoundError:
            return "0"
        gone = found["machine"] == _machine() and not Path(f"/proc/{found['pid']}").exists()
        if not gone and info.age is not None and info.age < STALE_SECONDS:
            raise _in_use(self._folder, f"{found['owner']}, {info.age:.0f} s ago")
        return info.generation

    def _write(self, generation: str) -> str:
        try:
            content = json.dumps(self._content).encode()
            return bucket.write(*self._name, content, generation, WRITE_SECONDS).generation
        except FileExistsError:  # someone else was faster; or we were, and the answer was lost
            self.confirm()
            return bucket.info(*self._name).generation

    def _read(self) -> dict[str, Any]:
        """The content of the lock object. One that is not of an ObjectLock, as the file of a folder
        that was copied from a disk, has an owner that is not known, and is free once it is old."""
        unknown = {"owner": "an unknown owner", "machine": "", "pid": 0, "id": ""}
        try:
            found = json.loads(bucket.read(*self._name))
        except ValueError:
            return unknown
        return found if isinstance(found, dict) and unknown.keys() <= found.keys() else unknown

    def confirm(self) -> None:
        """Raises a WorkdirError if another run has taken the lock over, or it was deleted."""
        try:
            found = self._read()
        except FileNotFoundError:
            raise WorkdirError(
                f"--workdir={self._folder}: its {NAME} was deleted, so that another run may use "
                "it; give the same command again to go on"
            ) from None
        if found["id"] != self._content["id"]:
            raise _in_use(self._folder, found["owner"])

    def beat(self) -> None:
        """Keeps the lock from being taken over; to be called every BEAT_SECONDS. Raises as
        `confirm` does."""
        with self._mutex:
            self._generation = self._write(self._generation)

    def release(self) -> None:
        with self._mutex:
            bucket.delete(*self._name, self._generation)


def _in_use(folder: AnyPath, owner: str) -> WorkdirError:
    return WorkdirError(f"--workdir={folder}: in use by {owner}; choose another")


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _machine() -> str:
    """Names the boot and the namespace in which a process number means what it means here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.uuid4().hex}"  # no Linux: only the heartbeat tells
