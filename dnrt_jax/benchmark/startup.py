"""Time to import and to the first training step, without and with a compilation cache."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from dnrt_jax.benchmark.timing import Result, compare, interleaved, timed
from dnrt_jax.runtime.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/digits.py", help="of the training")


def run(args: argparse.Namespace) -> Iterator[Result]:
    """Rows: seconds to import, and to the record of the first step, cold and warm.

    Raises:
      ConfigError: if the training ends before its first step, with its output.
    """
    sides = {name: timed(lambda code=code: _python("-c", code)) for name, code in IMPORTS.items()}
    with tempfile.TemporaryDirectory() as kept:
        sides["warm"] = timed(lambda: first_step(args.config, kept))
        sides["cold"] = timed(lambda: _cold(args.config))
        seconds = interleaved(sides, args.rounds)
    for name in IMPORTS:
        yield compare(name, "s", seconds[name])
    yield compare("first step: cold, warm", "s", seconds["cold"], seconds["warm"])


IMPORTS = {"python": "", "import dnrt_jax": "import dnrt_jax"}


def _cold(config: str) -> None:
    with tempfile.TemporaryDirectory() as empty:
        first_step(config, empty)


def first_step(config: str, kept: str) -> None:
    """Starts a training, waits for the record of its first step and kills it."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "dnrt_jax.main", f"--config={config}"]
        command += [f"--workdir={workdir}/run", "--config.train.log_steps=1"]
        with subprocess.Popen(
            command,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": kept},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            said = ""
            for said in process.stderr:
                if said.startswith("step 1 "):
                    break
            else:
                raise ConfigError(f"the training ended before its first step: {said.strip()}")
            process.kill()


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True)
