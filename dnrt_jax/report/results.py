"""What runs have recorded, and the means over those of a set."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dnrt_jax.runtime.statistics import mean_record
from dnrt_jax.runtime.workdir import best_record

Records = list[dict[str, Any]]


def means(of_runs: Sequence[Records]) -> Records:
    """The records of a run, or their means at the steps that all runs have recorded."""
    if len(of_runs) == 1:
        return of_runs[0]
    by_step = [{record["step"]: record for record in rows} for rows in of_runs]
    common = sorted(set.intersection(*map(set, by_step)))
    return [mean_record([rows[step] for rows in by_step]) for step in common]


def total(config: Any, record: dict[str, Any]) -> float:
    """The steps of the whole run."""
    train = config.train
    return train.steps or train.epochs * record["step"] / record["epoch"]


class Results(NamedTuple):
    """Records of the last evaluation and of the best, or their means over runs; the steps at which
    runs were best and last."""

    last: dict[str, Any]
    best: dict[str, Any]
    best_steps: list[int]
    steps: list[int]

    @staticmethod
    def of(of_runs: Sequence[Records], metric: str) -> "Results":
        evaluated = [[record for record in rows if "test/acc" in record] for rows in of_runs]
        best: list[Any] = [best_record(rows, metric) or rows[-1] for rows in evaluated]
        return Results(
            mean_record([rows[-1] for rows in evaluated]),
            mean_record(best),
            [record["step"] for record in best],
            [rows[-1]["step"] for rows in of_runs],
        )
