"""The runs behind the rows of a table: folders, fields, commands, and how long they take."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.storage import AnyPath
from scripts.reproduce_rows import ROOT, Row, rows_of

CPU_FLOPS = 150e9  # in training on two cores, see docs/performance.md
SHARE_OF_PEAK = 0.2  # assumed for accelerators
START = 20 / 3600  # hours


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
            folder = args.runs / args.table / length(args)
            folder = folder / row.dataset / row.model / row.case / f"seed{seed}"
            runs.append(Run(row, seed, folder, fields | dict(overrides)))
    for run in runs if overrides else ():
        _config(run.row.config, run.fields)  # a misspelt field is answered here, not in each run
    return runs


def length(args: argparse.Namespace) -> str:
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
