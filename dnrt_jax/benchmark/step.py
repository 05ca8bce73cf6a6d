"""A training step with RAA, with ARR and with both, against the GELU step of the same model."""

import argparse
from collections.abc import Iterator

from dnrt_jax.benchmark import training
from dnrt_jax.benchmark.timing import Result, compare, interleaved, timed
from dnrt_jax.config import Config

# name: (activation, weight of ARR)
CASES = {"gelu": ("gelu", 0.0), "raa": ("raa", 0.0), "gelu+arr": ("gelu", 20.0)}
CASES["raa+arr"] = ("raa", 20.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="vit_tiny_patch4_32", help="of dnrt_jax.models")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rule", choices=("sequential", "centroid"), default="sequential")
    parser.add_argument("--steps", type=int, default=training.default_steps(), help="a dispatch")


def run(args: argparse.Namespace) -> Iterator[Result]:
    config = training.config_of(args.model, args.batch_size, args.dtype)
    config.arr.rule = args.rule
    return measure(config, args.num_classes, args.steps, args.rounds)


def measure(config: Config, num_classes: int, steps: int, rounds: int) -> Iterator[Result]:
    """Two rows per case, time and throughput; gelu against itself shows the noise."""
    sides = {}
    for case, (act, weight) in CASES.items():
        config.model.act, config.arr.weight = act, weight
        sides[case] = timed(training.trainer(config, num_classes, steps))
    seconds = interleaved({"other": sides["gelu"], **sides}, rounds)
    for case in CASES:
        ours, other = seconds[case] / steps, seconds["other"] / steps
        yield compare(case, "ms/step", 1e3 * ours, 1e3 * other)
        batch_size = config.train.batch_size
        yield compare(case, "images/s", batch_size / ours, batch_size / other)
