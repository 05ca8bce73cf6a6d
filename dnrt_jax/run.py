"""A run in training: its records and its checkpoints.

The samples of a batch, augmentation, dropout, and what is logged, evaluated and saved are functions
of (config, step) alone, so a resumed run repeats exactly what an uninterrupted run does.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dnrt_jax.config import Config, to_json
from dnrt_jax.experiment import Experiment, initial_state
from dnrt_jax.report import curves
from dnrt_jax.runtime import checkpoint, flops, multihost
from dnrt_jax.runtime.errors import ConfigError, NonFiniteError, WorkdirError
from dnrt_jax.runtime.progress import Speed
from dnrt_jax.runtime.trackers import open_tracker
from dnrt_jax.runtime.workdir import Workdir, best_record
from dnrt_jax.training.calendar import Calendar, Due
from dnrt_jax.training.dispatch import Later
from dnrt_jax.training.state import RUNS_ONCE, TrainState
from dnrt_jax.training.window import Window, check_skipped, which_finite


class Run:
    """A run in training: its position, records and checkpoints. A trainer takes over its state.

    Args:
      name: of the run in its set; "" for a run by itself.
      fresh: the state to start from without a checkpoint; by default the experiment's.
    """

    def __init__(
        self, name: str, experiment: Experiment, workdir: Workdir, fresh: TrainState | None = None
    ):
        self.name, self.experiment, self.workdir = name, experiment, workdir
        self.calendar = calendar_of(experiment)
        start, self.step, self.window = _start(experiment, workdir, fresh)
        self.state: TrainState | None = start
        self.failure: NonFiniteError | None = None
        self._evaluate = experiment.task.evaluator(experiment.model, experiment.mesh)
        self._macs = experiment.task.multiply_accumulates(experiment.model)
        self._look_back()
        self._saved, self._speed = self.step, Speed()
        # What was dispatched and not looked at yet: its values, first step, and time.
        self._steps: list[tuple[Later, int, float]] = []
        if multihost.is_main():
            workdir.tracker = open_tracker(experiment.config, workdir.path)

    def take_state(self) -> TrainState:
        """The state to start from, which is no longer held here."""
        state, self.state = self.state, None
        assert state is not None, "taken before"
        return state

    @property
    def is_at_end(self) -> bool:
        """Whether the run is at its last step, or ended early by `train.patience`."""
        return self.step == self.calendar.total or not self._is_patient

    @property
    def is_finished(self) -> bool:
        """Whether the run is at its end, which was evaluated."""
        return self.is_at_end and self._evaluated == self.step and self.failure is None

    @property
    def is_active(self) -> bool:
        return not self.is_finished and self.failure is None

    def take(self, values: Later, count: int, start: float, *, wait: bool) -> None:
        """Takes the values of `count` steps, dispatched at the time `start`. They are waited for
        where something is due, so that the devices need not wait in between; of the first dispatch
        so that its time, which is not counted, is all of it; or if `wait` says so.

        The time of steps is from the first dispatch after a wait to the end of the next wait: where
        there are several processes, most of it passes between dispatches.
        """
        self._steps.append((values, self.step, start))
        self.step += count
        self.workdir.check()
        if wait or not self._speed.is_warm or any(self.calendar.due(self.step)):
            self._look()

    def _look(self) -> None:
        """Waits for the values of the steps taken, and checks them."""
        config, steps = self.experiment.config, self._steps
        self._steps = []
        for later, step, _ in steps:
            values = later()
            self.window.add(values, which_finite(values, step, config.train.on_nonfinite == "stop"))
        if steps:
            _, first, start = steps[0]
            samples = (self.step - first) * self.experiment.task.batch_size
            self._speed.add(samples, time.monotonic() - start)
        check_skipped(self.window.skipped, self.step, config)
        self.workdir.write_config(config)  # only after a step was taken with it

    def settle(self, state: Callable[[], TrainState]) -> dict[str, Any] | None:
        """Does what is due at this step, and returns the record, if one is."""
        return self._do(self.calendar.due(self.step), state)

    def complete(self, state: Callable[[], TrainState]) -> dict[str, Any] | None:
        """Evaluates a run that is at its end without an evaluation of it, as a longer one does that
        was stopped there, and returns the record."""
        earlier = [r for r in self.workdir.records() if r["step"] == self.step]
        self.workdir.write_config(self.experiment.config)
        return self._do(Due(log=True, evaluate=True, save=True), state, earlier)

    def _do(
        self, due: Due, state: Callable[[], TrainState], earlier: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any] | None:
        """Does what is due; the record has also what `earlier` ones of this step have."""
        config = self.experiment.config
        record: dict[str, Any] = {"step": self.step, "epoch": self.step / self.calendar.epoch}
        if due.log:
            record |= self.window.take_means()
            if config.train.on_nonfinite == "skip":
                record["train/skipped"] = self.window.skipped
            # Of the last step that was not skipped: the optimizer does not count the others.
            rate = self.experiment.rate(max(self.step - 1 - self.window.skipped, 0))
            record["train/lr"] = float(rate)
            record |= _speed(self._speed.per_second(), self._macs)
        if due.evaluate:
            results = self._evaluate(state())
            self.workdir.write_json("confusion.json", results.pop("confusion").tolist())
            if f"test/{config.eval.metric}" not in results:
                raise ConfigError(
                    f"config.eval.metric={config.eval.metric!r}: the task reports only "
                    f"{', '.join(sorted(results))}"
                )
            record |= results
        for before in earlier:
            record |= before
        if due.log:
            self.workdir.record(record)
        if due.evaluate:
            self._look_back()
        if due.save or self.step == self._best_step or not self._is_patient:
            self.save(state)
        return record if due.log else None

    def _look_back(self) -> None:
        """Reads off the records which step is the best, whether it is recent enough, and which was
        evaluated last."""
        records, config = self.workdir.records(), self.experiment.config
        best = best_record(records, config.eval.metric)
        self._best_step = best["step"] if best else None
        evaluated = [r["step"] for r in records if f"test/{config.eval.metric}" in r]
        self._evaluated = evaluated[-1] if evaluated else None
        self._is_patient = is_patient(records, config)

    def save(self, state: Callable[[], TrainState]) -> None:
        """Saves a checkpoint, unless there is one of this step."""
        if self._saved != self.step:
            self._look()
            config, workdir = self.experiment.config, self.workdir
            _save(workdir, state(), self.step, config, self.window, self._best_step)
            self._saved = self.step

    def summarize(self) -> None:
        """Writes the summary and the curves of a run that is at its end."""
        self.workdir.writer.wait()
        records = self.workdir.records()
        if multihost.is_main():
            curves.draw(records, self.workdir.local / "curves.png")
        summary = {
            "step": self.step,
            "params": sum(x.size for x in jax.tree.leaves(self.experiment.shapes.params)),
            "best": best_record(records, self.experiment.config.eval.metric),
            "last": records[-1],
        }
        if self.step < self.calendar.total:
            summary["ended_early"] = True
        self.workdir.write_json("summary.json", summary)


def is_patient(records: list[dict[str, Any]], config: Config) -> bool:
    """Whether the best of the last evaluations is recent enough for `train.patience`."""
    metric, patience = config.eval.metric, config.train.patience
    evaluated = [record for record in records if f"test/{metric}" in record]
    best = best_record(evaluated, metric)
    since = 0 if best is None else len(evaluated) - 1 - evaluated.index(best)
    return not patience or since < patience


def calendar_of(experiment: Experiment) -> Calendar:
    return Calendar(
        experiment.config.train.log_steps,
        experiment.period("eval"),
        experiment.period("checkpoint"),
        experiment.epoch_steps,
        experiment.total_steps,
    )


def _start(experiment: Experiment, workdir: Workdir, fresh: TrainState | None):
    """The (state, step, window) to start or resume from.

    Raises:
      WorkdirError: if the processes find different checkpoints, or one beyond the last step.
    """
    total = experiment.total_steps
    restored = checkpoint.restore(workdir.checkpoints, experiment.shapes)
    if not multihost.same_in_all(restored.step if restored else 0):
        raise WorkdirError(
            f"{workdir.path}: the processes see different checkpoints: --workdir must be a folder "
            "that all share; if it is one, give the same command again"
        )
    if restored is None:
        workdir.rewind(0)
        return initial_state(experiment) if fresh is None else fresh, 0, Window({}, 0)
    if restored.step > total:
        raise WorkdirError(
            f"{workdir.path}: is at step {restored.step}, beyond the {total} steps of this config; "
            "set at least as many, or choose another --workdir"
        )
    logging.info("resuming from step %d of %s", restored.step, workdir.checkpoints)
    workdir.rewind(restored.step)
    extra = restored.extra
    return restored.state, restored.step, Window(extra["window"], extra.get("skipped", 0))


def _save(
    workdir: Workdir, state: Any, step: int, config: Config, window: Window, best_step: int | None
) -> None:
    if not _is_finite(state):
        raise NonFiniteError(
            f"step {step}: a parameter or class mean is not finite; no checkpoint was saved"
        )
    extra = {"window": window.values, "skipped": window.skipped}
    workdir.writer.save(
        state, step, config=to_json(config), extra=extra, newest=config.train.keep, best=best_step
    )


def _speed(images_per_sec: float | None, macs: int | None) -> dict[str, float | None]:
    """Log entries on speed; utilization and memory only if known for the device."""
    speed: dict[str, float | None] = {"train/images_per_sec": images_per_sec}
    if images_per_sec and macs and (share := flops.utilization(macs, images_per_sec)):
        speed["train/utilization"] = share
    if memory := jax.local_devices()[0].memory_stats():
        speed["train/peak_gb"] = memory["peak_bytes_in_use"] / 1e9
    return speed


@partial(jax.jit, compiler_options=RUNS_ONCE)
def _is_finite(state: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()
