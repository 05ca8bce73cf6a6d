"""The paper's table 4: multiply-accumulates and latency at 224 pixels, ReLU against DNRT."""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from dnrt_jax import models
from dnrt_jax.benchmark import training
from dnrt_jax.benchmark.timing import Result, compare, interleaved, timed
from dnrt_jax.runtime.flops import of_image_model

# 10^9 multiply-accumulates, which the paper calls FLOPs, and latency in ms of ReLU and DNRT. The
# paper does not give the device or batch size of the latencies.
PAPER = {
    "vit_tiny_patch16_224": {"relu": (1.078, 4.5), "raa": (1.080, 4.6)},
    "tnt_s_patch16_224": {"relu": (4.849, 10.1), "raa": (4.856, 10.5)},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=PAPER, default=list(PAPER))
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def run(args: argparse.Namespace) -> Iterator[Result]:
    """Rows: counts, and latencies of raa relative to relu, here and in the paper."""
    for name in args.models:
        paper = PAPER[name]
        for act, (gmacs, _) in paper.items():
            counted = np.full(1, gmacs_of(name, act))
            yield compare(f"{name} {act}, paper", "GMACs", counted, np.full(1, gmacs))
        config = training.config_of(name, args.batch_size, args.dtype)
        sides = {}
        for act in paper:
            config.model.act = act
            sides[act] = timed(training.predictor(config, 1000))
        seconds = interleaved(sides, args.rounds)
        yield compare(f"{name} raa, relu", "ms", *(1e3 * seconds[act] for act in ("raa", "relu")))
        latencies = (np.full(1, paper[act][1]) for act in ("raa", "relu"))
        yield compare(f"{name} raa, relu: paper", "ms", *latencies)


def gmacs_of(name: str, act: str) -> float:
    """10^9 multiply-accumulates per image in layers and RAA's shifts, with 1000 classes."""
    model: Any = models.create(name, num_classes=1000, act=act)
    return of_image_model(model).layers / 1e9
