"""The plan of the study of docs/study.md: its cases, the order of its runs, the choice of lambda.

A run that chooses a lambda trains on a part of the training images, and is judged on the rest.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CASES = {  # name: fields of the config
    "none": {},
    "updated": {},
    "zero": {"arr.target": "zero"},
    "global": {"arr.target": "global"},
    "permuted": {"arr.target": "permuted"},
    "unit": {"arr.normalize": "unit"},
}
MINUTES = {"vit": 4, "long": 12, "40k": 8, "cnn": 10}  # on one core
LAMBDA_SEED = 5  # no test run uses it
VALIDATION = {"data.valid_fraction": 0.25, "train.eval_epochs": 1000}  # evaluates at the end only


class Group(NamedTuple):
    """Test runs of all `cases` with seeds 0 .. seeds - 1, and the runs that choose their lambda."""

    setting: str
    acts: tuple[str, ...]
    cases: tuple[str, ...]
    seeds: int


MAIN, CONTROLS = ("none", "updated", "zero"), ("permuted", "global", "unit")
ORDER = (  # by priority
    Group("vit", ("gelu",), MAIN, 5),
    Group("vit", ("raa",), MAIN, 5),
    Group("vit", ("gelu",), CONTROLS, 3),
    Group("vit", ("relu",), MAIN, 5),
    Group("long", ("relu", "raa"), ("none",), 3),
    Group("40k", ("gelu",), MAIN, 3),
    Group("cnn", ("relu",), MAIN, 3),
    Group("vit", ("raa", "relu"), CONTROLS, 3),
)


class Run(NamedTuple):
    """A run; `valid` if it is one on the training images that chooses a lambda."""

    setting: str
    act: str
    case: str
    weight: float
    seed: int
    valid: bool = False

    @property
    def name(self) -> str:
        setting = f"valid-{self.setting}" if self.valid else self.setting
        return f"{setting}/{self.act}/{self.case}/{self.weight:g}/seed{self.seed}"

    def fields(self) -> dict[str, Any]:
        """The overridden config fields, by dotted name."""
        fields = {"model.act": self.act, "arr.weight": self.weight, "seed": self.seed}
        return fields | CASES[self.case] | (VALIDATION if self.valid else {})


Row = dict[str, Any]  # a line of the results: "run", as Run's fields, and what `result` returns


def run_of(row: Row) -> Run:
    return Run(**row["run"])


def candidates(case: str, accuracies: Mapping[float, float]) -> tuple[float, ...]:
    """The lambdas to try, given the validation accuracies of those that were: three, then the next
    one beyond the best if that is the largest or the smallest of the three."""
    ladder = (0.03, 0.1, 0.3, 1.0, 3.0) if case == "unit" else (1.0, 3.0, 10.0, 30.0, 100.0)
    first = ladder[1:4]
    if not set(first) <= accuracies.keys():
        return first
    best = _best({weight: accuracies[weight] for weight in first})
    beyond = {first[0]: ladder[:1], first[-1]: ladder[-1:]}
    return first + beyond.get(best, ())


def accuracies(rows: Sequence[Row], setting: str, act: str, case: str) -> dict[float, float]:
    """Validation accuracies of the finished runs by lambda."""
    found = {run_of(row): row for row in rows}
    return {
        run.weight: row["valid"]["acc"]
        for run, row in found.items()
        if (run.setting, run.act, run.case, run.valid) == (setting, act, case, True)
    }


def chosen(rows: Sequence[Row], setting: str, act: str, case: str) -> float | None:
    """The lambda of a case; None as long as it is not decided."""
    if case == "none":
        return 0.0
    found = accuracies(rows, _decides(setting), act, case)
    return _best(found) if set(candidates(case, found)) <= found.keys() else None


def _decides(setting: str) -> str:
    """The setting in which a setting's lambdas are chosen."""
    return "cnn" if setting == "cnn" else "vit"


def _best(found: Mapping[float, float]) -> float:
    return min(found, key=lambda weight: (-found[weight], weight))


def needed(rows: Sequence[Row]) -> Iterator[Run]:
    """The runs that are known to be needed, by priority; some may come twice."""
    for group in ORDER:
        pairs = [(act, case) for act in group.acts for case in group.cases]
        where = _decides(group.setting)
        for act, case in pairs:
            if case != "none":
                for weight in candidates(case, accuracies(rows, where, act, case)):
                    yield Run(where, act, case, weight, LAMBDA_SEED, valid=True)
        for seed in range(group.seeds):
            for act, case in pairs:
                if (weight := chosen(rows, group.setting, act, case)) is not None:
                    yield Run(group.setting, act, case, weight, seed)


def read(results: Path) -> list[Row]:
    """The lines of a file of results; none if it does not exist."""
    return [*map(json.loads, results.read_text().splitlines())] if results.exists() else []
