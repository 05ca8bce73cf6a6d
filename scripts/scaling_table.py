"""The Markdown table of docs/scaling.md, from the rows of `benchmark scaling`.

python -m scripts.scaling_table
"""

import argparse
import math
from pathlib import Path
from typing import Any

from scripts.study_plan import read

RESULTS = Path(__file__).parent.parent / "results" / "compiled.jsonl"
HEAD = (
    "blocks", "chips", "hosts", "batch", "ARR's rule", "state", "MB per chip", "all-reduce, MB",
    "all-gather, MB", "others, MB", "computing, ms", "communication, ms", "share",
)  # fmt: skip
OTHERS = ("reduce-scatter", "all-to-all", "collective-permute")


def table(rows: list[dict[str, Any]]) -> str:
    programs: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["benchmark"] == "scaling":
            case, _, what = row["case"].rpartition(": ")
            program = (*case.split(", "), row["settings"]["depth"])
            programs.setdefault(program, {})[what] = row["ours"]
    lines = [_line(HEAD), "|---" * len(HEAD) + "|"]
    chips = lambda target: math.prod(map(int, target.split(":")[2].split("x")))
    order = lambda item: (item[0][3], chips(item[0][0]), item[0][1], item[0][2] == "fsdp")
    for (target, rule, layout, depth), told in sorted(programs.items(), key=order):
        megabytes = lambda *kinds, told=told: sum(told.get(f"{kind}, results", 0) for kind in kinds)
        sent = (megabytes("all-reduce"), megabytes("all-gather"), megabytes(*OTHERS))
        cells = [depth, chips(target)]
        cells += [f"{told['processes']:.0f}", f"{told['batch']:.0f}", rule, layout]
        cells += [f"{told['memory']:.0f}", *(f"{size:.1f}" for size in sent)]
        cells += [f"{told['computing']:.2f}", f"{told['communication']:.2f}"]
        lines.append(_line([*cells, f"{told['share of communication']:.1%}"]))
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(table(read(RESULTS)))
