"""Saves checkpoints in the background, so that training goes on meanwhile."""

import copy
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from dnrt_jax.runtime import checkpoint
from dnrt_jax.runtime.errors import CheckpointError
from dnrt_jax.runtime.storage import AnyPath


class Writer:
    """Saves checkpoints in the background, one after the other.

    All processes must call `save` together; the first one writes.

    Args:
      folder: of the checkpoints.
      before: called in the background before a checkpoint is written, before its manifest is, and
        before others are deleted; what it raises ends the save.
    """

    def __init__(self, folder: AnyPath, before: Callable[[], None]):
        self._folder, self._before = folder, before
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._deadline: float | None = None  # of the save in the background, once it was bounded

    def save(
        self,
        state: Any,
        step: int,
        *,
        config: str,
        extra: dict[str, Any],
        newest: int,
        best: int | None,
    ) -> None:
        """Copies `state` and `extra` and saves them in the background, as `checkpoint.write` does;
        then deletes others, as `checkpoint.keep` does. Waits for the save before.

        Raises: what that raised.
        """
        self.wait()
        arrays = checkpoint.to_host(state)
        if jax.process_index() == 0:
            self._deadline = None
            args = arrays, step, config, copy.deepcopy(extra), newest, best
            self._thread = threading.Thread(target=self._save, args=args, daemon=True)
            self._thread.start()

    def _save(self, arrays, step, config, extra, newest, best) -> None:
        try:
            self._before()
            checkpoint.write(
                self._folder, arrays, step, config=config, extra=extra, before=self._before
            )
            self._before()
            checkpoint.keep(self._folder, newest, step, best)
        except BaseException as failure:
            self._failure = failure

    def check(self) -> None:
        """Raises what a save in the background has raised."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def wait(self, seconds: float | None = None) -> None:
        """Waits until nothing is being written, and raises as `check` does. Calls with a bound wait
        no longer than the first of them for the same save.

        Raises:
          CheckpointError: if that takes more than `seconds`.
        """
        if self._thread is not None:
            if seconds is not None:
                self._deadline = self._deadline or time.monotonic() + seconds
                self._thread.join(max(0.0, self._deadline - time.monotonic()))
            else:
                self._thread.join()
            if self._thread.is_alive():
                raise CheckpointError(
                    f"{self._folder}: the newest checkpoint could not be written in {seconds:g} s; "
                    "the one before it is intact"
                )
        self.check()
