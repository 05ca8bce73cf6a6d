"""Two or more sides measured in turns, so that a busy machine disturbs all of them alike."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Result(NamedTuple):
    """One row. Without an `other` side there is no ratio either.

    ratio: median over the rounds of ours / other within a round.
    spread: first and third quartile of that ratio, or of ours where there is no other.
    n: rounds.
    """

    case: str
    ours: float
    other: float | None
    ratio: float | None
    spread: tuple[float, float]
    unit: str
    n: int


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Calls every side once a round and stacks what it returns: f64[rounds, ...] by name.

    The order rotates from round to round. Before the first, each side runs once unrecorded, which
    compiles and warms it up; how long that takes goes to standard error.
    """
    for name, side in sides.items():
        seconds = timed(side)()
        print(f"{name}: first run, with compilation, {seconds:.1f} s", file=sys.stderr, flush=True)
    names, measured = list(sides), {name: [] for name in sides}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            measured[name].append(sides[name]())
    return {name: np.asarray(values, np.float64) for name, values in measured.items()}


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """A side that returns the seconds `run` takes; `run` must wait for the device."""

    def side():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return side


def compare(case: str, unit: str, ours: np.ndarray, other: np.ndarray | None = None) -> Result:
    """A row from the rounds' values f64[rounds] of one side, or of two."""
    ratios = None if other is None else ours / other
    low, high = np.percentile(ours if ratios is None else ratios, (25, 75)).tolist()
    return Result(
        case,
        float(np.median(ours)),
        None if other is None else float(np.median(other)),
        None if ratios is None else float(np.median(ratios)),
        (low, high),
        unit,
        len(ours),
    )
