"""A step compiled for accelerators that are not there: what the compiled program tells of its cost.

The program is the one that training dispatches: many steps in a loop, on 50,000 images of 32 pixels
or as many bytes of larger ones, in device memory; or, for data that hosts send, one step. What is
counted is one pass of that loop (of all others the whole program), with all that it calls, on one
device; what lies outside of it is paid once a dispatch.

TPU: the compiler's estimated cycles, and the time they take where the clock is published. Gathers
and scatters, collectives and copies in flight have no estimate and are counted beside it. GPU:
kernels, and bytes of their operands and results: whole, but for operands of which only slices or
gathered rows are read. No run, no autotuning, no overlap: these compare programs, not machines.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnrt_jax.benchmark import hlo, targets
from dnrt_jax.benchmark.timing import Result
from dnrt_jax.runtime import flops
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.process import user_errors

DATA = 50_000 * 32 * 32 * 3  # values of the data set
LAUNCH = 3e-6  # seconds a kernel
# Part of a step: in what of an instruction's name scopes and Python calls it shows, first match.
PARTS = {
    "augmentation": r"data/(augment|randaugment|resample)\.py",
    "attention": r"/attn",
    "MLP": r"/mlp",
    "norms": r"/(fc_)?norm|/bn",
    "rest of the model": r"jvp\([A-Z]\w*\)|/[A-Z]\w*/|dnrt_jax/models/",
    "optimiser": r"training/optim\.py|optax/(_src|transforms|tree_utils)/|keep_if_finite",
    "loss and ARR": r"dnrt_jax/arr\.py|cross_entropy|TrainStep\._loss",
    "data": r"dispatch\.py:take",
    "rest": "",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help=f"as {', '.join(targets.KNOWN)}")
    parser.add_argument("--what", choices=("train", "eval", "infer"), default="train")
    parser.add_argument(
        "--dispatch", choices=("scan", "single"), default="scan", help="as config.train.dispatch"
    )
    parser.add_argument("--model", default="vit_tiny_patch4_32", help="of dnrt_jax.models")
    parser.add_argument("--depth", type=int, help="blocks, where the model has that field")
    parser.add_argument("--act", default="raa", help="activation")
    parser.add_argument("--arr_weight", type=float, default=20.0, help="0 for no ARR")
    parser.add_argument("--batch_size", type=int, default=1024, help="over all devices")
    parser.add_argument(
        "--members", type=int, default=1, help="runs trained together, of --batch_size each"
    )
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rule", choices=("sequential", "centroid"), default="sequential")
    parser.add_argument("--augment", choices=("none", "full"), default="none")
    parser.add_argument("--fsdp", action="store_true", help="split the state over the devices")
    parser.add_argument("--dump", help="folder for the compiled program, as step.txt")


def device(args: argparse.Namespace) -> str:
    return args.target


def run(args: argparse.Namespace) -> Iterator[Result]:
    """Rows of one compiled program."""
    targets.check(args.target)
    if args.members > 1 and not _in_loop(args):
        raise ConfigError(f"--members={args.members}: needs --what=train and --dispatch=scan")
    facts, text = compiled(vars(args))
    row = lambda what, value, unit: Result(
        f"{args.what}: {what}", value, None, None, (value, value), unit, 1
    )
    yield row("compilation", facts["seconds"], "s")
    if facts["program"]:  # of GPUs it is not told
        yield row("program", facts["program"] / 1e6, "MB")
    yield row("memory", facts["memory"] / 1e6, "MB a device")
    yield row("processes", facts["processes"], "of the run")
    program = hlo.parse(text)
    body = program.loop() if _in_loop(args) else program.entry
    for kind, (count, size) in hlo.collectives(program, body).items():
        yield row(kind, count, "a step")
        yield row(f"{kind}, results", size / 1e6, "MB a step")
    for kind in ("gather", "scatter"):
        yield row(f"scalar {kind}s", hlo.scalar_moves(program, body)[kind], "a step")
    if _in_loop(args):
        copies = hlo.copies(program, "u8", facts["data"])
        yield row("copies of the data set", copies, "a dispatch")
    yield row("float64 arrays", len(re.findall(r"\bf64\[", text)), "a program")
    read = _tpu_rows if args.target.startswith("tpu") else _gpu_rows
    for what, value, unit in read(args, facts, program, body):
        yield row(what, value, unit)


def _in_loop(args: argparse.Namespace) -> bool:
    return args.what == "train" and args.dispatch == "scan"


def _tpu_rows(args, facts, program: hlo.Program, body: str) -> Iterator[tuple[str, float, str]]:
    cycles, unknown = Counter(dict.fromkeys(PARTS, 0)), Counter()
    for instruction, times in program.running(body):
        if instruction.cycles is not None:
            cycles[part(program, instruction)] += times * instruction.cycles
        elif kind := _without_estimate(instruction):
            unknown[kind] += times
    for name, count in cycles.items():
        yield name, count / 1e6, "M cycles"
    yield "step", (total := sum(cycles.values())) / 1e6, "M cycles"
    if _in_loop(args):
        outside = sum(times * (i.cycles or 0) for i, times in program.outside(body))
        yield "outside the loop", outside / 1e6, "M cycles"
    for kind, count in sorted(unknown.items()):
        yield f"without an estimate: {kind}", count, "a step"
    generation = args.target.split(":")[1]
    share = facts["devices"] // math.gcd(facts["devices"], args.members)
    moved = sum(
        hlo.on_the_ring(kind, size, share)
        for kind, (_, size) in hlo.collectives(program, body).items()
    )
    yield "collectives at the link's speed", 1e3 * moved / targets.TPU_LINK[generation], "ms/step"
    if hertz := targets.TPU_HZ[generation]:
        yield "predicted time", 1e3 * total / hertz, "ms/step"
        yield from _speed(args, facts, total / hertz)


def _gpu_rows(args, facts, program: hlo.Program, body: str) -> Iterator[tuple[str, float, str]]:
    kernels, moved = hlo.traffic(program, body)
    yield "all products by cuBLAS", int(facts["by_cublas"]), "a program"
    yield "kernels", kernels, "a step"
    yield "bytes", moved / 1e9, "GB a step"
    card = targets.CARDS[args.target.partition(":")[2]]
    seconds = {
        "bytes": moved / card.bandwidth,
        "operations": _operations(args, facts) / flops.PEAK_FLOPS[card.name],
        "launches": kernels * LAUNCH,
    }
    for name, value in seconds.items():
        yield f"time of {name}", 1e3 * value, "ms/step"
    bound = max(seconds, key=lambda name: seconds[name])
    yield f"bound by {bound}", 1e3 * seconds[bound], "ms/step"
    yield from _speed(args, facts, seconds[bound])


def _speed(args, facts, seconds: float) -> Iterator[tuple[str, float, str]]:
    yield "predicted speed", args.members * args.batch_size / seconds, "images/s"
    peak = targets.chips(args.target) * flops.PEAK_FLOPS[facts["kind"]]
    yield "share of peak", _operations(args, facts) / (seconds * peak), "of peak"


def _operations(args, facts) -> int:
    """Of the model on all devices, without the augmentation."""
    return 2 * (3 if args.what == "train" else 1) * facts["macs"] * args.batch_size * args.members


def part(program: hlo.Program, instruction: hlo.Instruction) -> str:
    """Which of PARTS an instruction belongs to; a fusion goes where its root does."""
    told = " ".join([instruction.op_name, *program.origin(instruction)])
    return next(name for name, pattern in PARTS.items() if re.search(pattern, told))


def _without_estimate(instruction: hlo.Instruction) -> str | None:
    """The kind of an instruction that takes time which the compiler does not estimate."""
    opcode = instruction.opcode.removesuffix("-start")
    if instruction.is_free or (instruction.opcode == opcode and hlo.size(instruction.result) <= 8):
        return None  # a scalar's arithmetic
    if opcode in hlo.KINDS:
        return "collectives"
    if instruction.opcode in ("copy-start", "slice-start", "async-start"):
        return "copies in flight"
    moves = opcode == "fusion" and "estimated_cycles" not in instruction.attributes
    return "gathers and scatters" if moves else "others"


def compiled(settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(facts, text) of the program, compiled in a process with the environment it needs.

    Raises:
      ConfigError: with the mistake of the user that it found.
      RuntimeError: if it failed otherwise, after all that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(settings["dump"] or folder).expanduser() / "step.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "dnrt_jax.benchmark.compile", str(path), json.dumps(settings)],
            env=os.environ | targets.ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            *_, last = ["", *done.stderr.strip().splitlines()]
            if not last.startswith("error: "):
                print(done.stderr, file=sys.stderr)
                raise RuntimeError(f"the compiling process ended with {done.returncode}")
            raise ConfigError(last.removeprefix("error: "))
        return json.loads(done.stdout.splitlines()[-1]), path.read_text()


def _compile(path: str, settings: dict[str, Any]) -> None:
    """Compiles here; writes the program's text to `path` and prints the facts."""
    import time

    from dnrt_jax.benchmark import training
    from dnrt_jax.runtime.sharding import make_mesh

    mesh = make_mesh(targets.devices(settings["target"]))
    lowered, macs, data = training.lowered(settings, DATA, mesh)
    start = time.perf_counter()
    program, by_cublas = _executable(lowered)
    seconds = time.perf_counter() - start
    Path(path).write_text(program.as_text())
    memory: Any = program.memory_analysis()
    alive = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    facts = {
        "kind": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "processes": len({device.process_index for device in mesh.devices.flat}),
        "seconds": seconds,
        "program": memory.generated_code_size_in_bytes,
        "memory": alive - memory.alias_size_in_bytes,
        "macs": macs,
        "data": data,
        "by_cublas": by_cublas,
    }
    print(json.dumps(facts))


def _executable(lowered: Any) -> tuple[Any, bool]:
    """(the compiled program, whether all its matrix products are left to cuBLAS)"""
    from jax.errors import JaxRuntimeError

    try:
        return lowered.compile(), False
    except JaxRuntimeError as error:
        # Triton's tiles fit no such product as XLA guesses them; on a card it tries cuBLAS, too.
        if "output tile sizes" not in str(error):
            raise
    return lowered.compile({"xla_gpu_enable_triton_gemm": False}), True


if __name__ == "__main__":
    with user_errors():
        _compile(sys.argv[1], json.loads(sys.argv[2]))
