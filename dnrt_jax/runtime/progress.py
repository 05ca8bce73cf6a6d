"""Progress of a run: a bar on a terminal, plain lines in a log file."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


class Progress:
    """Counts steps, measures the training speed and prints records."""

    def __init__(self, step: int, total: int, batch_size: int, *, is_main: bool = True):
        self._batch_size, self._first, self._total = batch_size, step, total
        self._samples, self._seconds, self._warm = 0, 0.0, False
        self._started, self._step = time.monotonic(), step
        self._bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=None if step < total and is_main else True,  # None: a bar on terminals only
            smoothing=0.05,
        )
        self._is_main = is_main

    @contextlib.contextmanager
    def timed(self, count: int) -> Iterator[None]:
        """Context manager around `count` training steps. The first call, which compiles, does not
        count for the speed."""
        start = time.monotonic()
        yield
        now = time.monotonic()
        if self._warm:
            self._samples += count * self._batch_size
            self._seconds += now - start
        else:
            self._started, self._first = now, self._step + count
        self._warm = True
        self._step += count
        self._bar.update(count)

    def images_per_sec(self) -> float | None:
        """Training samples per second since the last call; None if only the first dispatch ran."""
        rate = self._samples / self._seconds if self._seconds else None
        self._samples, self._seconds = 0, 0.0
        return rate

    def show(self, record: dict[str, Any]) -> None:
        speed = record.get("train/images_per_sec")
        if not self._bar.disable:
            postfix = f"loss {record['train/loss']:.3f}" if "train/loss" in record else ""
            self._bar.set_postfix_str(f"{postfix}, {speed:.0f} images/s" if speed else postfix)
        if self._bar.disable or "test/acc" in record:
            self.say(line(record, self._time()))

    def say(self, text: str) -> None:
        """Prints a line on standard error, above the bar."""
        if self._is_main and text:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()

    def _time(self) -> str:
        """Time of day and estimated remaining time."""
        done, now = self._step - self._first, time.strftime("%H:%M:%S")
        if not done:
            return now
        left = (time.monotonic() - self._started) / done * (self._total - self._step)
        return f"{now}, {tqdm.format_interval(left)} left"


def line(record: dict[str, Any], when: str) -> str:
    """Formats a log record as one line."""
    parts = [f"step {record['step']}", f"epoch {record['epoch']:.2f}", when]
    for side in ("train", "valid", "test"):
        values = {
            key.removeprefix(f"{side}/"): value
            for key, value in record.items()
            if key.startswith(f"{side}/") and key.count("/") == 1 and value is not None
        }
        if values:
            parts.append(f"{side} " + " ".join(f"{k} {v:.4g}" for k, v in values.items()))
    return " | ".join(parts)
