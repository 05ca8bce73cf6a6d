"""Trains every model for 20 steps with four activations, and tabulates times and losses.

    python -m scripts.zoo --data_dir=DIR [MODEL ...]        # one JSON line per run, in --out
    python -m scripts.zoo --table                           # the lines as a Markdown table

A run has four epochs of five batches; the table has the mean loss of the first and the last epoch.
DIR holds CIFAR-10 in any form that `--config.data.name` accepts (see README, Data). For models of
224 pixels the images are enlarged. Runs in --out are skipped; all runs together take two hours.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dnrt_jax import experiment, models
from dnrt_jax.config import Config, default, validate
from dnrt_jax.data import datasets
from dnrt_jax.data.order import epoch_order
from dnrt_jax.runtime.flops import of_image_model
from dnrt_jax.tasks.image_classification import ImageClassification

# name: (activation, weight of ARR)
CASES = {
    "relu": ("relu", 0.0),
    "gelu": ("gelu", 0.0),
    "gdn": ("gdn", 0.0),
    "raa+arr": ("raa", 10.0),
}
STEPS = 20
BATCHES = 5  # per epoch, so that the last epoch has the images of the first
RATES = {"alexnet": 1e-4, "vgg11_bn": 3e-5}  # the others use 1e-3, which is too high here
TIMED_BATCH = 32
SMALL_BATCH = 8  # for models of 224 pixels, which cost 50 times as much per image


MODELS = [name for name in models.registry() if "image_size" in models.fields(name)]


def check_models(parser: argparse.ArgumentParser, names: list[str]) -> None:
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"{', '.join(unknown)}: choose of {', '.join(MODELS)}")


def config_of(model: str, case: str, batch_size: int) -> Config:
    config = default()
    config.model.name = model
    config.model.act, config.arr.weight = CASES[case]
    built: Any = models.create(model, num_classes=10)
    config.data.image_size = config.data.eval_resize = built.image_size
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    config.data.crop, config.data.crop_area = "random_resized", (0.5, 1.0)
    config.train.steps, config.train.batch_size = STEPS, batch_size
    config.optim.lr, config.optim.warmup_steps = RATES.get(model, 1e-3), 5
    config.eval.batch_size = batch_size
    validate(config)
    return config


def train(config: Config, data: datasets.Dataset, steps: int) -> dict[str, Any]:
    """Trains; returns the loss of each step, seconds to compile and seconds per step."""
    built = experiment.build(config, ImageClassification(config, data, data))
    state = built.create()
    step = jax.jit(built.step, donate_argnums=0)
    order = epoch_order(config.seed, 0, len(data))
    rows = np.resize(order[: BATCHES * config.train.batch_size], (steps, config.train.batch_size))
    batch = lambda i: {
        "inputs": data.images[rows[i]],
        "label": data.labels[rows[i]],
        "mask": np.ones(len(rows[i]), bool),
    }
    start = time.perf_counter()
    compiled = step.lower(state, batch(0)).compile()
    compile_seconds = time.perf_counter() - start
    losses, seconds = [], []
    for i in range(steps):
        start = time.perf_counter()
        state, values = compiled(state, batch(i))
        losses.append({k: float(v) for k, v in values.items() if k.startswith("loss")})
        seconds.append(time.perf_counter() - start)
    return {
        "losses": {k: [loss[k] for loss in losses] for k in losses[0]},
        "compile_seconds": compile_seconds,
        "step_seconds": statistics.median(seconds[1:]),
        "batch_size": config.train.batch_size,
    }


def measure(model: str, case: str, data: datasets.Dataset) -> dict[str, Any]:
    config = config_of(model, case, TIMED_BATCH)
    small = TIMED_BATCH if config.data.image_size == 32 else SMALL_BATCH
    row: dict[str, Any] = {"model": model, "case": case}
    row |= train(config_of(model, case, small), data, STEPS)
    if case == "raa+arr":
        timed = row
        if small != TIMED_BATCH:
            timed = train(config, data, 4)
        row["timed"] = {k: timed[k] for k in ("compile_seconds", "step_seconds", "batch_size")}
        built: Any = models.create(model, num_classes=10, act="raa")
        row["macs"] = of_image_model(built).total
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | 10^6 MACs an image | compile, s | step of 32, s | " + " | ".join(CASES) + " |",
        "|---" * (4 + len(CASES)) + "|",
    ]
    found = {(row["model"], row["case"]): row for row in rows}
    for model in models.registry():
        if (model, "raa+arr") not in found:
            continue
        row = found[model, "raa+arr"]
        cells = [
            model,
            f"{row['macs'] / 1e6:.0f}",
            f"{row['timed']['compile_seconds']:.0f}",
            f"{row['timed']['step_seconds']:.2f}",
        ]
        for case in CASES:
            losses = found[model, case]["losses"]["loss"] if (model, case) in found else []
            cells.append(
                f"{_mean(losses[:BATCHES])} → {_mean(losses[-BATCHES:])}" if losses else ""
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="default: all models")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--data_name", default="cifar10")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("results/zoo.jsonl"))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    check_models(parser, args.models)
    rows = [json.loads(line) for line in args.out.open()] if args.out.exists() else []
    if args.table:
        print(table(rows))
        return
    if args.data_dir is None:
        parser.error("give --data_dir=DIR, where CIFAR-10 lies")
    data = datasets.load(args.data_name, args.data_dir, "train", image_size=32)
    done = {(row["model"], row["case"]) for row in rows}
    for model in args.models or MODELS:
        for case in args.cases:
            if (model, case) not in done:
                row = measure(model, case, data)
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                losses = row["losses"]["loss"]
                ends = f"{_mean(losses[:BATCHES])} → {_mean(losses[-BATCHES:])}"
                print(f"{model} {case}: loss {ends}", flush=True)


if __name__ == "__main__":
    main()
