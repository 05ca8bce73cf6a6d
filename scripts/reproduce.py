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
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for a clone that is not installed

from dnrt_jax.data.datasets import data_dir
from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.process import split_overrides, user_errors
from dnrt_jax.runtime.storage import AnyPath
from scripts import study

PAPER: dict[str, Any] = json.loads((ROOT / "results" / "paper" / "tables.json").read_text())
CASES = {"dnrt": "raa+arr"}  # other names, from the paper
VITS = {  # names at 32 and at 224 pixels
    "vit_tiny": ("vit_tiny_patch4_32", "vit_tiny_patch16_224"),
    "deit_tiny": ("deit_tiny_patch4_32", "deit_tiny_patch16_224"),
    "cait_xxs": ("cait_xxs24_patch4_32", "cait_xxs24_224"),
    "pvt_tiny": ("pvt_tiny_32", "pvt_tiny"),
    "tnt_small": ("tnt_s_patch4_32", "tnt_s_patch16_224"),
}
CNNS = {
    "alexnet": ("cifar_alexnet", "alexnet"),
    "vgg11": ("cifar_vgg11_bn", "vgg11_bn"),
    "resnet18": ("cifar_resnet18", "resnet18"),
    "mobilenet": ("cifar_mobilenet", "mobilenet_v1"),
    "shufflenet": ("cifar_shufflenet", "shufflenet_v1"),
}
TINY = {"model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2, "train.epochs": 2}
TINY |= {"train.batch_size": 128, "train.eval_epochs": 1.0, "optim.warmup_epochs": 0.5}
CPU_FLOPS = 150e9  # in training on two cores, see docs/performance.md
SHARE_OF_PEAK = 0.2  # assumed for accelerators
START = 20 / 3600  # hours


class Row(NamedTuple):
    """A row of a table: data set, model and case, as raa+arr; `paper` is the paper's result."""

    dataset: str
    model: str
    case: str
    paper: float | None
    config: str  # a file, such as configs/cifar10.py
    fields: dict[str, Any]  # overrides of the config

    def overrides(self) -> dict[str, Any]:
        """The overridden config fields, by dotted name."""
        act, _, regularized = self.case.partition("+")
        fields = {"model.act": act} | ({} if regularized else {"arr.weight": 0})
        return self.fields | fields


def rows_of(table: str, scale: str) -> list[Row]:
    """All rows of a table.

    Raises:
      ConfigError: if the table does not have that scale.
    """
    rows = list(_table5() if table == "table5" else _images(table))
    if scale == "full":
        return rows
    if table == "table5":
        raise ConfigError(f"{table}: has no --scale={scale}")
    cases = dict.fromkeys(row.case for row in rows)
    return [Row("digits", "vit", case, None, "configs/digits.py", TINY) for case in cases]


def _ours(case: str) -> str:
    return CASES.get(case, case)


def _images(table: str) -> Iterator[Row]:
    """Tables 1, 2, 3 and 6."""
    numbers: list[tuple[str, str, str, float]]
    if table == "table6":
        block = PAPER["table6_ablation_cifar100"]
        numbers = [
            ("cifar100", model, case, number)
            for model in ("vit_tiny", "resnet18")
            for case, number in zip(block["columns"], block[model], strict=True)
        ]
    elif table == "table3":
        block = PAPER["table3_imagenet1k"]
        numbers = [
            ("imagenet1k", m, case, number) for case in block for m, number in block[case].items()
        ]
    else:
        activations: list[str] = list(PAPER["activations"])
        numbers = [
            (dataset, model, case, number)
            for dataset, block in PAPER[table].items()
            for model, values in block.items()
            for case, number in zip(activations, values, strict=True)
        ]
    for dataset, model, named, number in numbers:
        small = dataset.startswith("cifar")
        name = (VITS | CNNS)[model][0 if small else 1]
        protocol = "_cnn" if model in CNNS else ""
        config = f"configs/{dataset}{protocol}.py"
        if not small:
            config = f"configs/imagenet{protocol}.py:{dataset}"
        yield Row(dataset, model, _ours(named), number, config, {"model.name": name})


def _table5() -> Iterator[Row]:
    for case, numbers in PAPER["table5_dgraph_auc"].items():
        for model, number in numbers.items():
            yield Row("dgraph", model, _ours(case), number, f"configs/dgraph.py:{model}", {})
    block = PAPER["table5_longtail_cifar10"]
    names = {"vit_tiny": "vit_tiny_patch4_32", "resnet32": "cifar_resnet32"}
    for i, beta in enumerate(block["beta"]):
        for case in ("relu", "gelu", "dnrt"):
            for model, name in names.items():
                number, fields = block[case][model][i], {"data.imbalance": beta}
                config, dataset = f"configs/cifar10_lt.py:{name}", f"cifar10_lt{beta}"
                yield Row(dataset, model, _ours(case), number, config, fields)


class Run(NamedTuple):
    row: Row
    seed: int
    workdir: AnyPath
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.row.dataset} {self.row.model} {self.row.case} seed {self.seed}"

    def command(self) -> list[str]:
        return self._program(self.workdir)

    def command_with(self, others: Sequence["Run"]) -> list[str]:
        """Of a set of this run and others, which differ in the seed alone."""
        seeds = ",".join(str(run.seed) for run in (self, *others))
        return [*self._program(self.workdir.parent), f"--seeds={seeds}"]

    def _program(self, workdir: AnyPath) -> list[str]:
        flags = [f"--config.{name}={value}" for name, value in self.fields.items()]
        program = [sys.executable, "-m", "dnrt_jax.main", f"--config={self.row.config}"]
        return [*program, f"--workdir={workdir}", *flags]

    @property
    def log(self) -> Path:
        """What the run prints: beside its folder; if that is in a bucket, runs/BUCKET/PATH.log."""
        folder = self.workdir
        beside = folder if isinstance(folder, Path) else Path("runs", *folder.parts[2:])
        return beside.with_suffix(".log")

    def result(self) -> dict[str, Any] | None:
        """The summary {"step", "best", "last"} of a finished run; else None."""
        try:
            summary = json.loads(storage.read(self.workdir / "summary.json"))
        except FileNotFoundError:
            return None
        last = summary["last"]
        metric = "test/auc" if "test/auc" in last else "test/acc"
        values = {which: 100 * summary[which][metric] for which in ("best", "last")}
        return {"step": summary["step"]} | {k: round(v, 2) for k, v in values.items()}


def plan(args: argparse.Namespace, overrides: Mapping[str, str]) -> list[Run]:
    """Every run of the table that the command line asks for, seed by seed.

    Args:
      overrides: fields of the config that are set in every run.

    Raises:
      ConfigError: if it asks for what the table or the config has not.
    """
    rows = rows_of(args.table, args.scale)
    for option, field in (("datasets", "dataset"), ("models", "model"), ("acts", "case")):
        wanted, known = getattr(args, option), {getattr(row, field): None for row in rows}
        if unknown := set(wanted or ()) - known.keys():
            raise ConfigError(
                f"--{option} {' '.join(sorted(unknown))}: choose of {', '.join(known)}"
            )
        rows = [row for row in rows if not wanted or getattr(row, field) in wanted]
    runs = []
    for seed in args.seeds:
        for row in rows:
            fields = row.overrides() | {"seed": seed}
            if args.epochs:
                fields |= _shortened(row, fields, args.epochs)
            if args.steps:
                fields["train.steps"] = args.steps
            folder = args.runs / args.table / _length(args)
            folder = folder / row.dataset / row.model / row.case / f"seed{seed}"
            runs.append(Run(row, seed, folder, fields | dict(overrides)))
    for run in runs if overrides else ():
        _config(run.row.config, run.fields)  # a misspelt field is answered here, not in each run
    return runs


def _length(args: argparse.Namespace) -> str:
    """Of the runs, as full, tiny-3 or full-1step: what folders and results are called by."""
    epochs = f"-{args.epochs}" if args.epochs else ""
    return args.scale + epochs + (f"-{args.steps}step" if args.steps else "")


def _shortened(row: Row, fields: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Overrides for a run of `epochs` epochs, with warm-up and milestones scaled accordingly."""
    config = _config(row.config, fields)
    share = epochs / config.train.epochs
    changed = {"train.epochs": epochs, "optim.warmup_epochs": share * config.optim.warmup_epochs}
    if config.optim.milestones:
        changed["optim.milestones"] = tuple(share * m for m in config.optim.milestones)
    return changed


def sets_of(runs: Sequence[Run]) -> list[list[Run]]:
    """The seeds of each row, which train by one command; of streamed images each by itself, as each
    decodes its own."""
    found: dict[AnyPath, list[Run]] = {}
    for run in runs:
        is_streamed = run.row.dataset.startswith("imagenet")
        found.setdefault(run.workdir if is_streamed else run.workdir.parent, []).append(run)
    return list(found.values())


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


def summarize(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One dict per row, with the results of its seeds."""
    found: dict[int, dict[str, Any]] = {}
    for run in runs:
        row = run.row._asdict()
        entry = found.setdefault(id(run.row), {k: row[k] for k in ("dataset", "model", "case")})
        entry["paper"] = run.row.paper
        seeds = entry.setdefault("seeds", {})
        if result := run.result():
            seeds[str(run.seed)] = result
    return list(found.values())


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows with all their seeds; a seed of both is that of `new`."""
    key = lambda row: (row["dataset"], row["model"], row["case"])
    found = {key(row): row for row in old}
    for row in new:
        seeds = found.get(key(row), {}).get("seeds", {}) | row["seeds"]
        found[key(row)] = row | {"seeds": dict(sorted(seeds.items(), key=lambda x: int(x[0])))}
    return list(found.values())


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of mean and standard deviation over the seeds, in percent."""
    lines = [
        "| data | model | case | paper | last epoch | best epoch | last - paper | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        last, best = ([r[which] for r in row["seeds"].values()] for which in ("last", "best"))
        gap = f"{statistics.fmean(last) - row['paper']:+.1f}" if last and row["paper"] else ""
        cells = [row["dataset"], row["model"], row["case"], row["paper"] or "", _spread(last)]
        cells += [_spread(best), gap, len(last)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def estimate(run: Run) -> float | None:
    """Estimated hours on this machine, from multiply-accumulates; None if unknown."""
    config = _config(run.row.config, run.fields)
    images = {"digits": 1442, "cifar10-jpeg-20k": 20_000, "imagenet100": 126_689}
    images |= {"cifar10": 50_000, "cifar100": 50_000, "imagenet1k": 1_281_167}
    if config.data.name not in images:
        return None
    count = images[config.data.name]
    if config.data.imbalance:
        count = {10: 20_431, 50: 13_996, 100: 12_406}[config.data.imbalance]
    train = config.train
    count = train.steps * train.batch_size or count * train.epochs
    model = config.model.to_dict()
    if model["act"] != "gdn":  # the others are less than 1% of the whole
        model["act"] = "gelu"
    macs = _macs(json.dumps(model), config.data.image_size, len(config.data.mean))
    return 3 * 2 * macs * count / _flops() / 3600 + START


def _config(spec: str, fields: dict[str, Any]) -> Any:
    from dnrt_jax.config import validate
    from dnrt_jax.config_file import load

    config = load(str(ROOT / spec), {name: str(value) for name, value in fields.items()})
    validate(config)
    return config


@cache
def _macs(model: str, image_size: int, channels: int) -> int:
    """Multiply-accumulates of a forward pass per image; `model` is that config section as JSON."""
    from dnrt_jax import experiment
    from dnrt_jax.config import default
    from dnrt_jax.runtime import flops

    config = default()
    config.model.update(json.loads(model))
    config.data.image_size = image_size
    return flops.of_image_model(experiment.create_model(config, 100), channels).total


@cache
def _flops() -> float:
    import jax

    from dnrt_jax.runtime import flops

    peak = flops.PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return SHARE_OF_PEAK * peak * jax.device_count() if peak else CPU_FLOPS


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
        suffix = "" if _length(args) == "full" else f"-{_length(args)}"
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
