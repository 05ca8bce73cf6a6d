"""Records of a run in a bucket: files grow on the local disk and are copied as whole objects."""

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import StorageError
from dnrt_jax.runtime.lock import BEAT_SECONDS, ObjectLock
from dnrt_jax.runtime.storage import AnyPath


class Spool:
    """A temporary folder `local` whose files are copied to `folder` in a bucket every BEAT_SECONDS,
    as long as the lock holds. The lock is kept alive by a thread of its own, which waits for no
    copy."""

    def __init__(self, folder: AnyPath, lock: ObjectLock):
        self.local, self._folder, self._lock = Path(tempfile.mkdtemp()), folder, lock
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of what was copied
        self._mutex, self._closing = threading.Lock(), threading.Event()
        self._failure: Exception | None = None
        self._threads = [
            threading.Thread(target=self._repeat, args=(action,), daemon=True)
            for action in (lock.beat, self.copy)
        ]
        for thread in self._threads:
            thread.start()

    def _repeat(self, action: Callable[[], None]) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            self._try(action)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except StorageError as error:
            logging.warning("%s; trying again", error)
        except Exception as error:
            self._failure = error

    def copy(self) -> None:
        """Copies the files that have changed; of records, whole lines. Any thread may call it.

        Raises:
          WorkdirError: if another run has taken the folder over.
          StorageError: if the bucket cannot be written.
        """
        self._lock.confirm()
        with self._mutex:
            for name in storage.files(self.local):
                path = self.local / name
                if path.suffix == ".tmp":
                    continue
                stat = path.stat()
                version = stat.st_size, stat.st_mtime_ns
                if self._copied.get(name) == version:
                    continue
                data = path.read_bytes()
                if path.suffix == ".jsonl":
                    data = data[: data.rfind(b"\n") + 1]
                if data:
                    storage.write(self._folder / name, data)
                    self._copied[name] = version

    def check(self) -> None:
        """Raises what went wrong in the background, as a WorkdirError if another run has taken the
        folder over; but not that the bucket cannot be reached for a while."""
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Ends the threads and deletes the local folder."""
        self._closing.set()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self.local, ignore_errors=True)
