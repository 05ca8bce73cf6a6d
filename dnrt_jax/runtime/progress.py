"""Progress of a run: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tqdm import tqdm


class Speed:
    """Samples per second of training. The first call of `add`, which compiles, does not count."""

    def __init__(self):
        self._samples, self._seconds, self.is_warm = 0, 0.0, False

    def add(self, samples: int, seconds: float) -> None:
        if self.is_warm:
            self._samples += samples
            self._seconds += seconds
        self.is_warm = True

    def per_second(self) -> float | None:
        """Since the last call; None if only the first dispatch ran."""
        rate = self._samples / self._seconds if self._seconds else None
        self._samples, self._seconds = 0, 0.0
        return rate


class Line(NamedTuple):
    """What to show of a record: of a run, or the means of several with their deviations."""

    name: str
    record: dict[str, Any]
    deviations: Mapping[str, float] = MappingProxyType({})


class Progress:
    """Counts the steps of all runs, and prints records."""

    def __init__(self, step: int, total: int, *, is_main: bool = True):
        self._first, self._total = step, total
        self._started, self._step = None, step
        self._bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=None if step < total and is_main else True,  # None: a bar on terminals only
            smoothing=0.05,
        )
        self._is_main = is_main

    def update(self, count: int) -> None:
        """Counts steps. Those of the first call, which compiles, tell nothing of the time left."""
        self._step += count
        if self._started is None:
            self._started, self._first = time.monotonic(), self._step
        self._bar.update(count)

    def expect(self, total: int) -> None:
        """Says how many steps there are, where runs end early."""
        if total != self._total:
            self._total = self._bar.total = total

    def show(self, line: Line) -> None:
        record = line.record
        speed = record.get("train/images_per_sec")
        if not self._bar.disable:
            postfix = f"loss {record['train/loss']:.3f}" if "train/loss" in record else ""
            self._bar.set_postfix_str(f"{postfix}, {speed:.0f} images/s" if speed else postfix)
        if self._bar.disable or "test/acc" in record:
            self.say(formatted(line, self._time()))

    def say(self, text: str) -> None:
        """Prints a line on standard error, above the bar."""
        if self._is_main and text:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()

    def _time(self) -> str:
        """Time of day and estimated remaining time."""
        done, now = self._step - self._first, time.strftime("%H:%M:%S")
        if not done or self._started is None:
            return now
        left = (time.monotonic() - self._started) / done * (self._total - self._step)
        return f"{now}, {tqdm.format_interval(left)} left"


def formatted(line: Line, when: str) -> str:
    """A record as one line of text."""
    record, spread = line.record, line.deviations
    parts = [line.name] if line.name else []
    parts += [f"step {record['step']}", f"epoch {record['epoch']:.2f}", when]
    for side in ("train", "valid", "test"):
        values = {
            key: value
            for key, value in record.items()
            if key.startswith(f"{side}/") and key.count("/") == 1 and value is not None
        }
        text = lambda key, value: (
            f"{key.partition('/')[2]} {value:.4g}"
            + (f" ± {spread[key]:.2g}" if key in spread else "")
        )
        if values:
            parts.append(f"{side} " + " ".join(text(*item) for item in values.items()))
    return " | ".join(parts)
