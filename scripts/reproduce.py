"""Reproduces a table of the paper: trains the runs that are not finished and prints the results.

    python scripts/reproduce.py table6 --dry_run                # list the runs, estimate the time
    python scripts/reproduce.py table1 --datasets cifar10 --models vit_tiny --seeds 0 1 2
    python scripts/reproduce.py table6 --scale=tiny             # on digits, in minutes
    python scripts/reproduce.py table1 --steps 1                # does every row run here?
    python scripts/reproduce.py study --jobs=2                  # the same as scripts/study.py

table1: ViTs, table2: CNNs, table3: ImageNet-1k, table4: cost, table5: DGraph and long tails,
table6: ablation. Data lie in $DATA_DIR. The seeds of a row train as one set of runs, together on an
accelerator; those of ImageNet, whose images are streamed, one by one. Runs lie in --runs, one
folder each, and can be interrupted: the same command goes on. A run that fails is named below the
table. Numbers go to --results. Fields of the config, as --config.model.dtype=bfloat16, are set in
every run: give such runs folders of their own by --runs and --results.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for a clone that is not installed

from dnrt_jax.data.datasets import data_dir
from dnrt_jax.runtime import storage
from dnrt_jax.runtime.process import split_overrides, user_errors
from scripts import study
from scripts.reproduce_plan import Run, estimate, length, plan, sets_of
from scripts.reproduce_results import markdown, merged, summarize


def train(runs: Sequence[Run], save) -> list[str]:
    """Trains the runs that are not finished, with save() after each set; returns messages of
    failures.

    Raises:
      KeyboardInterrupt: after the current runs have saved a checkpoint.
    """
    failed, sets = [], sets_of(runs)
    data = data_dir("")
    data = data.absolute() if isinstance(data, Path) else data
    environment = os.environ | {"DATA_DIR": str(data)}
    for i, seeds in enumerate(sets):
        if all(run.result() for run in seeds):
            continue
        run, *others = seeds
        name = " ".join([run.name, *(str(other.seed) for other in others)])
        print(f"[{i + 1}/{len(sets)}] {name}", file=sys.stderr, flush=True)
        log = run.log.with_name("seeds.log") if others else run.log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = run.command_with(others) if others else run.command()
        with log.open("a") as file:
            # A session of its own, as Ctrl-C reaches all of a session: a second signal would kill
            # the run while it saves its checkpoint.
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
            try:
                status = process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
        if status in (128 + signal.SIGTERM, 128 + signal.SIGINT):
            raise KeyboardInterrupt
        unfinished = [run for run in seeds if not run.result()]
        if status or unfinished:
            lines = log.read_text().strip().splitlines()
            last = f"{lines[-1] if lines else status} ({log})"
            failed += [f"{run.name}: {last}" for run in unfinished or seeds]
        save()
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["study"]:
        return study.main(argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = [f"table{i}" for i in range(1, 7)]
    parser.add_argument("table", choices=[*tables, "study"], help="study: see scripts/study.py")
    parser.add_argument("--datasets", nargs="+", help="default: all of the table")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--acts", nargs="+", help="cases, such as gelu or raa+arr; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument(
        "--epochs", type=int, help="instead of the config's; warm-up and drops keep their share"
    )
    parser.add_argument("--steps", type=int, help="of every run, instead: does every row run here?")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--runs", default="runs/reproduce", help="may be gs://BUCKET/PATH")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--dry_run", action="store_true", help="the plan, with an estimate of time")
    with user_errors():
        words, overrides = split_overrides(argv)
        args = parser.parse_args(words)
        if args.table == "table4":
            return subprocess.call([sys.executable, "-m", "dnrt_jax.benchmark", "table4"], cwd=ROOT)
        args.runs = storage.path(args.runs)
        if isinstance(args.runs, Path):
            args.runs = args.runs.resolve()
        runs = plan(args, overrides)
        if args.dry_run:
            return _show_plan(runs)
        suffix = "" if length(args) == "full" else f"-{length(args)}"
        path = args.results / f"{args.table}{suffix}.json"
        args.results.mkdir(parents=True, exist_ok=True)

        before = json.loads(path.read_text()) if path.exists() else []

        def save() -> None:
            path.write_text(json.dumps(merged(before, summarize(runs)), indent=1) + "\n")

        save()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            failed = train(runs, save)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on", file=sys.stderr)
            return 128 + signal.SIGINT
    print(markdown(summarize(runs)))
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _show_plan(runs: Sequence[Run]) -> int:
    hours, unknown = 0.0, 0
    size = {run.workdir: len(seeds) for seeds in sets_of(runs) for run in seeds}
    for run in runs:
        done, needed = run.result() is not None, estimate(run)
        said = "finished" if done else "?" if needed is None else f"{needed:.2g} h"
        together = f", in a set of {size[run.workdir]}" if size[run.workdir] > 1 else ""
        print(f"{run.name}: {said}{together}")
        unknown += needed is None and not done
        hours += 0 if done else needed or 0
    rest = f" and {unknown} that cannot be estimated" if unknown else ""
    print(f"{len(runs)} runs, about {math.ceil(10 * hours) / 10:g} hours on this machine{rest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
