"""Figures of the study, of the setting `vit`: accuracies, spread by layer, norms over training."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.study_plan import CASES, Row
from scripts.study_results import ACTS, accuracy, results_of, summarize

SETTING = "vit"


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """The figures by the name of their file; none before the first test run."""
    if not any(results_of(rows, SETTING, act, case) for act, case in product(ACTS, CASES)):
        return {}
    return {
        "study_accuracy": accuracies(rows),
        "study_spread": spreads(rows),
        "study_norms": norms(rows),
    }


def accuracies(rows: Sequence[Row]) -> Figure:
    """Test accuracy at the last epoch by case: every seed, and the mean, with its 95% interval if
    there are three or more."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for i, act in enumerate(ACTS):
        for x, case in enumerate(CASES):
            values = [accuracy(row) for row in results_of(rows, SETTING, act, case).values()]
            if not values:
                continue
            score, at = summarize(values), x + 0.25 * (i - 1)
            low, high = score.interval if score.interval and score.n > 2 else (score.mean,) * 2
            axes.plot([at] * len(values), values, ".", color=f"C{i}", alpha=0.4)
            error = [[score.mean - low], [high - score.mean]]
            axes.errorbar(at, score.mean, error, fmt="_", color=f"C{i}", ms=14, capsize=3)
        axes.plot([], [], "_", ms=14, color=f"C{i}", label=act)
    axes.set_xlim(-0.5, len(CASES) - 0.5)
    axes.set_xticks(range(len(CASES)), list(CASES))
    axes.set(ylabel="Test accuracy, %", xlabel="Target of the pull")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(frameon=False)
    return figure


def spreads(rows: Sequence[Row]) -> Figure:
    """Distance within classes over that between them, by layer, of the trained models."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, color, case, found in _panels(rows, figure):
        layers = [row["layers"] for row in found]
        ratios = np.mean([np.divide(x["within"], x["between"]) for x in layers], axis=0)
        axes.plot(range(1, len(ratios) + 1), ratios, ".-", color=color, label=case)
        axes.set(xlabel="Block", ylabel="Within / between", xticks=range(1, len(ratios) + 1))
    _legend(figure)
    return figure


def norms(rows: Sequence[Row]) -> Figure:
    """Norm of the last block's responses over the epochs; without ARR, only at the end."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, color, case, found in _panels(rows, figure):
        if case == "none":
            end = np.mean([row["layers"]["norm"][-1] for row in found])
            axes.axhline(float(end), color=color, ls="--", label="none, at the end")
            continue
        epochs = [at["epoch"] for at in found[0]["epochs"]]
        values = np.mean([[at["norm"][-1] for at in row["epochs"]] for row in found], axis=0)
        axes.plot(epochs, values, ".-", color=color, label=case)
        axes.set(xlabel="Epoch", ylabel="Norm / sqrt(D)", yscale="log")
    _legend(figure)
    return figure


def _panels(rows: Sequence[Row], figure: Figure) -> Iterator[tuple[Axes, str, str, list[Row]]]:
    """Axes, color, case and results of each case of each activation, one panel an activation."""
    results = lambda act, case: list(results_of(rows, SETTING, act, case).values())
    acts = [act for act in ACTS if any(results(act, case) for case in CASES)]
    panels = figure.subplots(1, len(acts), sharey=True, squeeze=False)[0]
    for axes, act in zip(panels, acts, strict=True):
        axes.set_title(act)
        axes.grid(alpha=0.3)
        for i, case in enumerate(CASES):
            if found := results(act, case):
                yield axes, f"C{i}", case, found


def _legend(figure: Figure) -> None:
    labels = {}
    for axes in figure.axes:
        labels |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=6, frameon=False
    )
