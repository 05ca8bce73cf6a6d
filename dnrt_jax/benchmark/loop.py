"""The training loop of the program against its steps alone: evaluation and checkpoints each epoch.

The epochs are made as long as --seconds of steps. "loop" evaluates only at the end; "other" are the
same steps dispatched without a loop, and with evaluation as often where the loop evaluates. For
"checkpoints", "other" are the epochs of the same run in which none is written.
"""

import argparse
import copy
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from dnrt_jax import experiment, train
from dnrt_jax.benchmark import training
from dnrt_jax.benchmark.timing import Result, compare, timed
from dnrt_jax.config import Config
from dnrt_jax.data.datasets import Dataset
from dnrt_jax.experiment import Experiment
from dnrt_jax.run import Run
from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import WorkdirError
from dnrt_jax.runtime.profiling import Profile
from dnrt_jax.runtime.set_folder import SetFolder
from dnrt_jax.runtime.storage import AnyPath
from dnrt_jax.tasks.image_classification import ImageClassification

NEVER = 10**9  # steps
CASES = {  # fields of config.train, with an epoch of `steps` steps
    "loop": lambda steps: {"eval_steps": NEVER, "checkpoint_steps": NEVER},
    "loop, evaluation": lambda steps: {"eval_steps": steps, "checkpoint_steps": NEVER},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="vit_tiny_patch4_32", help="of dnrt_jax.models")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seconds", type=float, default=1.0, help="of steps in an epoch")
    parser.add_argument("--eval_samples", type=int, default=500)
    parser.add_argument("--workdir", help="a new folder of checkpoints; default: a temporary one")


def run(args: argparse.Namespace) -> Iterator[Result]:
    given = storage.path(args.workdir) if args.workdir else None
    if given and (storage.is_file(given / "config.json") or storage.is_dir(given / "checkpoints")):
        raise WorkdirError(f"--workdir={args.workdir}: there is a run in it; name a new folder")
    config = training.config_of(args.model, args.batch_size, args.dtype)
    config.eval.batch_size = min(args.batch_size, args.eval_samples)
    some = timed(training.trainer(config, 10, count := 4))
    some()
    steps = max(round(args.seconds * count / some()), 1)
    config.train.dispatch_steps = min(steps, 64)
    images = lambda samples: _images(config, samples)
    data = images(steps * args.batch_size), images(args.eval_samples)

    def build(fields: dict[str, int]) -> Experiment:
        changed = copy.deepcopy(config)
        changed.train.update(fields | {"log_steps": steps, "steps": NEVER})
        return experiment.build(changed, ImageClassification(changed, *data))

    with tempfile.TemporaryDirectory() as place:
        for case, fields in CASES.items():
            built = build(fields(steps))
            alone = _steps_alone(built, steps, args.rounds, evaluate="evaluation" in case)
            epochs = _epochs(built, args.rounds, Path(place) / case)
            yield compare(case, "s an epoch", epochs, alone)
        built = build({"eval_steps": steps, "checkpoint_steps": 2 * steps})
        epochs = _epochs(built, 2 * args.rounds, given or Path(place) / "checkpoints")
        # That at the end of the second epoch is written during the third, and so on.
        yield compare("checkpoints", "s an epoch", epochs[0::2], epochs[1::2])


def _images(config: Config, samples: int) -> Dataset:
    rng, size = np.random.default_rng(0), config.data.image_size
    images = rng.integers(0, 256, (samples, size, size, 3), np.uint8)
    return Dataset(images, rng.integers(0, 10, samples).astype(np.int32), tuple("0123456789"))


def _steps_alone(built: Experiment, steps: int, rounds: int, *, evaluate: bool) -> np.ndarray:
    """Seconds of each of `rounds` epochs of steps, and evaluations, without a loop."""
    dispatch, state, most = built.dispatch(), built.create(), built.config.train.dispatch_steps
    evaluation = built.task.evaluator(built.model, built.mesh)
    seconds = []
    for _ in range(rounds + 1):  # the first one compiles
        start, values = time.perf_counter(), None
        for first in range(0, steps, most):
            state, values = dispatch.run(state, first, min(most, steps - first))
        assert values is not None
        values()
        if evaluate:
            evaluation(state)
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[1:])


def _epochs(built: Experiment, rounds: int, workdir: AnyPath) -> np.ndarray:
    """Seconds of each of `rounds` epochs of the loop, from the third one on."""
    clock = Clock(rounds + 2)  # the first two compile
    with train.Stop() as stop:
        clock.stop = stop
        with SetFolder(workdir, {"": [""]}) as folder:
            one = Run("", built, folder.members[""])
            folder.members[""].tracker = clock
            folder.start([""])
            with redirect_stderr(io.StringIO()):  # the time left of a run that never ends
                train.fit([one], stop, folder, Profile(Path(), 0))
    return np.diff(clock.times)[-rounds:]


class Clock:
    """Gets the records of a run, one an epoch, and stops it after some."""

    def __init__(self, records: int):
        self.times: list[float] = []
        self.stop: Any = None
        self._left = records

    def log(self, record: dict[str, Any]) -> None:
        self.times.append(time.perf_counter())
        self._left -= 1
        if not self._left:
            self.stop.signal = 15

    def close(self) -> None: ...
