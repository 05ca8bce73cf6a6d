"""The values of the steps between two records, and the steps that were not finite."""

import logging
import math

import numpy as np

from dnrt_jax.config import Config
from dnrt_jax.runtime.errors import NonFiniteError


class Window:
    """The values of the steps since the last log record."""

    def __init__(self, values: dict[str, list[float]], skipped: int):
        self.values, self.skipped = values, skipped

    def add(self, values: dict[str, np.ndarray], finite: np.ndarray) -> None:
        self.skipped += int((~finite).sum())
        for name, column in values.items():
            self.values.setdefault(name, []).extend(column[finite].astype(float).tolist())

    def take_means(self) -> dict[str, float]:
        """Returns the means as {"train/NAME": value} and starts a new window."""
        values, self.values = self.values, {}
        return {f"train/{name}": math.fsum(xs) / len(xs) for name, xs in values.items() if xs}


def which_finite(values: dict[str, np.ndarray], step: int, stop: bool) -> np.ndarray:
    """Whether each step from `step` on was finite, bool[n]; the others left the state unchanged.

    Raises:
      NonFiniteError: with `stop`, for the first step that was not finite.
    """
    finite = np.logical_and.reduce([np.isfinite(column) for column in values.values()])
    for i in np.flatnonzero(~finite):
        seen = {name: float(column[i]) for name, column in values.items()}
        # Name the first cause: a sum is not finite if a term is not; a gradient may overflow alone.
        terms = ("loss_ce", "loss_arr", "loss", "grad_norm")
        cause = next(t for t in terms if t in seen and not math.isfinite(seen[t]))
        listed = ", ".join(f"{name}={value:g}" for name, value in seen.items())
        line = f"{cause} is not finite at step {step + i + 1} ({listed})"
        if stop:
            raise NonFiniteError(
                f"{line}; lower config.optim.lr, check the data, or skip such steps with "
                "--config.train.on_nonfinite=skip; the last checkpoint is intact"
            )
        logging.warning("%s: skipped", line)
    return finite


def check_skipped(skipped: int, step: int, config: Config) -> None:
    if skipped > config.train.max_skipped:
        raise NonFiniteError(
            f"step {step}: {skipped} steps were skipped, more than "
            f"config.train.max_skipped={config.train.max_skipped}; the last checkpoint is intact"
        )
