"""Interleaved timing of several sides, so that other load affects all of them alike."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Result(NamedTuple):
    """One row of a benchmark.

    other, ratio: None if only one side was measured.
    ratio: median of ours / other over the rounds.
    spread: first and third quartile of the ratio, or of ours if there is no ratio.
    n: number of rounds.
    """

    case: str
    ours: float
    other: float | None
    ratio: float | None
    spread: tuple[float, float]
    unit: str
    n: int


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Calls every side once per round and stacks the results: {name: f64[rounds, ...]}.

    The order rotates with the rounds. Before the first round, each side runs once to compile and
    warm up; the time of that is printed on standard error.
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
    """Makes a row from the values f64[rounds] of one or two sides."""
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
