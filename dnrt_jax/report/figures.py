"""Figures from the records of runs and the responses of their models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dnrt_jax.report.responses import CHANNELS, Responses, natural, spread

WIDTH = 11.5  # inches; 1265 pixels of a page
Records = Sequence[Mapping[str, Any]]


def curves(
    records: Mapping[str, Records],
    totals: Mapping[str, float],
    paper: Mapping[str, Any] | None = None,
) -> Figure:
    """Figure 3: training and test cross-entropy, test accuracy, over the fraction of the run. Means
    over a set of runs have a band of one standard deviation, from "deviation/NAME" of the records.

    totals: the steps of each whole run. paper: the curves of the paper's figure, without and with
    ARR, drawn below in grey.
    """
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    panels = ("train/loss_ce", "test/loss_ce", "test/acc")
    titles = ("Training cross-entropy", "Test cross-entropy", "Test accuracy, %")
    for axes, key, title in zip(figure.subplots(1, 3), panels, titles, strict=True):
        for which, style in (("without", ":"), ("with", "-")) if paper else ():
            name = {"test/acc": "test_top1"}.get(key, f"{key.split('/')[0]}_ce")
            values = paper[f"{name}_{which}_arr"] if paper else []
            label = f"paper, {which} ARR"
            axes.plot(np.linspace(0, 1, len(values)), values, style, color="0.6", label=label)
        for i, (run, rows) in enumerate(records.items()):
            spread = f"deviation/{key}"
            points = [(row["step"], row[key], row.get(spread, 0)) for row in rows if key in row]
            if points:
                steps, *found = np.array(points).T
                values, around = (100 * x if key == "test/acc" else x for x in found)
                share, color = steps / totals[run], f"C{i % 10}"
                axes.plot(share, values, color=color, label=run, lw=1.4, marker=_marker(points))
                if around.any():
                    low, high = values - around, values + around
                    axes.fill_between(share, low, high, color=color, alpha=0.2, lw=0)
        axes.set(title=title, xlabel="Share of the run")
        axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def per_class(confusions: Mapping[str, np.ndarray], class_names: Sequence[str]) -> Figure:
    """Accuracy of every class (columns) in every run (rows)."""
    values = np.stack([np.diag(c) / np.maximum(c.sum(1), 1) for c in confusions.values()])
    figure = Figure(figsize=(WIDTH, 1.4 + 0.42 * len(values)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    few = len(class_names) <= 25
    axes.set_xticks(range(len(class_names)) if few else [], class_names if few else [], rotation=30)
    axes.set_yticks(range(len(values)), list(confusions))
    if few:
        for (i, j), value in np.ndenumerate(100 * values):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=_ink(value / 100))
    axes.set_title("Accuracy by class, %")
    figure.colorbar(image, pad=0.01)
    return figure


def confusion(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> Figure:
    """Confusion matrices: rows are labels, columns predictions, in percent of the row."""
    columns = min(3, len(counts))
    rows = -(-len(counts) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + rows * WIDTH / columns * 0.92), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    few = len(class_names) <= 25
    for axes, (run, table) in zip(panels, counts.items(), strict=False):
        values = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(values, cmap="viridis", vmin=0, vmax=100)
        ticks, names = (range(len(class_names)), class_names) if few else ([], [])
        axes.set_xticks(ticks, names, rotation=90, fontsize=7)
        axes.set_yticks(ticks, names, fontsize=7)
        axes.set_title(run, fontsize=9)
        if len(class_names) <= 10:
            for (i, j), value in np.ndenumerate(values):
                ink = _ink(value / 100)
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=6)
    for axes in panels[len(counts) :]:
        axes.remove()
    return figure


def spreads(responses: Mapping[str, Responses]) -> Figure:
    """Distances within and between classes per layer, and their ratio."""
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for i, (run, found) in enumerate(responses.items()):
        pairs = np.array([spread(x, found.labels) for x in found.aggregated.values()])
        if not len(pairs):
            continue
        within, between = pairs.T
        layers = np.arange(1, len(pairs) + 1)
        for axes, values in zip(panels, (within, between, within / between), strict=True):
            axes.plot(layers, values, marker=".", color=f"C{i % 10}", label=run)
    titles = ("Within classes, RMS", "Between class means, RMS", "Within / between")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="Layer", yscale="linear" if "/" in title else "log")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _legend(figure)
    return figure


def over_training(records: Mapping[str, Records]) -> Figure | None:
    """Size, scale-free spread and probe of the responses by step, in an early, a middle and a late
    layer; None where no run has logged them."""
    found = {run: _by_layer(rows) for run, rows in records.items()}
    if not any(found.values()):
        return None
    names = {
        "norm": "Norm / sqrt(D)",
        "ratio": "Within / between",
        "probe": "Nearest class mean, %",
    }
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3), names.items(), strict=True):
        for i, (run, layers) in enumerate(found.items()):
            chosen = [list(layers)[k] for k in _three(len(layers)) if layers]
            for layer, style in zip(chosen, (":", "--", "-"), strict=False):
                points = [(step, values[name]) for step, values in layers[layer] if name in values]
                steps, values = np.array(points).reshape(-1, 2).T  # a collapsed layer has no ratio
                values = 100 * values if name == "probe" else values
                label = f"{run}, {layer}"
                look = {"color": f"C{i % 10}", "lw": 1.4, "marker": _marker(points)}
                axes.plot(steps, values, style, label=label, **look)
        axes.set(title=title, xlabel="Step", yscale="log" if name == "norm" else "linear")
        axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def _by_layer(rows: Records) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """{layer: [(step, {"norm": ..., "ratio": ...})]} of what the log says of test responses."""
    layers: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for row in rows:
        of_row: dict[str, dict[str, float]] = {}
        for key, value in row.items():
            if key.startswith("test/responses/"):
                layer, _, name = key.removeprefix("test/responses/").rpartition("/")
                of_row.setdefault(layer, {})[name] = value
        for layer, values in of_row.items():
            layers.setdefault(layer, []).append((row["step"], values))
    return dict(sorted(layers.items(), key=lambda item: natural(item[0])))


def shifts(responses: Mapping[str, Responses]) -> Figure:
    """Distribution of RAA's shift w.x + b per layer; with 0 RAA is GELU."""
    shown = {run: found.shifts for run, found in responses.items() if found.shifts}
    figure = Figure(figsize=(WIDTH, 0.6 + 2.2 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharey=True, squeeze=False)[:, 0]
    for axes, (run, layers) in zip(panels, shown.items(), strict=True):
        _violins(axes, list(layers.values()), "C0")
        names = [layer.removesuffix("/act").removesuffix("/mlp") for layer in layers]
        axes.set_xticks(range(1, len(names) + 1), names, rotation=30 if len(names) > 12 else 0)
        axes.set_title(f"{run}: shift of RAA", fontsize=10)
    return figure


def activated(responses: Mapping[str, Responses]) -> Figure:
    """Figure 2a: outputs of the activation in an MLP, the first 50 channels, for three layers."""
    shown = {run: found.activated for run, found in responses.items() if found.activated}
    pick = lambda layers: [list(layers)[i] for i in _three(len(layers))]
    panels = {
        run: [(layer.removesuffix("/mlp"), layers[layer]) for layer in pick(layers)]
        for run, layers in shown.items()
    }
    return _grid(panels, responses, "after the activation")


def aggregated(responses: Mapping[str, Responses], class_names: Sequence[str]) -> Figure | None:
    """Figure 2b: aggregated responses of the last layer for three classes, 50 channels. None if
    there are no responses, or no class has images in all runs."""
    shown = {run: found for run, found in responses.items() if found.aggregated}
    there = [set(found.labels.tolist()) for found in shown.values()]
    known = sorted(set.intersection(*there)) if there else []
    if not known:
        return None
    wanted = [k for k in known if class_names[k] in ("airplane", "bird", "dog")]
    classes = wanted if len(wanted) == 3 else known[:3]
    panels = {}
    for run, found in shown.items():
        last = list(found.aggregated.values())[-1]
        panels[run] = [(class_names[k], last[found.labels == k, :CHANNELS]) for k in classes]
    return _grid(panels, responses, "aggregated response")


def _grid(
    panels: Mapping[str, Sequence[tuple[str, np.ndarray]]],
    of_runs: Mapping[str, Responses],
    what: str,
) -> Figure:
    """A grid of violin plots, f32[N, channels] each, with a row and a scale per run; those of runs
    with ARR in a colour of their own."""
    columns = max(map(len, panels.values()))
    figure = Figure(figsize=(WIDTH, 0.6 + 1.9 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), columns, sharex=True, squeeze=False)
    for axes_row, (run, row) in zip(rows, panels.items(), strict=True):
        limit = max(np.quantile(np.abs(values), 0.999) for _, values in row)
        for axes, (name, values) in zip(axes_row, row, strict=False):
            _violins(axes, list(values.T), "C1" if of_runs[run].with_arr else "C0")
            axes.set_ylim(-limit, limit)
            axes.set_title(f"{run}: {name}", fontsize=9)
    for axes in rows[-1]:
        axes.set_xlabel(f"channel, {what}")
    return figure


def _violins(axes, values: Sequence[np.ndarray], color: str) -> None:
    # A violin needs some variance; a channel that is always 0 has none.
    noise = np.random.default_rng(0)
    least = 1e-3 * max(np.abs(v).max() for v in values) + 1e-9
    drawn = [v if np.ptp(v) > least else v + least * noise.standard_normal(v.shape) for v in values]
    parts: Any = axes.violinplot(drawn, widths=0.9, showextrema=False, points=60)
    for body in parts["bodies"]:
        body.set(facecolor=color, alpha=0.75)
    axes.axhline(0, color="0.5", lw=0.6)
    axes.grid(alpha=0.3, axis="y")


def _marker(points: Sequence[Any]) -> str | None:
    """A line through a single point would not be seen."""
    return "." if len(points) == 1 else None


def _three(count: int) -> list[int]:
    """Indices of the paper's blocks 1, 4 and 10 of 12, scaled to `count` layers."""
    return sorted({round(share * (count - 1)) for share in (1 / 11, 4 / 11, 10 / 11)})


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _ink(share: float) -> str:
    return "white" if share < 0.6 else "black"
