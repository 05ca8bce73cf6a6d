"""The results of a table's runs: as rows for a file, and as a Markdown table."""

import statistics
from collections.abc import Sequence
from typing import Any

from scripts.reproduce_plan import Run


def summarize(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One dict per row, with the results of its seeds."""
    found: dict[int, dict[str, Any]] = {}
    for run in runs:
        row = run.row._asdict()
        entry = found.setdefault(id(run.row), {k: row[k] for k in ("dataset", "model", "case")})
        entry["paper"] = run.row.paper
        seeds = entry.setdefault("seeds", {})
        if result := run.result():
            seeds[str(run.seed)] = result
    return list(found.values())


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows with all their seeds; a seed of both is that of `new`."""
    key = lambda row: (row["dataset"], row["model"], row["case"])
    found = {key(row): row for row in old}
    for row in new:
        seeds = found.get(key(row), {}).get("seeds", {}) | row["seeds"]
        found[key(row)] = row | {"seeds": dict(sorted(seeds.items(), key=lambda x: int(x[0])))}
    return list(found.values())


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of mean and standard deviation over the seeds, in percent."""
    lines = [
        "| data | model | case | paper | last epoch | best epoch | last - paper | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        last, best = ([r[which] for r in row["seeds"].values()] for which in ("last", "best"))
        gap = f"{statistics.fmean(last) - row['paper']:+.1f}" if last and row["paper"] else ""
        cells = [row["dataset"], row["model"], row["case"], row["paper"] or "", _spread(last)]
        cells += [_spread(best), gap, len(last)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
