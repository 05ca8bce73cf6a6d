"""The training loop. It can be killed at any time and resumed with bitwise the same result."""

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from dnrt_jax import sets
from dnrt_jax.experiment import dispatches
from dnrt_jax.run import Run
from dnrt_jax.runtime import multihost
from dnrt_jax.runtime.errors import NonFiniteError
from dnrt_jax.runtime.profiling import Profile
from dnrt_jax.runtime.progress import Progress
from dnrt_jax.runtime.set_folder import SetFolder
from dnrt_jax.runtime.workdir import CLOSING_SECONDS
from dnrt_jax.training.members import Alone, Together, Trainer


class Stop:
    """Context manager for signals: the first SIGTERM or SIGINT makes the loop save and end, the
    second ends the process immediately."""

    def __enter__(self):
        self.signal = 0
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._catch) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def status(self) -> int:
        """The exit status, 128 + signal number; SIGTERM if only another process got a signal."""
        return 128 + (self.signal or signal.SIGTERM)

    def _catch(self, number, frame):
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        logging.warning(
            "%s: saving a checkpoint, then exiting; send it again to exit immediately",
            signal.Signals(number).name,
        )


def fit(runs: Sequence[Run], stop: Stop, folder: SetFolder, profile: Profile) -> bool:
    """Trains runs to their last step, each from where it is.

    A run whose loss is not finite stops by itself, and the others go on.

    Returns:
      Whether all came to their end; False if `stop` ended them early, after a checkpoint.

    Raises:
      NonFiniteError: for the runs that stopped by themselves, when the others are at their end.
      UserError, OSError: what stopped all of them.
    """
    groups, first = groups_of(runs), runs[0].experiment
    # One that ended early takes no more steps.
    total = lambda: sum(run.calendar.total if run.is_active else run.step for run in runs)
    progress = Progress(sum(run.step for run in runs), total(), is_main=multihost.is_main())
    macs = first.task.multiply_accumulates(first.model)
    progress.say(f"{macs / 1e6:.4g} million multiply-accumulates a sample, forward" if macs else "")
    progress.say("compiling the training step")
    stopping, stops = False, multihost.Agreement()
    while any(run.is_active for run in runs) and not stopping:
        for group in groups:
            before = sum(run.step for run in group.runs)
            # Where groups take turns, the time of each is known only if none waits for another.
            for run, record in group.advance(progress, wait=len(groups) > 1):
                for line in folder.add(run.name, record):
                    progress.show(line)
            ended = (run.name for run in group.runs if not run.is_active)
            for line in (line for name in ended for line in folder.stop(name)):
                progress.show(line)
            progress.expect(total())
            steps = sum(run.step for run in group.runs) - before
            profile.after(steps, partial(group.trainer.state, 0))
            if stopping := stops.any(bool(stop.signal)):
                break
    profile.close()
    for group in groups if stopping else ():
        group.save()
    for run in runs if stopping else ():
        run.workdir.writer.wait(CLOSING_SECONDS)
    progress.close()
    for run in runs:
        if run.is_finished:
            run.summarize()
    if any(run.is_active for run in runs):
        return False
    folder.summarize([run.name for run in runs if not run.is_finished])
    if failed := [run for run in runs if run.failure]:
        named = lambda run: f"{run.name}: {run.failure}" if run.name else str(run.failure)
        raise NonFiniteError("; ".join(map(named, failed)))
    return True


class Group:
    """Runs whose states one trainer holds."""

    def __init__(self, runs: list[Run], trainer: Trainer):
        self.runs, self.trainer = runs, trainer
        # Where each is in its batches; of those that have ended, too, so that a stream goes on.
        self._at = [run.step for run in runs]

    def advance(self, progress: Progress, *, wait: bool) -> Iterator[tuple[Run, dict[str, Any]]]:
        """Takes steps in each active run, to where something is due in one, and does that.

        wait: for the steps, even if nothing is due.

        Yields the records.
        """
        for i, run in enumerate(self.runs):
            if run.is_active and run.is_at_end:
                with self._stopping_alone(run):
                    if record := run.complete(partial(self.trainer.state, i)):
                        yield run, record
        if not (active := [run for run in self.runs if run.is_active]):
            return
        most = active[0].experiment.config.train.dispatch_steps
        count = min(run.calendar.until_next(run.step, most) for run in active)
        start = time.monotonic()
        values = self.trainer.run(self._at, count)
        self._at = [at + count for at in self._at]
        progress.update(count * len(active))
        taken = []
        for i, run in enumerate(self.runs):
            if run.is_active:
                with self._stopping_alone(run):
                    run.take(values[i], count, start, wait=wait)
                    taken.append((i, run))
        for i, run in taken:
            with self._stopping_alone(run):
                if record := run.settle(partial(self.trainer.state, i)):
                    yield run, record

    def save(self) -> None:
        """Saves a checkpoint of each active run."""
        for i, run in enumerate(self.runs):
            if run.is_active:
                with self._stopping_alone(run):
                    run.save(partial(self.trainer.state, i))

    @contextmanager
    def _stopping_alone(self, run: Run) -> Iterator[None]:
        try:
            yield
        except NonFiniteError as error:
            run.failure = error
            if run.name:
                logging.warning("%s stops: %s", run.name, error)


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Runs of one program together, or each by itself, as `sets.mesh_together` says."""
    of = {id(run.experiment): run for run in runs}
    groups = []
    for experiments in sets.programs(run.experiment for run in runs):
        first, some = experiments[0], [of[id(one)] for one in experiments]
        states = (run.take_state() for run in some)
        if (mesh := sets.mesh_together(experiments)) is None:
            each = zip(some, dispatches(experiments), states, strict=True)
            groups += [Group([run], Alone(dispatch, state)) for run, dispatch, state in each]
        else:
            dispatch, shapes = sets.dispatch_together(experiments, mesh)
            groups.append(Group(some, Together(dispatch, states, first.shapes, shapes)))
    return groups
