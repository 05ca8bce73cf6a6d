"""Merges what scripts/accelerator.sh has measured into results/accelerator.jsonl, and writes
docs/accelerator.md from it.

    python -m scripts.accelerator_page --runs=runs/accelerator
    python -m scripts.accelerator_page                              # the page alone
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dnrt_jax.config import flatten
from dnrt_jax.config_file import load
from dnrt_jax.runtime.workdir import read_config
from scripts.study_plan import read

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "results" / "accelerator.jsonl", ROOT / "docs" / "accelerator.md"
HEAD = """\
# On an accelerator

Written by `python -m scripts.accelerator_page` from `results/accelerator.jsonl`: run that, do not
edit this page.

`scripts/accelerator.sh` measures what only a GPU or TPU can show, in calls of at most nine minutes
that continue where the last one stopped: the [benchmarks](performance.md) of a training step, of
inference, against PyTorch and of the training loop at batch 256 and 1024 in bfloat16, and 300
epochs of ViT-Tiny/4 on JPEG-recompressed CIFAR-10 with GELU and RAA, without ARR, with it, and RAA
with a plain L1 in its place ([study](study.md), [data](study.md#data)).
"""
NOTHING = "\nNo accelerator has been measured yet.\n"
BENCHMARK = ("device", "benchmark", "batch", "dtype", "unit", "ours", "other", "ratio")
Row = dict[str, Any]


def measured(runs: Path) -> list[Row]:
    """The rows of the benchmarks and trainings that are finished in a folder of runs."""
    rows = []
    for path in sorted(runs.glob("*.out")):
        if (runs / path.stem).is_dir():
            rows.append(_training(runs / path.stem, path))
        else:
            rows += map(json.loads, path.read_text().splitlines())
    return rows


def _training(workdir: Path, out: Path) -> Row:
    config, usual = flatten(read_config(workdir)), flatten(load(str(ROOT / "configs/cifar10.py")))
    of_the_case = ("model.act", "arr.weight", "arr.target", "train.epochs")
    changed = {k: v for k, v in config.items() if v != usual.get(k) and k not in of_the_case}
    summary = json.loads((workdir / "summary.json").read_text())
    scores = {w: {k: summary[w][f"test/{k}"] for k in ("acc", "loss_ce")} for w in ("last", "best")}
    settings = {"epochs": config["train.epochs"], "changed": changed}
    # Of the machine that trained, as the run says; another one may merge.
    said = re.findall(r"steps on (.+) in \d+ processes", out.read_text())
    return {"training": workdir.name, "device": said[-1], "settings": settings} | scores


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """All rows; of two of the same measurement the new one."""
    names = ("training", "benchmark", "device", "case", "unit", "settings")
    key = lambda row: json.dumps([row.get(name) for name in names], sort_keys=True)
    return list({key(row): row for row in (*old, *new)}.values())


def page(rows: Sequence[Row]) -> str:
    if not rows:
        return HEAD + NOTHING
    benchmarks = [
        (
            row["device"],
            f"{row['benchmark']}, {row['case']}",
            row["settings"]["batch_size"],
            row["settings"]["dtype"],
            row["unit"],
            *("" if row[name] is None else f"{row[name]:.4g}" for name in ("ours", "other")),
            "" if row["ratio"] is None else f"{row['ratio']:.3f}",
        )
        for row in rows
        if "benchmark" in row
    ]
    trainings = [
        (
            row["device"],
            row["training"],
            row["settings"]["epochs"],
            *(f"{100 * row[which]['acc']:.2f}" for which in ("last", "best")),
            f"{row['last']['loss_ce']:.3f}",
            ", ".join(f"{name}={value}" for name, value in row["settings"]["changed"].items()),
        )
        for row in rows
        if "training" in row
    ]
    head = ("device", "case", "epochs", "test accuracy, %", "best", "test cross-entropy")
    parts = [HEAD, "## Benchmarks\n", _table(BENCHMARK, benchmarks), "## Trainings\n"]
    return "\n".join([*parts, _table((*head, "differs from configs/cifar10.py in"), trainings)])


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, help="folder of the runs of scripts/accelerator.sh")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    rows = merged(read(args.results), measured(args.runs) if args.runs else [])
    if rows:
        args.results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args.page.write_text(page(rows))


if __name__ == "__main__":
    main()
