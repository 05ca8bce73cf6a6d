"""Mean, deviation and confidence interval over the runs of a set."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95


def describe(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, deviation (of a sample, n - 1) and 95% interval (Student's t) of the mean.

    Of a single value, deviation and interval are None.
    """
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return {"n": count, "mean": mean, "deviation": None, "interval": None}
    from scipy.special import stdtrit  # JAX needs SciPy; a third of a second

    deviation = float(np.std(values, ddof=1))
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(count)
    return {
        "n": count,
        "mean": mean,
        "deviation": deviation,
        "interval": [mean - half, mean + half],
    }


def mean_record(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of several runs at a step: means of all numbers, and "deviation/NAME" of each that
    is not the same in all."""
    about = describe_records(records)
    mean = {key: value["mean"] for key, value in about.items()}
    position = {key: records[0][key] for key in ("step", "epoch")}
    spread = {f"deviation/{k}": v["deviation"] for k, v in about.items() if v["deviation"]}
    return mean | position | spread


def describe_records(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`describe` of every number that all records have, by name."""
    names = [
        name
        for name, value in records[0].items()
        if value is not None and all(record.get(name) is not None for record in records)
    ]
    return {name: describe([record[name] for record in records]) for name in names}
