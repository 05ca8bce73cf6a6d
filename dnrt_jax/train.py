"""The training loop. It can be killed at any time and resumed with bitwise the same result.

The samples of a batch, augmentation, dropout, and what is logged, evaluated and saved are functions
of (config, step) alone, so a resumed run repeats exactly what an uninterrupted run does.
"""

import logging
import math
import os
import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax.config import Config, to_json
from dnrt_jax.experiment import Experiment, initial_state
from dnrt_jax.report import curves
from dnrt_jax.runtime import checkpoint, flops, multihost
from dnrt_jax.runtime.errors import NonFiniteError, WorkdirError
from dnrt_jax.runtime.progress import Progress
from dnrt_jax.runtime.workdir import Workdir, best_record
from dnrt_jax.training.state import TrainState


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


class Due(NamedTuple):
    """What to do after a step."""

    log: bool
    evaluate: bool
    save: bool
    last: bool


class Calendar(NamedTuple):
    """The schedule of logging, evaluation and checkpoints, in steps."""

    log: int
    evaluate: int
    save: int
    epoch: int
    total: int

    def until_next(self, step: int, most: int) -> int:
        """Number of steps from `step` to the next event or end of an epoch, at most `most`."""
        periods = (self.log, self.evaluate, self.save, self.epoch)
        return min(most, self.total - step, *(n - step % n for n in periods))

    def due(self, step: int) -> Due:
        last = step == self.total
        evaluate = step % self.evaluate == 0 or last
        return Due(step % self.log == 0 or evaluate, evaluate, step % self.save == 0 or last, last)


class Window:
    """The values of the steps since the last log record."""

    def __init__(self, values: dict[str, list[float]], skipped: int):
        self.values, self.skipped = values, skipped

    def add(self, values: dict[str, np.ndarray], finite: np.ndarray) -> None:
        self.skipped += int((~finite).sum())
        for name, column in values.items():
            self.values.setdefault(name, []).extend(column[finite].astype(float).tolist())

    def take_means(self) -> dict[str, float]:
        """Returns the means as {"train/NAME": value} and starts a new window."""
        values, self.values = self.values, {}
        return {f"train/{name}": math.fsum(xs) / len(xs) for name, xs in values.items() if xs}


def fit(
    experiment: Experiment, workdir: Workdir, stop: Stop, fresh: TrainState | None = None
) -> dict[str, Any] | None:
    """Trains to the last step, from the newest checkpoint or, without one, from the state `fresh`.

    Returns:
      The summary of the run; None if `stop` ended it early, after a checkpoint.

    Raises:
      UserError, OSError: what stopped the run.
    """
    config, calendar = experiment.config, calendar_of(experiment)
    evaluate = experiment.task.evaluator(experiment.model, experiment.mesh)
    state, step, window = _start(experiment, workdir, fresh)
    dispatch = experiment.dispatch()
    best_step = _best_step(workdir, config)
    progress = Progress(
        step, calendar.total, experiment.task.batch_size, is_main=multihost.is_main()
    )
    macs, stopping = experiment.task.multiply_accumulates(experiment.model), False
    progress.say(f"{macs / 1e6:.4g} million multiply-accumulates a sample, forward" if macs else "")
    progress.say("compiling the training step")
    while step < calendar.total and not stopping:
        count = calendar.until_next(step, config.train.dispatch_steps)
        with progress.timed(count):
            state, values = dispatch.run(state, step, count)
        window.add(values, _finite(values, step, config.train.on_nonfinite == "stop"))
        step += count
        _check_skipped(window.skipped, step, config)
        workdir.write_config(config)  # only after a step was taken with it
        stopping, due = multihost.any_process(bool(stop.signal)), calendar.due(step)

        record: dict[str, Any] = {"step": step, "epoch": step / calendar.epoch}
        if due.log:
            record |= window.take_means()
            if config.train.on_nonfinite == "skip":
                record["train/skipped"] = window.skipped
            record["train/lr"] = float(experiment.rate(step - 1))
            record |= _speed(progress.images_per_sec(), macs)
        if due.evaluate:
            results = evaluate(state)
            workdir.write_json("confusion.json", results.pop("confusion").tolist())
            record |= results
        if due.log:
            workdir.record(record)
            progress.show(record)
        if due.evaluate:
            best_step = _best_step(workdir, config)
        if due.save or stopping or step == best_step:
            _save(workdir, state, step, config, window, best_step)
    progress.close()
    return _summarize(workdir, state, config) if step == calendar.total else None


def calendar_of(experiment: Experiment) -> Calendar:
    return Calendar(
        experiment.config.train.log_steps,
        experiment.period("eval"),
        experiment.period("checkpoint"),
        experiment.epoch_steps,
        experiment.total_steps,
    )


def _start(experiment: Experiment, workdir: Workdir, fresh: TrainState | None):
    """The (state, step, window) to start or resume from."""
    total = experiment.total_steps
    restored = checkpoint.restore(workdir.checkpoints, experiment.shapes)
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


def _best_step(workdir: Workdir, config: Config) -> int | None:
    best = best_record(workdir.records(), config.eval.metric)
    return best["step"] if best else None


def _save(
    workdir: Workdir, state: Any, step: int, config: Config, window: Window, best_step: int | None
) -> None:
    if not _is_finite(state):
        raise NonFiniteError(
            f"step {step}: a parameter or class mean is not finite; no checkpoint was saved"
        )
    extra = {"window": window.values, "skipped": window.skipped}
    checkpoint.save(workdir.checkpoints, state, step, config=to_json(config), extra=extra)
    checkpoint.keep(workdir.checkpoints, config.train.keep, step, best_step)


def _speed(images_per_sec: float | None, macs: int | None) -> dict[str, float | None]:
    """Log entries on speed; utilization and memory only if known for the device."""
    speed: dict[str, float | None] = {"train/images_per_sec": images_per_sec}
    if images_per_sec and macs and (share := flops.utilization(macs, images_per_sec)):
        speed["train/utilization"] = share
    if memory := jax.local_devices()[0].memory_stats():
        speed["train/peak_gb"] = memory["peak_bytes_in_use"] / 1e9
    return speed


@jax.jit
def _is_finite(state: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def _finite(values: dict[str, np.ndarray], step: int, stop: bool) -> np.ndarray:
    """Whether each step from `step` on was finite, bool[n]; the others left the state unchanged.

    Raises:
      NonFiniteError: with `stop`, for the first step that was not finite.
    """
    finite = np.logical_and.reduce([np.isfinite(column) for column in values.values()])
    for i in np.flatnonzero(~finite):
        seen = {name: float(column[i]) for name, column in values.items()}
        # Name the first cause: a sum is not finite if a term is not; a gradient may overflow alone.
        terms = ("loss_ce", "loss_arr", "loss", "grad_norm")
        cause = next(t for t in terms if t in seen and not math.isfinite(seen[t]))
        listed = ", ".join(f"{name}={value:g}" for name, value in seen.items())
        line = f"{cause} is not finite at step {step + i + 1} ({listed})"
        if stop:
            raise NonFiniteError(
                f"{line}; lower config.optim.lr, check the data, or skip such steps with "
                "--config.train.on_nonfinite=skip; the last checkpoint is intact"
            )
        logging.warning("%s: skipped", line)
    return finite


def _check_skipped(skipped: int, step: int, config: Config) -> None:
    if skipped > config.train.max_skipped:
        raise NonFiniteError(
            f"step {step}: {skipped} steps were skipped, more than "
            f"config.train.max_skipped={config.train.max_skipped}; the last checkpoint is intact"
        )


def _summarize(workdir: Workdir, state, config: Config) -> dict[str, Any]:
    records = workdir.records()
    if multihost.is_main():
        curves.draw(records, workdir.path / "curves.png")
    summary = {
        "step": int(state.step),
        "params": sum(x.size for x in jax.tree.leaves(state.params)),
        "best": best_record(records, config.eval.metric),
        "last": records[-1],
    }
    workdir.write_json("summary.json", summary)
    return summary
