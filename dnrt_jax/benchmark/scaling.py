"""Planning past one machine: the training step compiled for slices of a TPU that are not there.

Memory, collectives and the estimate of computing are read from the compiled program of one chip, as
`compile` does. Communication is predicted: every collective in a ring over all chips, at the speed
of the chip's links in the data sheet, without latency and after the computing, which XLA may
overlap. A slice of several hosts has a process on each: the program is the one they all run.
"""

import argparse
import itertools
from collections.abc import Iterator

from dnrt_jax.benchmark import compile as compiled
from dnrt_jax.benchmark import hlo, targets
from dnrt_jax.benchmark.timing import Result
from dnrt_jax.runtime.errors import ConfigError

TARGETS = ("tpu:v5e:2x4", "tpu:v5e:8x8", "tpu:v5e:16x16")
RULES, LAYOUTS = ("centroid", "sequential"), ("replicated", "fsdp")
AT_MOST = 16_384  # images in a batch: more are not trained with the sequential rule
TOLD = ("processes", "memory", "scalar gathers", "float64 arrays", "copies of the data set")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="slices of a TPU")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--model", default="vit_tiny_patch4_32", help="of dnrt_jax.models")
    parser.add_argument("--depth", type=int, help="blocks, where the model has that field")
    parser.add_argument("--batch_per_chip", type=int, default=128, help=f"in all at most {AT_MOST}")
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")


def device(args: argparse.Namespace) -> str:
    return ", ".join(args.targets)


def run(args: argparse.Namespace) -> Iterator[Result]:
    """Rows: memory, collectives, time of computing and of communication, and its share.

    Raises:
      ConfigError: for what is no slice of a TPU, or of one whose clock is not known.
    """
    for target in args.targets:
        kind, _, model = target.partition(":")
        if kind != "tpu" or not targets.TPU_HZ.get(model.partition(":")[0]):
            raise ConfigError(f"--targets={target}: a TPU v4, v5e or v5p, as {TARGETS[0]}")
        targets.check(target)
    for case in itertools.product(args.targets, args.rules, args.layouts):
        yield from _rows(args, *case)


def _rows(args: argparse.Namespace, target: str, rule: str, layout: str) -> Iterator[Result]:
    parser = argparse.ArgumentParser()
    compiled.add_arguments(parser)
    program = parser.parse_args([f"--target={target}", f"--rule={rule}"])
    for name in ("model", "depth", "num_classes", "dtype"):
        setattr(program, name, getattr(args, name))
    chips = targets.chips(target)
    program.batch_size = min(chips * args.batch_per_chip, AT_MOST - AT_MOST % chips)
    program.fsdp = layout == "fsdp"
    found = {row.case.removeprefix("train: "): row for row in compiled.run(program)}
    named = lambda what: f"{target}, {rule}, {layout}: {what}"
    told = [*TOLD, *(f"{kind}{part}" for kind in hlo.KINDS for part in ("", ", results"))]
    for name in filter(found.get, told):
        yield found[name]._replace(case=named(name))
    row = lambda what, value, unit: Result(named(what), value, None, None, (value, value), unit, 1)
    computing = found["predicted time"].ours
    moving = found["collectives at the link's speed"].ours
    yield row("batch", program.batch_size, "images a step")
    yield row("computing", computing, "ms/step")
    yield row("communication", moving, "ms/step")
    yield row("share of communication", moving / (moving + computing), "of the step")
