"""Compares runs on one HTML page: python -m dnrt_jax.report RUN... --out=report

The folder of a set of runs stands for them all: curves are means with a band of one standard
deviation, confusions are sums, and responses are those of the first seed.

Writes a self-contained report.html, and each figure as PNG and SVG: figure 3 (curves; with
--paper=results/paper/fig3.json also those of the paper), figure 2 (violin plots of responses),
accuracy per class, confusion matrices, spread of responses within and between classes, RAA shifts.
A RUN and the folder --out may be in a bucket, gs://BUCKET/PATH.
"""

from dnrt_jax.runtime import train_extra  # noqa: F401

# isort: split

import argparse
import base64
import html
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import WorkdirError
from dnrt_jax.runtime.process import Parser, keep_memory, keep_programs, user_errors
from dnrt_jax.runtime.storage import AnyPath

ABOUT = {  # figure: (title, explanation)
    "curves": (
        "Curves (figure 3)",
        "Overfitting: the test cross-entropy rises while the training cross-entropy falls.",
    ),
    "training": (
        "Responses over training",
        "Of the test images, in an early, a middle and a late layer: the size of the aggregated "
        "responses, their spread within classes relative to that between, which no scale changes, "
        "and how many of them are nearest to the mean of their own class.",
    ),
    "spread": (
        "Spread of responses by layer",
        "Root mean square distance of the aggregated responses from their class mean, "
        "and of the class means from each other. ARR pulls responses to their class mean; since a "
        "normalisation follows, it can also just shrink all responses: see the ratio.",
    ),
    "shifts": (
        "Shifts of RAA by layer",
        "The learned shift w.x + b over tokens or pixels. With zero shift RAA is GELU.",
    ),
    "activated": (
        "Responses after the activation (figure 2a)",
        "Outputs of the activation in MLPs, the first 50 channels of the class token, over test "
        "images. Each run has its own scale.",
    ),
    "aggregated": (
        "Aggregated responses by class (figure 2b)",
        "The last layer's aggregated response to images of three classes, the first 50 channels. "
        "Each run has its own scale.",
    ),
    "per_class": ("Accuracy by class", "At the last evaluation."),
    "confusion": (
        "Confusion",
        "Rows are true classes, columns predicted ones, in percent of the row.",
    ),
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .3em .9em; border-bottom: 1px solid #ddd;
  text-align: left; vertical-align: top } td.number, th.number { text-align: right }
img { max-width: 100%; height: auto } p { max-width: 48em; color: #444 }
"""


def main(argv: Sequence[str] | None = None) -> int:
    keep_memory()
    with user_errors():
        args = _parse(argv)
        page, figures = build(args.runs, args.count, args.paper)
        storage.make_folder(args.out)
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                storage.write(args.out / f"{name}.{kind}", _drawn(figure, kind))
        storage.write(args.out / "report.html", page.encode())
    print(args.out / "report.html")
    return 0


def _drawn(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()


def build(folders: Sequence[AnyPath], count: int, paper: Path | None) -> tuple[str, dict[str, Any]]:
    """Builds (HTML page, figures by name) for finished or running runs.

    Raises:
      UserError: if a folder is not a run, or its data cannot be read.
    """
    from dnrt_jax.report import figures, responses
    from dnrt_jax.runtime.workdir import read_records, read_run

    keep_programs()
    shown = [one for folder in folders for one in _members(folder)]
    names = _names([one.folder for one in shown])
    entries = dict(zip(names, shown, strict=True))
    runs = {name: read_run(one.runs[0]) for name, one in entries.items()}
    own = {name: [read_records(run) for run in one.runs] for name, one in entries.items()}
    for name, one in entries.items():
        if not all(any("test/acc" in record for record in rows) for rows in own[name]):
            raise WorkdirError(f"{one.folder}: nothing was evaluated yet")
    records = {name: _means(rows) for name, rows in own.items()}
    totals = {name: _total(run.config, own[name][0][-1]) for name, run in runs.items()}
    drawn: dict[str, Any] = {"curves": figures.curves(records, totals, _read_paper(paper))}
    if (training := figures.over_training(records)) is not None:
        drawn["training"] = training

    found = {name: responses.of_run(run, count) for name, run in runs.items()}
    if any(x.aggregated for x in found.values()):
        drawn["spread"] = figures.spreads(found)
    if any(x.shifts for x in found.values()):
        drawn["shifts"] = figures.shifts(found)
    if any(x.activated for x in found.values()):
        drawn["activated"] = figures.activated(found)

    confusions: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for name, one in entries.items():
        classes = runs[name].class_names or ()
        tables = [json.loads(storage.read(run / "confusion.json")) for run in one.runs]
        table = np.sum(tables, axis=0)
        confusions.setdefault(classes, {})[name] = table
    for i, (classes, tables) in enumerate(confusions.items()):  # one figure per set of classes
        suffix = f"_{i + 1}" if len(confusions) > 1 else ""
        among = {name: found[name] for name in tables}
        if (aggregated := figures.aggregated(among, classes)) is not None:
            drawn[f"aggregated{suffix}"] = aggregated
        drawn[f"per_class{suffix}"] = figures.per_class(tables, classes)
        drawn[f"confusion{suffix}"] = figures.confusion(tables, classes)
    results = {name: Results.of(own[name], run.config.eval.metric) for name, run in runs.items()}
    return _page(_table(runs, results), drawn), drawn


def _means(of_runs: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The records of a run, or their means at the steps that all runs have recorded."""
    from dnrt_jax.runtime.statistics import mean_record

    if len(of_runs) == 1:
        return of_runs[0]
    by_step = [{record["step"]: record for record in rows} for rows in of_runs]
    common = sorted(set.intersection(*map(set, by_step)))
    return [mean_record([rows[step] for rows in by_step]) for step in common]


def _total(config: Any, record: dict[str, Any]) -> float:
    """The steps of the whole run."""
    train = config.train
    return train.steps or train.epochs * record["step"] / record["epoch"]


def _read_paper(path: Path | None) -> Any:
    try:
        return json.loads(path.read_text()) if path else None
    except ValueError as error:
        raise WorkdirError(f"--paper={path}: not JSON ({error})") from None


class Shown(NamedTuple):
    """A run, or those of a set that differ in the seed alone: their folder or that of the set, and
    the folders of the runs."""

    folder: "AnyPath"
    runs: "list[AnyPath]"


class Results(NamedTuple):
    """Records of the last evaluation and of the best, or their means over runs; the steps at which
    runs were best and last."""

    last: dict[str, Any]
    best: dict[str, Any]
    best_steps: list[int]
    steps: list[int]

    @staticmethod
    def of(of_runs: Sequence[list[dict[str, Any]]], metric: str) -> "Results":
        from dnrt_jax.runtime.statistics import mean_record
        from dnrt_jax.runtime.workdir import best_record

        evaluated = [[record for record in rows if "test/acc" in record] for rows in of_runs]
        best: list[Any] = [best_record(rows, metric) or rows[-1] for rows in evaluated]
        return Results(
            mean_record([rows[-1] for rows in evaluated]),
            mean_record(best),
            [record["step"] for record in best],
            [rows[-1]["step"] for rows in of_runs],
        )


def _members(folder: AnyPath) -> list[Shown]:
    from dnrt_jax.runtime.set_folder import read_members

    if (about := read_members(folder)) is None:
        return [Shown(folder, [folder])]
    found = []
    for setting, names in about["settings"].items():
        paths = [folder / name for name in names]
        runs = [path for path in paths if storage.is_file(path / "confusion.json")]
        for path in set(paths) - set(runs):
            logging.warning("%s: nothing was evaluated yet; left out", path)
        if runs:
            found.append(Shown(runs[0] if len(paths) == 1 else folder / setting, runs))
    if not found:
        raise WorkdirError(f"{folder}: nothing was evaluated yet")
    return found


def _names(folders: Sequence[AnyPath]) -> list[str]:
    """Short unique names: the paths without their common prefix.

    Raises:
      WorkdirError: if a run is given twice.
    """
    paths = [p.resolve() if isinstance(p, Path) else Path(*p.parts) for p in folders]
    if len(set(paths)) < len(paths):
        raise WorkdirError("a run is named twice")
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [str(path.relative_to(common)) for path in paths]


def _table(runs: dict[str, Any], results: dict[str, Results]) -> str:
    """An HTML table of the runs: config fields that differ, and results."""
    from dnrt_jax.config import flatten

    flat = {name: flatten(run.config) for name, run in runs.items()}
    fields = sorted({field for config in flat.values() for field in config})
    differ = [f for f in fields if len({repr(config.get(f)) for config in flat.values()}) > 1]
    head = "".join(f"<th>{html.escape(x)}</th>" for x in ("run", "differs in"))
    head += "".join(
        f"<th class=number>{x}</th>"
        for x in ("test accuracy, last", "best", "at step", "test cross-entropy", "steps")
    )
    lines = []
    for name, config in flat.items():
        last, best, best_steps, steps = results[name]
        settings = ", ".join(f"{field}={config.get(field)}" for field in differ) or "nothing"
        numbers = (_spread(last, "test/acc", ".2%"), _spread(best, "test/acc", ".2%"))
        numbers += (_range(best_steps), _spread(last, "test/loss_ce", ".3f"), _range(steps))
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in (name, settings))
        cells += "".join(f"<td class=number>{number}</td>" for number in numbers)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _range(steps: list[int]) -> str:
    low, high = min(steps), max(steps)
    return str(low) if low == high else f"{low} to {high}"


def _spread(record: dict[str, Any], key: str, how: str) -> str:
    deviation = record.get(f"deviation/{key}")
    return format(record[key], how) + (f" ± {deviation:{how}}" if deviation else "")


def _page(table: str, drawn: dict[str, Any]) -> str:
    parts = []
    for name, figure in drawn.items():
        title, about = ABOUT[name.rstrip("_0123456789")]
        source = base64.b64encode(_drawn(figure, "png")).decode()
        parts.append(
            f"<h2>{title}</h2><p>{html.escape(about)}</p>"
            f'<img alt="{title}" src="data:image/png;base64,{source}">'
        )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Runs compared</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style><h1>Runs compared</h1>'
        f"{table}{''.join(parts)}</html>\n"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m dnrt_jax.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=storage.path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=storage.path, default=Path("report"), help="default: report")
    parser.add_argument("--paper", type=Path, help="curves of the paper's figure 3, a JSON file")
    parser.add_argument("--count", type=int, default=1000, help="test images; default: 1000")
    args = parser.parse_args(argv)
    if args.count < 10:
        parser.error(f"--count={args.count}: must be 10 or more")
    return args


if __name__ == "__main__":
    sys.exit(main())
