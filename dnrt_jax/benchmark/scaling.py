"""Planning past one machine: the training step compiled for many simulated devices, not run.

Memory and collectives are read from the compiled program of one device; time is predicted, with
every device computing at --tflops and moving data in a ring at --link_gb_per_s, one after the
other. XLA:CPU compiles here: other back ends fuse differently and combine collectives further.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from dnrt_jax.benchmark import hlo
from dnrt_jax.benchmark.timing import Result
from dnrt_jax.runtime.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="vit_tiny_patch4_32", help="of dnrt_jax.models")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--batch_per_device", type=int, default=128)
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument("--rule", choices=("sequential", "centroid"), default="centroid")
    parser.add_argument("--tflops", type=float, default=50.0, help="sustained, of one device")
    parser.add_argument(
        "--link_gb_per_s", type=float, nargs="+", default=[12.5, 50.0, 200.0], help="of one device"
    )


def run(args: argparse.Namespace) -> Iterator[Result]:
    """Rows: memory, bytes a step by kind of collective, predicted share of communication."""
    for devices in args.devices:
        for layout in ("replicated", "fsdp"):
            yield from _rows(args, devices, layout)


def _rows(args: argparse.Namespace, devices: int, layout: str) -> Iterator[Result]:
    settings = {
        "model": args.model,
        "batch_size": devices * args.batch_per_device,
        "num_classes": args.num_classes,
        "rule": args.rule,
        "fsdp": layout == "fsdp",
    }
    flag = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "dnrt_jax.benchmark.scaling", json.dumps(settings)],
        env=os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ConfigError(f"scaling: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    case = f"{devices} devices, {layout}"
    row = lambda what, value, unit: Result(
        f"{case}{what}", value, None, None, (value, value), unit, 1
    )
    yield row("", found["memory"] / 1e6, "MB a device")
    for kind, (count, size) in found["collectives"].items():
        yield row(f": {count} x {kind}", size / 1e6, "MB a step")
    moved = sum(
        hlo.on_the_ring(kind, size, devices) for kind, (_, size) in found["collectives"].items()
    )
    computing = 6 * found["macs"] * args.batch_per_device / (args.tflops * 1e12)
    for link in args.link_gb_per_s:
        moving = moved / (link * 1e9)
        share = moving / (moving + computing)
        yield row(f": share at {link:g} GB/s", share, "of the step")


def compiled(settings: dict[str, Any]) -> dict[str, Any]:
    """Of the training step on all devices: bytes of memory and of collectives of one of them."""
    import jax

    from dnrt_jax.benchmark import training
    from dnrt_jax.runtime.sharding import replicated, split

    config = training.config_of(settings["model"], settings["batch_size"], "float32")
    config.arr.rule, config.parallel.fsdp = settings["rule"], settings["fsdp"]
    config.train.steps = 1
    built = training.describe(config, settings["num_classes"])
    images, labels = training.images_of(config), training.labels_of(config, 1)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split(built.mesh))
        for name, x in {"inputs": images, "label": labels, "mask": labels == 0}.items()
    }
    out = (jax.tree.map(lambda x: x.sharding, built.shapes), replicated(built.mesh))
    program = jax.jit(built.step, out_shardings=out, donate_argnums=0)
    program = program.lower(built.shapes, batch).compile()
    memory: Any = program.memory_analysis()
    text: Any = program.as_text()
    return {
        "memory": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "collectives": hlo.collectives_of(text),
        "macs": built.task.multiply_accumulates(built.model),
    }


if __name__ == "__main__":
    print(json.dumps(compiled(json.loads(sys.argv[1]))))
