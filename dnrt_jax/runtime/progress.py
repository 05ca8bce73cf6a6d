"""What a person sees of a run: a bar on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


class Progress:
    """Counts steps, measures the speed of training alone, and shows records as they come."""

    def __init__(self, step: int, total: int, batch_size: int, *, is_main: bool = True):
        self._batch_size = batch_size
        self._images, self._seconds, self._warm = 0, 0.0, False
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
        """Around `count` steps of training. The first time, with its compilation, is left out of
        the speed."""
        start = time.monotonic()
        yield
        if self._warm:
            self._images += count * self._batch_size
            self._seconds += time.monotonic() - start
        self._warm = True
        self._bar.update(count)

    def images_per_sec(self) -> float | None:
        """Images per second since the last call; None if only the first dispatch ran."""
        rate = self._images / self._seconds if self._seconds else None
        self._images, self._seconds = 0, 0.0
        return rate

    def show(self, record: dict[str, Any]) -> None:
        speed = record.get("train/images_per_sec")
        if not self._bar.disable:
            postfix = f"loss {record['train/loss']:.3f}" if "train/loss" in record else ""
            self._bar.set_postfix_str(f"{postfix}, {speed:.0f} images/s" if speed else postfix)
        if self._is_main and (self._bar.disable or "test/acc" in record):
            tqdm.write(_line(record), file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def _line(record: dict[str, Any]) -> str:
    parts = [f"step {record['step']}", f"epoch {record['epoch']:.2f}"]
    for side in ("train", "test"):
        values = {
            key.removeprefix(f"{side}/"): value
            for key, value in record.items()
            if key.startswith(f"{side}/") and value is not None
        }
        if values:
            parts.append(f"{side} " + " ".join(f"{k} {v:.4g}" for k, v in values.items()))
    return " | ".join(parts)
