"""Benchmarks of two sides in one process: python -m dnrt_jax.benchmark SUBCOMMAND [--json]

    step      a training step: GELU, RAA, GELU+ARR, RAA+ARR
    infer     inference with RAA against GELU
    table4    multiply-accumulates and latency, next to the paper's
    arr       the cost of ARR against classes, batch, layers, dimension and rule
    peer      training and inference against an equivalent PyTorch ViT
    loop      the training loop with evaluation and checkpoints against its steps alone
    startup   time to import and to the first step, without and with a compilation cache
    augment   the augmentation alone, and its fraction of a training step
    loader    the streaming loader against a torch DataLoader
    scaling   the training step compiled for slices of a TPU: memory, collectives, predicted time
    compile   a step compiled for a TPU or GPU that is not there: cycles, kernels, bytes, memory

In each round all sides run once, in turn. A row shows medians over the rounds, the median ratio of
two sides within a round, and its quartiles. --json prints one object per line with benchmark, case,
device, ours, other, ratio, unit, n (rounds), spread (quartiles) and the settings.
"""

from dnrt_jax.runtime import train_extra  # noqa: F401

# isort: split

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence

from dnrt_jax.benchmark.timing import Result
from dnrt_jax.runtime.process import Parser, keep_memory, user_errors

SUBCOMMANDS = ["step", "infer", "table4", "arr", "peer", "startup", "augment", "loader", "scaling"]
SUBCOMMANDS += ["loop", "compile"]
ZERO = ("workers", "arr_weight")  # options that may be 0


def main(argv: Sequence[str] | None = None) -> int:
    name, options = _subcommand(argv)
    # Import only the subcommand, so that --help and mistakes are answered quickly.
    keep_memory()  # as in training
    with user_errors():
        benchmark = importlib.import_module(f"dnrt_jax.benchmark.{name}")
        args = _options(name, benchmark, options)
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        device = benchmark.device(args) if hasattr(benchmark, "device") else _device()
        header = False
        for result in benchmark.run(args):
            if args.json:
                row = {
                    "benchmark": name,
                    "device": device,
                    **result._asdict(),
                    "settings": settings,
                }
                print(json.dumps(row), flush=True)
                continue
            if not header:
                listed = ", ".join(f"{k}={v}" for k, v in settings.items())
                print(f"{name} on {device}, load {_load()}: {listed}\n{HEADER}")
                header = True
            print(_line(result), flush=True)
    return 0


def _subcommand(argv: Sequence[str] | None) -> tuple[str, list[str]]:
    parser = Parser(
        prog="python -m dnrt_jax.benchmark",
        description=__doc__,
    )
    parser.add_argument("subcommand", choices=SUBCOMMANDS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="see SUBCOMMAND --help")
    args = parser.parse_args(argv)
    return args.subcommand, args.options


def _options(name: str, benchmark, options: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog=f"python -m dnrt_jax.benchmark {name}",
        description=benchmark.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    benchmark.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=9, help="number of rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args(options)
    for option, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if type(number) is int and number < 1 and option not in ZERO:
                parser.error(f"--{option}={number}: must be 1 or more")
            if type(number) is float and not number > 0 and option not in ZERO:
                parser.error(f"--{option}={number}: must be above 0")
            if option in ZERO and not number >= 0:
                parser.error(f"--{option}={number}: must be 0 or more")
    return args


def _device() -> str:
    import jax

    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return f"{device} of {os.cpu_count()} cores" if jax.default_backend() == "cpu" else device


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


HEADER = (
    f"{'case':32} {'ours':>10} {'other':>10}  {'unit':16} {'ratio':>7}  {'quartiles':15} {'n':>3}"
)


def _line(result: Result) -> str:
    ours, other, ratio = (
        "-" if x is None else f"{x:.4g}" for x in (result.ours, result.other, result.ratio)
    )
    low, high = (f"{x:.4g}" for x in result.spread)
    quartiles = f"{low} .. {high}"
    return (
        f"{result.case:32} {ours:>10} {other:>10}  {result.unit:16} {ratio:>7}  {quartiles:15} "
        f"{result.n:>3}"
    )


if __name__ == "__main__":
    sys.exit(main())
