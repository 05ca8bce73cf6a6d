"""Compiles every model for a TPU and a GPU that are not there, and tabulates what the compiled
programs say: memory, estimated cycles or bytes, and the share of the peak that these allow.

    python -m scripts.zoo_compiled [MODEL ...]      # one JSON line per program, in --out
    python -m scripts.zoo_compiled --table          # the lines as Markdown tables

RAA + ARR on one chip, in bfloat16, then in float32. Programs in --out are skipped; one that does
not compile is reported and left out, and the exit status is then 1. On one core the 112 programs
for the GPU take half an hour, those for the TPU some hours. Needs the extras aot-tpu and aot-gpu.
"""

import argparse
import itertools
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dnrt_jax import models
from dnrt_jax.benchmark import compile as benchmark
from dnrt_jax.runtime.errors import UserError
from scripts import zoo
from scripts.study_plan import read

# By target.
COMPILERS = {"gpu:h100": ("jax-cuda12-pjrt", "jax-cuda13-pjrt"), "tpu:v5e:1x1": ("libtpu",)}
DTYPES, WHATS = ("bfloat16", "float32"), ("train", "infer")
SIZES = {32: (256, 10), 224: (64, 1000)}  # image size: batch size, classes
KEY = ("dtype", "target", "what", "model")
Row = dict[str, Any]


def measure(dtype: str, target: str, what: str, model: str) -> Row:
    """What the compiled program says, by case of `benchmark compile`.

    Raises:
      UserError, RuntimeError: if it does not compile.
    """
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    args = parser.parse_args([f"--target={target}", f"--what={what}", f"--dtype={dtype}"])
    args.model, (args.batch_size, args.num_classes) = model, SIZES[_image_size(model)]
    values = {row.case.removeprefix(f"{what}: "): row.ours for row in benchmark.run(args)}
    found = {name: _version(name) for name in ("jax", *COMPILERS[target])}
    compilers = {name: number for name, number in found.items() if number}
    settings = {"batch_size": args.batch_size, "compilers": compilers, "commit": _commit()}
    return dict(zip(KEY, (dtype, target, what, model), strict=True)) | settings | {"values": values}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _image_size(model: str) -> int:
    built: Any = models.create(model, num_classes=1)
    return built.image_size


def table(rows: list[Row], dtype: str) -> str:
    """Of the programs of a dtype: what each says, with a row for each model."""
    cases = list(itertools.product(COMPILERS, WHATS))
    head = ["model", "batch", *(f"{target}, {what}" for target, what in cases)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    found = {tuple(row[name] for name in KEY): row for row in rows}
    for model in models.registry():
        programs = [found.get((dtype, *case, model)) for case in cases]
        if any(programs):
            size = next(row["batch_size"] for row in programs if row)
            cells = [_cell(row["values"]) if row else "" for row in programs]
            lines.append(f"| {' | '.join([model, str(size), *cells])} |")
    return "\n".join(lines)


def _cell(values: dict[str, float]) -> str:
    work = f"{values['step']:.2f} M" if "step" in values else f"{values['bytes']:.2f} GB"
    star = "*" if values.get("all products by cuBLAS") else ""
    return f"{values['memory']:,.0f} MB; {work}; {values['share of peak']:.1%}{star}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="default: all of images")
    parser.add_argument("--targets", nargs="+", choices=COMPILERS, default=list(COMPILERS))
    parser.add_argument("--out", type=Path, default=Path("results/zoo_compiled.jsonl"))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    zoo.check_models(parser, args.models)
    rows = read(args.out)
    if args.table:
        print("\n\n".join(table(rows, dtype) for dtype in DTYPES))
        return 0
    done, failed = {tuple(row[name] for name in KEY) for row in rows}, 0
    chosen = args.models or sorted(zoo.MODELS, key=_image_size)  # the quick ones first
    for key in itertools.product(DTYPES, args.targets, WHATS, chosen):
        if key in done:
            continue
        try:
            row = measure(*key)
        except (UserError, RuntimeError) as error:
            failed += 1
            print(*key, f"does not compile: {error}", flush=True)
            continue
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(*key, _cell(row["values"]), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
