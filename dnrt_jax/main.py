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
from pathlib import Path
from typing import Any

from dnrt_jax.runtime.errors import CheckpointError, ConfigError, WorkdirError
from dnrt_jax.runtime.process import (
    Parser,
    keep_memory,
    keep_programs,
    split_overrides,
    user_errors,
)


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with user_errors():
        words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        args = _parser().parse_args(words)
        keep_memory()
    try:
        with user_errors():
            status = _run(args, overrides)
    except SystemExit as ended:
        status = int(ended.code or 0)
    from dnrt_jax.runtime import multihost

    multihost.leave(status)


def _parser() -> Parser:
    parser = Parser(prog="python -m dnrt_jax.main", description=__doc__)
    parser.add_argument("--config", help="config file: configs/NAME.py, or FILE.py:ARGUMENT")
    parser.add_argument(
        "--workdir", help="folder of the run; default: runs/NAME for configs/NAME.py"
    )
    parser.add_argument(
        "--eval_only", action="store_true", help="evaluate a checkpoint of the run and exit"
    )
    parser.add_argument(
        "--checkpoint", default="latest", help="with --eval_only: latest, best or a step"
    )
    parser.add_argument(
        "--allow_change",
        action="append",
        default=[],
        metavar="FIELD",
        help="config field, as optim.lr, that may differ from the run being resumed; repeatable",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0, for a run of several processes",
    )
    parser.add_argument("--processes", type=int, help="with --coordinator: number of processes")
    parser.add_argument(
        "--process", type=int, help="with --coordinator: index of this process, from 0"
    )
    return parser


def _run(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    config = _config(args, overrides)
    from dnrt_jax.runtime import multihost
    from dnrt_jax.runtime.workdir import Workdir

    keep_programs()
    multihost.initialize(
        args.coordinator, args.processes, args.process, config.parallel.heartbeat_seconds
    )
    with Workdir(_path(args), is_main=multihost.is_main()) as workdir:
        return _in_folder(workdir, config, args)


def _in_folder(workdir: Any, config: Any, args: argparse.Namespace) -> int:
    with workdir.removed_on_error():
        _check_folder(workdir, config, args)
        from dnrt_jax import experiment
        from dnrt_jax.runtime import checkpoint

        built = experiment.load(config)
        if args.eval_only:
            return _evaluate(built, workdir, args.checkpoint)
        workdir.check_space(built.shapes)
        # Load initial weights here, so that unsuitable ones leave no folder behind.
        is_new = not checkpoint.steps(workdir.checkpoints)
        fresh = experiment.initial_state(built) if is_new else None
    if summary := _finished(workdir, built.total_steps):
        print(f"{workdir.path}: finished at step {built.total_steps}. {_result(summary, config)}")
        return 0
    return _train(built, workdir, fresh)


def _config(args: argparse.Namespace, overrides: dict[str, str]) -> Any:
    """The config of the command line, or that of the run's folder, with the overrides."""
    from dnrt_jax.config import validate
    from dnrt_jax.config_file import load, override
    from dnrt_jax.runtime.workdir import read_config

    if args.config:
        config = load(args.config, overrides)
    elif not args.workdir:
        raise ConfigError("give --config=configs/NAME.py, as configs/digits.py")
    elif not Path(args.workdir).expanduser().is_dir():
        raise WorkdirError(
            f"--workdir={args.workdir}: no such folder; to start a run give --config"
        )
    else:
        config = override(read_config(Path(args.workdir).expanduser()), overrides)
    validate(config)
    return config


def _path(args: argparse.Namespace) -> Path:
    return Path(args.workdir or Path("runs") / Path(args.config.partition(":")[0]).stem)


def _check_folder(workdir: Any, config: Any, args: argparse.Namespace) -> None:
    """Raises a UserError if the run in the folder cannot be resumed or evaluated with `config`.

    Initial weights from the hub get the revision of the run in the folder, or else today's.
    """
    from dnrt_jax.config import check_resume, flatten
    from dnrt_jax.runtime import checkpoint, hub
    from dnrt_jax.runtime.workdir import read_config

    if checkpoint.steps(workdir.checkpoints):
        before = read_config(workdir.path)
        config.init_from = hub.pin(config.init_from, before.init_from)
        allowed = list(args.allow_change)
        if args.eval_only:  # other data, or the same data in another place
            allowed += [name for name in flatten(config) if name.startswith("data.")]
        check_resume(before, config, allowed)
    elif args.eval_only:
        raise CheckpointError(f"{workdir.path}: no checkpoint to evaluate; train first")
    else:
        config.init_from = hub.pin(config.init_from)


def _finished(workdir: Any, total_steps: int) -> dict[str, Any] | None:
    """The summary of a finished run; None if there are steps left."""
    from dnrt_jax.runtime import checkpoint

    summary = workdir.read_json("summary.json")
    if summary and summary["step"] != total_steps and not checkpoint.steps(workdir.checkpoints):
        raise WorkdirError(
            f"{workdir.path}: finished at step {summary['step']}, and its checkpoints are gone, so "
            f"it cannot go on to step {total_steps}; choose another --workdir"
        )
    return summary if summary and summary["step"] == total_steps else None


def _train(built: Any, workdir: Any, fresh: Any) -> int:
    import jax
    from clu import parameter_overview

    from dnrt_jax import train
    from dnrt_jax.runtime import multihost

    task, config = built.task, built.config
    workdir.write_json("classes.json", task.class_names)
    if multihost.is_main():
        print(parameter_overview.get_parameter_overview(built.shapes.params, include_stats=False))
        print(
            f"{config.data.name}: {task.description} of {len(task.class_names)} classes; "
            f"{built.total_steps} steps on {jax.device_count()} x {jax.devices()[0].device_kind} "
            f"in {jax.process_count()} processes; {workdir.path}",
            flush=True,
        )
    with train.Stop() as stop:
        try:
            summary = train.fit(built, workdir, stop, fresh)
        except jax.errors.JaxRuntimeError:
            multihost.await_word(config.parallel.heartbeat_seconds)
            raise
    if summary is None:
        return stop.status
    if multihost.is_main():
        print(
            f"Finished. {_result(summary, config)} Records, curves and checkpoints: {workdir.path}"
        )
    return 0


def _evaluate(built: Any, workdir: Any, name: str) -> int:
    from dnrt_jax.runtime import checkpoint, multihost
    from dnrt_jax.runtime.workdir import find_step

    step = find_step(workdir.path, name)
    restored = checkpoint.restore(workdir.checkpoints, built.shapes, step)
    assert restored is not None, "_check_folder has seen one"
    values = built.task.evaluator(built.model, built.mesh)(restored.state)
    values.pop("confusion")
    if multihost.is_main():
        print(f"step {restored.step} " + " ".join(f"{k}={v:.6g}" for k, v in values.items()))
    return 0


def _result(summary: dict[str, Any], config: Any) -> str:
    best, last = summary["best"], summary["last"]
    name, key = {"acc": "accuracy", "auc": "AUC"}[config.eval.metric], f"test/{config.eval.metric}"
    which = "the best of validation" if "valid/acc" in best else "the best"
    return (
        f"Test {name} {last[key]:.4f} at the last step, "
        f"{best[key]:.4f} at {which} (step {best['step']})."
    )


if __name__ == "__main__":
    main()
