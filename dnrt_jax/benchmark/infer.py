"""Inference with RAA against GELU: uint8 images to logits, evaluation transform included."""

import argparse
from collections.abc import Iterator

from dnrt_jax.benchmark import training
from dnrt_jax.benchmark.timing import Result, compare, interleaved, timed
from dnrt_jax.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="vit_tiny_patch4_32", help="of dnrt_jax.models")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def run(args: argparse.Namespace) -> Iterator[Result]:
    config = training.config_of(args.model, args.batch_size, args.dtype)
    return measure(config, args.rounds)


def measure(config: Config, rounds: int) -> Iterator[Result]:
    """Two rows per case, time and throughput; gelu against itself shows the noise."""
    sides = {}
    for act in ("gelu", "raa"):
        config.model.act = act
        sides[act] = timed(training.predictor(config, 10))
    seconds = interleaved({"other": sides["gelu"], **sides}, rounds)
    for act in ("gelu", "raa"):
        ours, other = seconds[act], seconds["other"]
        yield compare(act, "ms/batch", 1e3 * ours, 1e3 * other)
        batch_size = config.train.batch_size
        yield compare(act, "images/s", batch_size / ours, batch_size / other)
