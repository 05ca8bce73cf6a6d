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


def main(argv: Sequence[str] | None = None) -> int:
    keep_memory()
    with user_errors():
        args = _parse(argv)
        from dnrt_jax.report import page

        text, figures = build(args.runs, args.count, args.paper)
        storage.make_folder(args.out)
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                storage.write(args.out / f"{name}.{kind}", page.image(figure, kind))
        storage.write(args.out / "report.html", text.encode())
    print(args.out / "report.html")
    return 0


def build(folders: Sequence[AnyPath], count: int, paper: Path | None) -> tuple[str, dict[str, Any]]:
    """Builds (HTML page, figures by name) for finished or running runs.

    Raises:
      UserError: if a folder is not a run, or its data cannot be read.
    """
    from dnrt_jax.report import figures, page, responses
    from dnrt_jax.report.results import Results, means, total
    from dnrt_jax.runtime.workdir import read_config, read_records, read_run

    keep_programs()
    shown = [one for folder in folders for one in _members(folder)]
    names = _names([one.folder for one in shown])
    entries = dict(zip(names, shown, strict=True))
    runs = {name: read_run(one.runs[0]) for name, one in entries.items()}
    own = {name: [read_records(run) for run in one.runs] for name, one in entries.items()}
    for name, one in entries.items():
        if not all(any("test/acc" in record for record in rows) for rows in own[name]):
            raise WorkdirError(f"{one.folder}: nothing was evaluated yet")
    records = {name: means(rows) for name, rows in own.items()}
    totals = {name: total(run.config, own[name][0][-1]) for name, run in runs.items()}
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
    configs = {name: [read_config(run) for run in one.runs] for name, one in entries.items()}
    return page.page(page.table(configs, results), drawn), drawn


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


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m dnrt_jax.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=storage.path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=storage.path, default=Path("report"), help="default: report")
    parser.add_argument("--paper", type=Path, help="curves of the paper's figure 3, a JSON file")
    parser.add_argument("--count", type=int, default=1000, help="test images; default: 1000")
    args = parser.parse_args(argv)
    if args.count < 10:
        parser.error(f"--count={args.count}: must be 10 or more")
    if file := storage.file_in_the_way(args.out):
        parser.error(f"--out={args.out}: must be a folder, but {file} is a file")
    return args


if __name__ == "__main__":
    sys.exit(main())
