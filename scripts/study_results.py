"""Tables of the study from its results: the choice of lambda, accuracies, paired comparisons."""

import statistics
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import stats

from scripts.study_plan import CASES, MINUTES, Row, accuracies, chosen, needed, run_of

ACTS = ("relu", "gelu", "raa")
CASE_PAIRS = (
    ("updated", "none"),
    ("zero", "none"),
    ("updated", "zero"),
    ("updated", "global"),
    ("updated", "permuted"),
    ("unit", "none"),
    ("unit", "updated"),
)
ACT_PAIRS = (("raa", "gelu"), ("raa", "relu"))
STATISTICS = ("points", "95% interval", "p", "pairs")


class Summary(NamedTuple):
    """Mean of n values, its 95% t-interval, and p, exact, that the mean is 0; None where n is 1."""

    mean: float
    interval: tuple[float, float] | None
    p: float | None
    n: int


def summarize(values: Sequence[float]) -> Summary:
    """The statistics of values or of paired differences; p by permutation of their signs."""
    if len(values) < 2:
        return Summary(values[0], None, None, 1)
    x = np.array(values)
    test = stats.permutation_test(
        (x,), np.mean, permutation_type="samples", n_resamples=2 ** len(x)
    )
    low, high = stats.ttest_1samp(x, 0).confidence_interval()
    return Summary(statistics.fmean(values), (float(low), float(high)), float(test.pvalue), len(x))


def results_of(rows: Sequence[Row], setting: str, act: str, case: str) -> dict[int, Row]:
    """The test runs of a case, with its chosen lambda, by seed."""
    weight = chosen(rows, setting, act, case)
    found = {run_of(row): row for row in rows}
    wanted = (setting, act, case, weight, False)
    of_case = [run for run in found if (*run[:4], run.valid) == wanted]
    return {run.seed: found[run] for run in sorted(of_case)}


def accuracy(row: Row) -> float:
    """Of the test split at the last epoch, in percent."""
    return 100 * row["epochs"][-1]["acc"]


def differences(
    rows: Sequence[Row], setting: str, one: tuple[str, str], other: tuple[str, str]
) -> list[float]:
    """Of the accuracies of two (activation, case), for each seed that both have."""
    a, b = (results_of(rows, setting, *which) for which in (one, other))
    return [accuracy(a[seed]) - accuracy(b[seed]) for seed in a if seed in b]


def tables(rows: Sequence[Row]) -> str:
    """How much is finished, and all tables, in Markdown."""
    left = len(set(needed(rows)) - set(map(run_of, rows)))
    more = f", {left} more are known to be needed" if left else "; none is left"
    said = f"{len(rows)} runs are finished{more}."
    parts = (lambda_table(rows), accuracy_table(rows), case_table(rows), activation_table(rows))
    return "\n\n".join((said, *parts))


def lambda_table(rows: Sequence[Row]) -> str:
    """Validation accuracy by lambda, and the lambda that is chosen."""
    lines = []
    for setting, act, case in product(MINUTES, ACTS, CASES):
        found = accuracies(rows, setting, act, case)
        if found:
            tried = ", ".join(f"{100 * found[w]:.2f} ({w:g})" for w in sorted(found))
            best = chosen(rows, setting, act, case)
            lines.append((setting, act, case, tried, "" if best is None else f"{best:g}"))
    head = ("setting", "activation", "case", "validation accuracy, % (lambda)", "chosen")
    return _table(head, lines)


def accuracy_table(rows: Sequence[Row]) -> str:
    """Means over the seeds, at the last epoch."""
    lines = []
    for setting, act, case in product(MINUTES, ACTS, CASES):
        found = list(results_of(rows, setting, act, case).values())
        if found:
            test = statistics.fmean(row["epochs"][-1]["loss_ce"] for row in found)
            train = statistics.fmean(row["train"]["loss_ce"] for row in found)
            score = summarize([accuracy(row) for row in found])
            weight = chosen(rows, setting, act, case)
            cells = (setting, act, case, f"{weight:g}" if weight else "", f"{score.mean:.2f}")
            lines.append((*cells, _interval(score, ""), f"{test:.3f}", f"{train:.3f}", score.n))
    head = ("setting", "activation", "case", "lambda", "test accuracy, %", "95% interval")
    return _table(head, lines, "test cross-entropy", "training cross-entropy", "seeds")


def case_table(rows: Sequence[Row]) -> str:
    """Differences of cases, for each activation and over all."""
    lines = []
    for setting, (one, other) in product(MINUTES, CASE_PAIRS):
        found = {act: differences(rows, setting, (act, one), (act, other)) for act in ACTS}
        lines += _compared((setting, f"{one} - {other}"), found)
    return _table(("setting", "difference", "activation"), lines, *STATISTICS)


def activation_table(rows: Sequence[Row]) -> str:
    """Differences of activations, for each case."""
    lines = []
    for setting, case, (one, other) in product(MINUTES, CASES, ACT_PAIRS):
        values = differences(rows, setting, (one, case), (other, case))
        lines += _compared((setting, f"{one} - {other}"), {case: values})
    return _table(("setting", "difference", "case"), lines, *STATISTICS)


def first_table(rows: Sequence[Row]) -> str:
    """Differences in the first small study, of `results/study/first.json`: one lambda for all."""
    last = {
        (row["dataset"], row["case"]): {seed: x["last"] for seed, x in row["seeds"].items()}
        for row in rows
    }
    lines = []
    for data in ("weak", "full"):
        paired = lambda one, other, data=data: [
            last[data, one][seed] - last[data, other][seed] for seed in last[data, one]
        ]
        found = {act: paired(f"{act}+arr", act) for act in ACTS}
        lines += _compared((data, "arr - none"), found)
        for one, other in ACT_PAIRS:
            found = {"none": paired(one, other), "arr": paired(f"{one}+arr", f"{other}+arr")}
            lines += _compared((data, f"{one} - {other}"), found)
    return _table(("augmentation", "difference", "activation or case"), lines, *STATISTICS)


def _compared(names: tuple[str, str], found: dict[str, list[float]]) -> list[tuple[object, ...]]:
    """Lines of a table: one for each that has values, and one of all if several have."""
    found = {name: values for name, values in found.items() if values}
    if len(found) > 1:
        found["all"] = [value for values in found.values() for value in values]
    lines = []
    for name, values in found.items():
        score = summarize(values)
        p = "" if score.p is None else f"{score.p:.2g}"
        lines.append((*names, name, f"{score.mean:+.2f}", _interval(score, "+"), p, score.n))
    return lines


def _interval(score: Summary, sign: str) -> str:
    return (
        "" if score.interval is None else "{:{s}.2f} to {:{s}.2f}".format(*score.interval, s=sign)
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[object]], *more: str) -> str:
    head = (*head, *more)
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
