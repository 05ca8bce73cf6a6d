"""The loop around the training step: it can be killed anywhere and goes on bit for bit.

What happens at a step is a function of (config, step) alone: the images of the batch, augmentation,
dropout, what is logged, evaluated and saved. So a resumed run retraces one that never stopped.
"""

import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax import config as schema
from dnrt_jax import convert
from dnrt_jax.experiment import Problem, Programs, evaluator
from dnrt_jax.report import curves as plots
from dnrt_jax.runtime import checkpoint
from dnrt_jax.runtime import flops as cost
from dnrt_jax.runtime import sharding as parallel
from dnrt_jax.runtime.progress import Progress
from dnrt_jax.runtime.workdir import Workdir, best_record
from dnrt_jax.training import dispatch as feed
from dnrt_jax.training.metrics import NonFiniteError


class Stop:
    """SIGTERM or SIGINT: the first asks the loop to save and end, the second ends at once."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._catch)

    @property
    def status(self) -> int:
        """The exit status: 128 + the signal's number, as shells have it; another process may have
        been the one to get it."""
        return 128 + (self.signal or signal.SIGTERM)

    def _catch(self, number, frame):
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        logging.warning("%s: saving, then ending; again to end now", signal.Signals(number).name)


def fit(problem: Problem, fns: Programs, workdir: Workdir, stop: Stop) -> dict[str, Any] | None:
    """Trains from the newest checkpoint, or from the start, to the end.

    Returns:
      The summary; None if `stop` ended the run early, with everything saved.

    Raises:
      NonFiniteError, CheckpointError, OSError: one line on what stopped the run.
    """
    config, total, epoch_steps = problem.config, problem.total_steps, problem.epoch_steps
    evaluate = evaluator(problem)
    state, step, (window, skipped) = _start(fns, problem, workdir)
    batches = feed.training(problem.train, config, fns.step, fns.shapes)
    log_every, dispatch = config.train.log_steps, config.train.dispatch_steps
    eval_every, save_every = problem.duration("eval"), problem.duration("checkpoint")
    best_step = _best_step(workdir, config)
    progress = Progress(step, total, problem.batch_size, is_main=parallel.is_main())
    macs, stopping = problem.macs, False
    if macs and parallel.is_main():
        print(f"{macs / 1e6:.4g} million multiply-accumulates an image, forward", flush=True)

    while step < total and not stopping:
        ends = [(step // n + 1) * n for n in (log_every, eval_every, save_every, epoch_steps)]
        count = min(dispatch, total - step, *(end - step for end in ends))
        with progress.timed(count):
            state, values = batches.run(state, step, count)
        finite = _finite(values, step, config.train.on_nonfinite == "stop")
        skipped += int((~finite).sum())
        if skipped > config.train.max_skipped:
            raise NonFiniteError(
                f"step {step + count}: {skipped} steps were skipped, more than "
                f"config.train.max_skipped={config.train.max_skipped}; the last checkpoint is whole"
            )
        for name, column in values.items():
            window.setdefault(name, []).extend(column[finite].astype(float).tolist())
        step += count
        stopping = parallel.any_process(bool(stop.signal))

        last = step == total
        record: dict[str, Any] = {"step": step, "epoch": step / epoch_steps}
        if step % log_every == 0 or step % eval_every == 0 or last:
            means = {name: math.fsum(xs) / len(xs) for name, xs in window.items() if xs}
            record |= {f"train/{name}": mean for name, mean in means.items()}
            if config.train.on_nonfinite == "skip":
                record["train/skipped"] = skipped
            record["train/lr"] = float(fns.rate(step - 1))
            record |= _speed(progress.images_per_sec(), macs)
            window = {}
        if step % eval_every == 0 or last:
            results = evaluate(state)
            workdir.write_json("confusion.json", results.pop("confusion").tolist())
            record |= results
        if len(record) > 2:
            workdir.record(record)
            progress.show(record)
        if "test/acc" in record:
            best_step = _best_step(workdir, config)
        if step % save_every == 0 or last or stopping or step == best_step:
            if not _is_finite(state):
                raise NonFiniteError(f"step {step}: a parameter or a mean is not finite; not saved")
            text = schema.to_json(config)
            extra = {"window": window, "skipped": skipped}
            checkpoint.save(workdir.checkpoints, state, step, config=text, extra=extra)
            checkpoint.keep(workdir.checkpoints, config.train.keep, step, best_step)
    progress.close()
    return _summarize(workdir, state, config) if step == total else None


def _best_step(workdir: Workdir, config: schema.Config) -> int | None:
    best = best_record(workdir.records(), config.eval.metric)
    return best["step"] if best else None


def _start(fns: Programs, problem: Problem, workdir: Workdir):
    """(state, step, (window, skipped)) to go on with."""
    restored = checkpoint.restore(workdir.checkpoints, fns.shapes)
    if restored is None:
        workdir.rewind(0)
        return initial_state(fns, problem), 0, ({}, 0)
    logging.info("resuming from step %d of %s", restored.step, workdir.checkpoints)
    workdir.rewind(restored.step)
    window, skipped = restored.extra["window"], restored.extra.get("skipped", 0)
    return restored.state, restored.step, (window, skipped)


def initial_state(fns: Programs, problem: Problem):
    """The state at step 0, with the weights of `config.init_from` where that is set."""
    state, source = fns.create(), problem.config.init_from
    if not source:
        return state
    try:
        state_dict, _ = convert.load(Path(source).expanduser())
        variables = convert.fit(state_dict, problem.model, len(problem.config.data.mean))
    except (OSError, ValueError, RuntimeError) as error:
        raise schema.ConfigError(f"config.init_from: {error}") from None
    place = lambda value, like: jax.device_put(value.astype(like.dtype), like.sharding)
    params = jax.tree.map(place, variables["params"], state.params)
    batch_stats = jax.tree.map(place, variables.get("batch_stats", {}), state.batch_stats)
    logging.info("starting from the weights of %s", source)
    return state.replace(params=params, batch_stats=batch_stats)


def _speed(images_per_sec: float | None, macs: int | None) -> dict[str, float | None]:
    """What the log says of it; share of the devices' peak and their memory only where known."""
    speed: dict[str, float | None] = {"train/images_per_sec": images_per_sec}
    if images_per_sec and macs and (share := cost.utilization(macs, images_per_sec)):
        speed["train/utilization"] = share
    if memory := jax.local_devices()[0].memory_stats():
        speed["train/peak_gb"] = memory["peak_bytes_in_use"] / 1e9
    return speed


@jax.jit
def _is_finite(state: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def _finite(values: dict[str, np.ndarray], step: int, stop: bool) -> np.ndarray:
    """Which of the steps from `step` on were finite, bool[n]: the others changed nothing.

    Raises:
      NonFiniteError: with `stop`, at the first that was not.
    """
    finite = np.logical_and.reduce([np.isfinite(column) for column in values.values()])
    for i in np.flatnonzero(~finite):
        seen = {name: float(column[i]) for name, column in values.items()}
        # A gradient may overflow where the losses do not, and a sum only if one of its terms does.
        terms = ("loss_ce", "loss_arr", "loss", "grad_norm")
        cause = next(t for t in terms if t in seen and not math.isfinite(seen[t]))
        listed = ", ".join(f"{name}={value:g}" for name, value in seen.items())
        line = f"{cause} is not finite at step {step + i + 1} ({listed})"
        if stop:
            raise NonFiniteError(
                f"{line}; lower config.optim.lr or look at the data, or go on without such steps "
                "with --config.train.on_nonfinite=skip; the last checkpoint is whole"
            )
        logging.warning("%s: skipped", line)
    return finite


def _summarize(workdir: Workdir, state, config: schema.Config) -> dict[str, Any]:
    records = workdir.records()
    if parallel.is_main():
        plots.curves(records, workdir.path / "curves.png")
    summary = {
        "step": int(state.step),
        "params": sum(x.size for x in jax.tree.leaves(state.params)),
        "best": best_record(records, config.eval.metric),
        "last": records[-1],
    }
    workdir.write_json("summary.json", summary)
    return summary
