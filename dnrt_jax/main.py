"""Trains, resumes and evaluates: python -m dnrt_jax.main --config=configs/digits.py --workdir=DIR

The same command resumes an interrupted run. Any config field can be set, as in
--config.model.act=gelu, or reset to its default with --config.FIELD=none; docs/config.md lists the
fields. --workdir=DIR --eval_only evaluates a run with the config stored in its folder.
"""

from dnrt_jax.runtime import train_extra  # noqa: F401

# isort: split

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from dnrt_jax import command_line
from dnrt_jax.runtime.errors import CheckpointError, WorkdirError
from dnrt_jax.runtime.process import keep_memory, keep_programs, split_overrides, user_errors


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with user_errors():
        words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        args = command_line.parse(words, __doc__)
        keep_memory()
    try:
        with user_errors():
            status = _run(args, overrides)
    except SystemExit as ended:
        status = int(ended.code or 0)
    from dnrt_jax.runtime import multihost

    multihost.leave(status)


def _run(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    config = command_line.config_of(args, overrides)
    from dnrt_jax import members
    from dnrt_jax.config import validate
    from dnrt_jax.runtime import multihost, trackers
    from dnrt_jax.runtime.set_folder import SetFolder

    named = members.of_command(config, args.seeds, args.sweep)
    for member in named:
        validate(member.config)
    trackers.check(config)
    keep_programs()
    multihost.initialize(
        args.coordinator, args.processes, args.process, config.parallel.heartbeat_seconds
    )
    settings = members.by_setting(named)
    with SetFolder(command_line.folder_of(args), settings, is_main=multihost.is_main()) as folder:
        return _in_folder(folder, named, args)


def _in_folder(folder: Any, named: Sequence[Any], args: argparse.Namespace) -> int:
    from dnrt_jax import experiment, sets
    from dnrt_jax.runtime import checkpoint

    at = folder.members
    with folder.removed_on_error():
        if args.eval_only:
            named = _with_checkpoint(named, at)
        for member in named:
            _check_folder(at[member.name], member.config, args)
        configs = {member.name: member.config for member in named}
        built = dict(zip(configs, sets.load_all(list(configs.values())), strict=True))
        for name, of_run in built.items():
            _check_classes(at[name], of_run.task.class_names)
        if args.eval_only:
            for name in built:
                _evaluate(name, built[name], at[name], args.checkpoint)
            return 0
        folder.check_space([of_run.shapes for of_run in built.values()])
        unfinished = []
        for name, of_run in built.items():
            if summary := _finished(at[name], of_run):
                said = _result(summary, of_run.config)
                print(f"{at[name].path}: finished at step {summary['step']}. {said}")
            else:
                unfinished.append(name)
        about = folder.chosen(args.seeds, args.sweep, unfinished)
        # What is finished can only train along if it left a checkpoint.
        is_new = {name: not checkpoint.steps(at[name].checkpoints) for name in built}
        trained = [name for name in about["trained"] if name in unfinished or not is_new[name]]
        runs = {name: built[name] for name in trained}
        sets.check_memory(list(runs.values()))
        # Load initial weights here, so that unsuitable ones leave no folder behind.
        fresh = {name: experiment.initial_state(runs[name]) for name in runs if is_new[name]}
    folder.write_members(about)
    if not unfinished:
        folder.start([])
        folder.summarize()
        return 0
    return _train(runs, folder, fresh, args.profile)


def _with_checkpoint(named: Sequence[Any], at: dict[str, Any]) -> list[Any]:
    """The members that have a checkpoint, if any has; the others are named."""
    from dnrt_jax.runtime import checkpoint

    found = [member for member in named if checkpoint.steps(at[member.name].checkpoints)]
    for member in named if found else ():
        if member not in found:
            logging.warning("%s: no checkpoint to evaluate", at[member.name].path)
    return found or list(named)


def _check_folder(workdir: Any, config: Any, args: argparse.Namespace) -> None:
    """Raises a UserError if the run in the folder cannot be resumed or evaluated with `config`.

    Initial weights from the hub get the revision of the run in the folder, or else today's.
    """
    from dnrt_jax.config import check_resume, flatten
    from dnrt_jax.runtime import checkpoint, hub
    from dnrt_jax.runtime.workdir import read_config

    has_checkpoint = bool(checkpoint.steps(workdir.checkpoints))
    if args.eval_only and not has_checkpoint:
        raise CheckpointError(f"{workdir.path}: no checkpoint to evaluate; train first")
    # A finished run answers for its config also when its checkpoints are gone.
    if has_checkpoint or workdir.read_json("summary.json"):
        before = read_config(workdir.path)
        config.init_from = hub.pin(config.init_from, before.init_from)
        allowed = list(args.allow_change)
        if args.eval_only:  # other data, or the same data in another place
            allowed += [name for name in flatten(config) if name.startswith("data.")]
        check_resume(before, config, allowed)
    else:
        config.init_from = hub.pin(config.init_from)


def _check_classes(workdir: Any, names: Sequence[str]) -> None:
    """Raises a WorkdirError if the run in the folder, if any, was trained on other classes."""
    from dnrt_jax.runtime import checkpoint

    has_run = checkpoint.steps(workdir.checkpoints) or workdir.read_json("summary.json")
    before = workdir.read_json("classes.json")
    if not has_run or not before:
        return
    if len(before) != len(names):
        problem = f"{len(before)} classes, and the data have {len(names)}"
    elif differ := [k for k, name in enumerate(names) if name != before[k]]:
        problem = f"other classes: {differ[0]} was {before[differ[0]]!r}, is {names[differ[0]]!r}"
    else:
        return
    raise WorkdirError(
        f"{workdir.path}: the run has {problem}; set config.data.name and config.data.dir to data "
        "with its classes"
    )


def _finished(workdir: Any, built: Any) -> dict[str, Any] | None:
    """The summary of a finished run; None if there are steps left."""
    from dnrt_jax.run import is_patient
    from dnrt_jax.runtime import checkpoint

    summary, total_steps = workdir.read_json("summary.json"), built.total_steps
    if not summary:
        return None
    if summary["step"] == total_steps:
        return summary
    if summary.get("ended_early") and not is_patient(workdir.records(), built.config):
        return summary
    if not checkpoint.steps(workdir.checkpoints):
        raise WorkdirError(
            f"{workdir.path}: finished at step {summary['step']}, and its checkpoints are gone, so "
            f"it cannot go on to step {total_steps}; choose another --workdir"
        )
    return None


def _train(
    experiments: dict[str, Any], folder: Any, fresh: dict[str, Any], profile: int = 0
) -> int:
    import jax
    from clu import parameter_overview

    from dnrt_jax import train
    from dnrt_jax.experiment import warn_of_warmup
    from dnrt_jax.run import Run
    from dnrt_jax.runtime import multihost
    from dnrt_jax.runtime.profiling import Profile
    from dnrt_jax.tasks import TASKS

    for name, experiment in experiments.items():
        folder.members[name].write_json("classes.json", experiment.task.class_names)
    first = next(iter(experiments.values()))
    task, config = first.task, first.config
    warn_of_warmup(first)
    if multihost.is_main():
        print(parameter_overview.get_parameter_overview(first.shapes.params, include_stats=False))
        # A task of someone else has data of its own.
        data = config.data.name if config.task in TASKS else config.task
        print(
            f"{data}: {task.description} of {len(task.class_names)} classes; "
            f"{first.total_steps} steps on {jax.device_count()} x {jax.devices()[0].device_kind} "
            f"in {jax.process_count()} processes; {folder.path}",
            flush=True,
        )
    # What $JAX_DEBUG_NANS says has been lost by now, in JAX 0.10.
    debug_nans = jax.debug_nans(jax.config.jax_debug_nans)  # pyright: ignore
    with train.Stop() as stop, debug_nans:
        try:
            runs = [
                Run(name, experiment, folder.members[name], fresh.pop(name, None))
                for name, experiment in experiments.items()
            ]
            folder.start(run.name for run in runs if run.is_active)
            ended = train.fit(runs, stop, folder, Profile(folder.local / "profile", profile))
        except jax.errors.JaxRuntimeError:
            multihost.await_word(config.parallel.heartbeat_seconds)
            raise
    if not ended:
        return stop.status
    if multihost.is_main():
        result = _result(folder.read_summary(), config)
        print(f"Finished. {result} Records, curves and checkpoints: {folder.path}")
    return 0


def _evaluate(name: str, built: Any, workdir: Any, which: str) -> None:
    from dnrt_jax.runtime import checkpoint, multihost
    from dnrt_jax.runtime.workdir import find_step

    step = find_step(workdir.path, which)
    restored = checkpoint.restore(workdir.checkpoints, built.shapes, step)
    assert restored is not None, "_check_folder has seen one"
    values = built.task.evaluator(built.model, built.mesh)(restored.state)
    values.pop("confusion")
    if multihost.is_main():
        said = " ".join(f"{k}={v:.6g}" for k, v in values.items())
        print(f"{name} step {restored.step} {said}".lstrip())


def _result(summary: dict[str, Any], config: Any) -> str:
    """The result of a run, or of each setting of a set, in words."""
    name, key = {"acc": "accuracy", "auc": "AUC"}[config.eval.metric], f"test/{config.eval.metric}"
    if "settings" in summary:
        return " ".join(_of_setting(about, name, key) for about in summary["settings"])
    best, last = summary["best"], summary["last"]
    which = "the best of validation" if "valid/acc" in best else "the best"
    return (
        f"Test {name} {last[key]:.4f} at the last step, "
        f"{best[key]:.4f} at {which} (step {best['step']})."
    )


def _of_setting(about: dict[str, Any], name: str, key: str) -> str:
    prefix = f"{about['setting']}: " if about["setting"] else ""
    last = about["last"][key]
    if last["n"] == 1:
        return f"{prefix}test {name} {last['mean']:.4f} at the last step."
    low, high = last["interval"]
    return (
        f"{prefix}test {name} {last['mean']:.4f} ± {last['deviation']:.4f} over {last['n']} runs, "
        f"95% interval {low:.4f} to {high:.4f}, at the last step."
    )


if __name__ == "__main__":
    main()
