"""Cora and Citeseer: GCN and GraphSAGE with four activations, the mean of ten seeds.

    python -m scripts.graphs --data_dir=DIR      # one JSON line per run, in --out
    python -m scripts.graphs --table             # the lines as a Markdown table

DIR holds cora.npz and citeseer.npz. Runs in --out are skipped. The test accuracy of a run is that
of the epoch with the best validation accuracy.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from dnrt_jax import experiment
from dnrt_jax.config import validate
from dnrt_jax.config_file import load

CASES = {  # name: (activation, weight of ARR)
    "relu": ("relu", 0.0),
    "gelu": ("gelu", 0.0),
    "raa": ("raa", 0.0),
    "raa+arr": ("raa", None),
}


def run(name: str, model: str, case: str, seed: int, data_dir: Path, arr_weight: float | None):
    """Trains and returns {"valid", "test": accuracies at the best epoch, "last": at the last}."""
    config = load(f"configs/{name}.py:{model}")
    config.seed, config.data.dir = seed, str(data_dir)
    config.model.act, weight = CASES[case]
    if weight is not None:
        config.arr.weight = weight
    elif arr_weight is not None:
        config.arr.weight = arr_weight
    validate(config)
    built = experiment.load(config)
    evaluate = built.task.evaluator(built.model, built.mesh)
    dispatch, state = built.dispatch(), built.create()
    results = []
    for step in range(built.total_steps):
        state, _ = dispatch.run(state, step, 1)
        values = evaluate(state)
        results.append((values["valid/acc"], values["test/acc"]))
    best = max(results, key=lambda pair: pair[0])  # the first one, if equal
    return {"valid": best[0], "test": best[1], "last": results[-1][1]}


def table(rows: list[dict]) -> str:
    lines = [f"| | {' | '.join(CASES)} |", "|---" * (1 + len(CASES)) + "|"]
    for name, model in dict.fromkeys((row["data"], row["model"]) for row in rows):
        cells = []
        for case in CASES:
            key = {"data": name, "model": model, "case": case}
            found = [100 * row["test"] for row in rows if key.items() <= row.items()]
            cells.append(f"{statistics.fmean(found):.1f} ± {statistics.stdev(found):.1f}")
        lines.append(f"| {name}, {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--data", nargs="+", default=["cora", "citeseer"])
    parser.add_argument("--models", nargs="+", default=["gcn", "graphsage"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--arr_weight", type=float, help="default: as in the config")
    parser.add_argument("--out", type=Path, default=Path("results/graphs.jsonl"))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.open()] if args.out.exists() else []
    if args.table:
        print(table(rows))
        return
    if args.data_dir is None:
        parser.error("give --data_dir=DIR, where cora.npz and citeseer.npz lie")
    done = [{k: row[k] for k in ("data", "model", "case", "seed")} for row in rows]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name, model, case, seed in itertools.product(
        args.data, args.models, args.cases, range(args.seeds)
    ):
        key = {"data": name, "model": model, "case": case, "seed": seed}
        if key not in done:
            row = key | run(name, model, case, seed, args.data_dir, args.arr_weight)
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
