"""Trains, resumes and evaluates: python -m dnrt_jax.main --config=configs/digits.py --workdir=DIR.

The same command resumes a run that ended early. Any field of the config can be set on the command
line, as --config.model.act=gelu; dnrt_jax/config.py lists them all.
"""

import logging
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from dnrt_jax import config as schema
from dnrt_jax.runtime.process import keep_memory, keep_programs, one_line_errors

CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment: configs/NAME.py")
WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; default: runs/NAME of the config")
EVAL_ONLY = flags.DEFINE_bool("eval_only", False, "evaluate a checkpoint of the run, then end")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "with --eval_only: latest, best or a step")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "of a run of several processes: HOST:PORT of process 0, the same for all"
)
PROCESSES = flags.DEFINE_integer("processes", None, "with --coordinator: how many there are")
PROCESS = flags.DEFINE_integer("process", None, "with --coordinator: which this is, from 0")
ALLOW_CHANGE = flags.DEFINE_multi_string(
    "allow_change", [], "a config field, as optim.lr, that may differ from the run being resumed"
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"no such argument: {argv[1]}")
    config = CONFIG.value
    if config is None:
        raise app.UsageError("give --config=configs/NAME.py, as configs/digits.py")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        schema.validate(config)
    except schema.ConfigError as error:
        _fail(error)
    except Exception as error:  # a file that failed to load answers so at its first use
        _fail(_explain(str(error), sys.argv))
    try:
        with one_line_errors():
            status = _run(config)
    except SystemExit as ended:
        status = int(ended.code or 0)
    from dnrt_jax.runtime import sharding as parallel

    parallel.leave(status)


def _run(config) -> int:
    # Everything above answers a wrong command in a second; JAX takes longer to import.
    keep_memory()
    import jax
    from clu import parameter_overview

    from dnrt_jax import experiment as problem
    from dnrt_jax import train
    from dnrt_jax.runtime import checkpoint
    from dnrt_jax.runtime import sharding as parallel
    from dnrt_jax.runtime.workdir import Workdir
    from dnrt_jax.training import dispatch as feed

    keep_programs()
    parallel.initialize(
        COORDINATOR.value, PROCESSES.value, PROCESS.value, config.parallel.heartbeat_seconds
    )
    path = WORKDIR.value or Path("runs") / Path(_config_path()).stem
    workdir = Workdir(path, is_main=parallel.is_main())
    with workdir.removed_on_error():
        if checkpoint.steps(workdir.checkpoints):
            old = schema.from_json((workdir.path / "config.json").read_text())
            schema.check_resume(old, config, ALLOW_CHANGE.value)
        described = problem.load(config)
        fns = problem.programs(described)
        if EVAL_ONLY.value:
            return _evaluate(described, fns, workdir)
        shapes = fns.shapes
        workdir.check_space(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)))
    stop = train.Stop()
    total = described.total_steps
    summary = workdir.read_json("summary.json")
    if summary and summary["step"] == total:
        print(f"{workdir.path}: finished at step {total}. {_result(summary, config)}")
        return 0
    workdir.write_json("config.json", config.to_dict())
    workdir.write_json("classes.json", described.train.class_names)
    if parallel.is_main():
        print(parameter_overview.get_parameter_overview(shapes.params, include_stats=False))
        print(
            f"{config.data.name}: {feed.describe(described.train, described.test)} of "
            f"{len(described.train.class_names)} classes; {total} steps on "
            f"{jax.device_count()} x {jax.devices()[0].device_kind} in {jax.process_count()} "
            f"processes; {workdir.path}",
            flush=True,
        )
    try:
        summary = train.fit(described, fns, workdir, stop)
    except jax.errors.JaxRuntimeError:
        parallel.await_word(config.parallel.heartbeat_seconds)
        raise
    if summary is None:
        return stop.status
    if parallel.is_main():
        print(f"Finished. {_result(summary, config)}")
    return 0


def _evaluate(described, fns, workdir) -> int:
    from dnrt_jax import experiment as problem
    from dnrt_jax.runtime import checkpoint
    from dnrt_jax.runtime import sharding as parallel
    from dnrt_jax.runtime.workdir import find_step

    step = find_step(workdir.path, CHECKPOINT.value)
    restored = checkpoint.restore(workdir.checkpoints, fns.shapes, step)
    if restored is None:
        raise checkpoint.CheckpointError(
            f"{workdir.checkpoints}: no checkpoint to evaluate; train first"
        )
    values = problem.evaluator(described)(restored.state)
    values.pop("confusion")
    if parallel.is_main():
        print(f"step {restored.step} " + " ".join(f"{k}={v:.6g}" for k, v in values.items()))
    return 0


def _result(summary, config) -> str:
    best, last = summary["best"], summary["last"]
    name, key = {"acc": "accuracy", "auc": "AUC"}[config.eval.metric], f"test/{config.eval.metric}"
    which = "the best of validation" if "valid/acc" in best else "the best"
    return (
        f"Test {name} {last[key]:.4f} at the last step, "
        f"{best[key]:.4f} at {which} (step {best['step']})."
    )


def _config_path() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"])


def _parse(argv: list[str]) -> list[str]:
    """Flags; whatever a config file or an override gets wrong is answered in one line."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # a config file is code: it may raise anything
        if os.environ.get("DNRT_TRACEBACK"):
            raise
        _fail(_explain(str(error), argv))


def _explain(error: str, argv: list[str]) -> str:
    for name in re.findall(r"--?config\.([\w.]+)", " ".join(argv)):
        if name not in schema.FIELDS and name.split(".")[-1] in error:
            return f"config.{name}: no such field{schema.nearest(name, schema.FIELDS)}"
        if name in schema.FIELDS and f"flag --config.{name}=" in error:
            return f"config.{name}: must be {schema.FIELDS[name][1].expected} ({error})"
    if "No such file" in error:
        return f"--config: {error.split('No such file or directory:')[-1].strip()} does not exist"
    return f"config: {error.strip().splitlines()[-1].strip()}"  # of a traceback, what was raised


def _fail(message: object) -> NoReturn:
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
