"""A profile of some training steps, for TensorBoard (tensorboard-plugin-profile) or XProf."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces `steps` steps into `folder`, from the second dispatch on: the first one compiles."""

    def __init__(self, folder: Path, steps: int):
        self._folder, self._left, self._is_on = folder, steps, False
        self._traced = 0  # steps

    def after(self, count: int, state: Callable[[], Any]) -> None:
        """To be called after each dispatch, with its number of steps and the state it gives."""
        if not self._is_on and self._left > 0:
            jax.block_until_ready(state())  # so that the trace begins with the next dispatch
            jax.profiler.start_trace(self._folder)
            self._is_on = True
        elif self._is_on:
            self._left -= count
            self._traced += count
            if self._left <= 0:
                jax.block_until_ready(state())
                self.close()

    def close(self) -> None:
        """Ends the trace, if one is on."""
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on, self._left = False, 0
            if self._traced:
                logging.info("profile: tensorboard --logdir %s", self._folder)
            else:
                logging.warning(
                    "profile: no step in it, as the run ended with its first dispatch, which "
                    "compiles; take --config.train.dispatch=single"
                )
