"""Records of a run in a bucket: files grow on the local disk and are copied as whole objects."""

import logging
import shutil
import tempfile
import threading
from pathlib import Path

from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import StorageError, WorkdirError
from dnrt_jax.runtime.lock import BEAT_SECONDS, ObjectLock
from dnrt_jax.runtime.storage import AnyPath


class Spool:
    """A temporary folder `local` whose files are copied to `folder` in a bucket every BEAT_SECONDS,
    as long as the lock holds; the lock is kept alive by the same thread."""

    def __init__(self, folder: AnyPath, lock: ObjectLock):
        self.local, self._folder, self._lock = Path(tempfile.mkdtemp()), folder, lock
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of what was copied
        self._mutex, self._closing = threading.Lock(), threading.Event()
        self._lost: WorkdirError | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        try:
            self._lock.beat()
            self.copy()
        except StorageError as error:
            logging.warning("%s; trying again", error)
        except WorkdirError as error:
            self._lost = error

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
        """Raises a WorkdirError if another run has taken the folder over."""
        if self._lost:
            raise self._lost

    def close(self) -> None:
        """Ends the thread and deletes the local folder."""
        self._closing.set()
        self._thread.join()
        shutil.rmtree(self.local, ignore_errors=True)
