"""Cost of ARR (update, loss and gradient), alone and relative to a ViT-Tiny training step."""

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import jax

from dnrt_jax import arr
from dnrt_jax.benchmark import training
from dnrt_jax.benchmark.timing import Result, compare, interleaved, timed

RULES = ("sequential", "centroid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    several = {"type": int, "nargs": "+"}
    parser.add_argument("--batch_size", **several, default=[64, 1024], help="B")
    parser.add_argument("--num_classes", **several, default=[10, 1000, 10_000], help="K")
    parser.add_argument("--layers", **several, default=[12], help="J")
    parser.add_argument("--dim", **several, default=[192], help="D")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument(
        "--step_batch", type=int, default=64, help="batch size of the training step"
    )


def run(args: argparse.Namespace) -> Iterator[Result]:
    """Two rows per case: time, and time relative to a GELU step of ViT-Tiny/4 with the same batch.

    The time of the step is measured with `step_batch` images and scaled to the batch.
    """
    config = training.config_of("vit_tiny_patch4_32", args.step_batch, "float32")
    config.model.act, config.arr.weight = "gelu", 0.0
    steps = training.default_steps()
    sizes = (args.rules, args.batch_size, args.num_classes, args.layers, args.dim)
    sides = {size: timed(alone(*size)) for size in itertools.product(*sizes)}
    named = {"{} B={} K={} J={} D={}".format(*size): side for size, side in sides.items()}
    step = timed(training.trainer(config, 10, steps))
    seconds = interleaved({"step": step, **named}, args.rounds)
    an_image = seconds["step"] / steps / args.step_batch
    for (_, batch_size, *_), case in zip(sides, named, strict=True):
        yield compare(case, "ms", 1e3 * seconds[case])
        yield compare(case, "share of step", seconds[case] / (an_image * batch_size))


def alone(rule: Any, batch_size: int, num_classes: int, layers: int, dim: int):
    """A function that runs one update and computes the loss and its gradient, and waits."""
    keys = jax.random.split(jax.random.key(0), layers + 1)
    draw = lambda key: training.on_all_devices(jax.random.normal(key, (batch_size, dim)))
    responses = list(map(draw, keys[1:]))
    labels = training.on_all_devices(jax.random.randint(keys[0], (batch_size,), 0, num_classes))
    centroids = arr.init(responses, num_classes)

    def step(centroids, responses):
        def loss(responses):
            targets, new = arr.update(centroids, responses, labels, momentum=0.1, rule=rule)
            return arr.loss(responses, targets), new

        return jax.value_and_grad(loss, has_aux=True)(responses)

    compiled = jax.jit(step, donate_argnums=0)

    def run():
        nonlocal centroids
        (value, centroids), grads = compiled(centroids, responses)
        jax.block_until_ready((value, grads, centroids))

    return run
