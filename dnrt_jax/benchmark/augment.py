"""The paper's augmentation on the device: alone, and as a fraction of a training step."""

import argparse
import copy
from collections.abc import Iterator

import jax

from dnrt_jax.benchmark import training
from dnrt_jax.benchmark.timing import Result, compare, interleaved, timed
from dnrt_jax.config import Config
from dnrt_jax.data import augment
from dnrt_jax.tasks.image_classification import TRAIN_FIELDS

MODELS = {32: "vit_tiny_patch4_32", 224: "vit_tiny_patch16_224"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image_size", type=int, choices=sorted(MODELS), default=32)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=training.default_steps(), help="a dispatch")


def run(args: argparse.Namespace) -> Iterator[Result]:
    config = training.config_of(MODELS[args.image_size], args.batch_size, args.dtype)
    return measure(config, args.steps, args.rounds)


def measure(config: Config, steps: int, rounds: int) -> Iterator[Result]:
    """Images per second of the transform; step time with and without it; its fraction."""
    full = copy.deepcopy(config)
    full.data.update(training.AUGMENTED)
    fields = {name: full.data[name] for name in TRAIN_FIELDS.split()}
    transform = augment.train_transform(**fields)
    batch_size = config.train.batch_size
    keys = training.on_all_devices(jax.random.split(jax.random.key(0), batch_size))
    images = training.on_all_devices(training.images_of(config))

    seconds = interleaved(
        {
            "alone": timed(lambda: jax.block_until_ready(transform(keys, images))),
            "with": timed(training.trainer(full, 10, steps)),
            "without": timed(training.trainer(config, 10, steps)),
        },
        rounds,
    )
    size = f"{config.data.image_size} px"
    yield compare(f"alone, {size}", "images/s", batch_size / seconds["alone"])
    with_it, without = seconds["with"] / steps, seconds["without"] / steps
    yield compare(f"step with against without, {size}", "ms/step", 1e3 * with_it, 1e3 * without)
    yield compare(f"share of the step, {size}", "share", 1 - without / with_it)
