"""The kit for accelerators: its commands are valid, and it goes from the first call to the page on
a CPU, with a tiny model and an interruption."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from making import data_of_the_tables
from runs import ROOT, environment

from dnrt_jax import main
from dnrt_jax.config import validate
from dnrt_jax.config_file import load
from dnrt_jax.runtime.process import split_overrides

sys.path.insert(0, str(ROOT))
from scripts import accelerator_page
from scripts.study_plan import read

CASES = {  # name: activation, weight and target of ARR
    "gelu": ("gelu", 0, "updated"),
    "gelu+arr": ("gelu", 10, "updated"),
    "raa": ("raa", 0, "updated"),
    "raa+arr": ("raa", 10, "updated"),
    "raa+zero": ("raa", 10, "zero"),
}
BENCHMARK = {"benchmark": "step", "device": "1 x X", "case": "raa", "unit": "ms/step", "n": 9}
BENCHMARK |= {"ours": 2.0, "other": 4.0, "ratio": 0.5, "spread": [0.5, 0.5]}
BENCHMARK |= {"settings": {"batch_size": 256, "dtype": "bfloat16", "rounds": 9}}
TRAINING = {"training": "raa+zero", "device": "1 x X", "last": {"acc": 0.9, "loss_ce": 0.31}}
TRAINING |= {"settings": {"epochs": 300, "changed": {"model.dtype": "bfloat16"}}}
TRAINING |= {"best": {"acc": 0.91, "loss_ce": 0.3}}


def kit(folder, *arguments, **variables):
    places = {"RUNS": folder / "runs", "RESULTS": folder / "results", "PAGE": folder / "page"}
    return subprocess.run(
        [ROOT / "scripts" / "accelerator.sh", *arguments],
        env=environment() | {"PYTHON": sys.executable} | {**places, **variables},
        capture_output=True,
        text=True,
    )


def test_the_commands_are_valid_and_the_trainings_those_of_the_cases(tmp_path):
    done = kit(tmp_path, "--dry-run", "--config.train.epochs=2", BENCHMARKS="step infer")
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line)[2:] for line in done.stdout.splitlines()]
    benchmarks = [words[1:] for words in commands if words[0] == "dnrt_jax.benchmark"]
    assert [(w[0], w[1]) for w in benchmarks] == [
        (name, f"--batch_size={size}") for name in ("step", "infer") for size in (256, 1024)
    ]
    assert all("--dtype=bfloat16" in words for words in benchmarks)
    trainings = [words[1:] for words in commands if words[0] == "dnrt_jax.main"]
    found = {}
    for words in trainings:
        words, overrides = split_overrides(words)
        args = main._parser().parse_args(words)
        config = load(args.config, overrides)
        validate(config)
        assert (config.data.name, config.train.epochs) == ("cifar10-jpeg", 2)
        name = os.path.basename(args.workdir)
        found[name] = (config.model.act, config.arr.weight, config.arr.target)
    assert found == CASES


def test_what_is_no_benchmark_is_left_out_and_said(tmp_path):
    done = kit(tmp_path, "--dry-run", BENCHMARKS="leap", CASES="gelu")
    assert done.stdout.splitlines()[0] == "leap: no benchmark here; left out"
    assert done.returncode == 0


def test_a_call_without_time_says_to_call_again(tmp_path):
    done = kit(tmp_path, BENCHMARKS="", LIMIT="0")
    assert (done.returncode, done.stdout) == (75, "not finished: call again\n")
    assert "No accelerator has been measured yet." in (tmp_path / "page").read_text()


def test_the_page_shows_each_measurement_once_the_newest():
    slower = BENCHMARK | {"ours": 3.0, "ratio": 0.75}
    rows = accelerator_page.merged([BENCHMARK, TRAINING], [slower])
    assert rows == [slower, TRAINING]
    page = accelerator_page.page(rows)
    assert "| 1 x X | step, raa | 256 | bfloat16 | ms/step | 3 | 4 | 0.750 |" in page
    assert "| 1 x X | raa+zero | 300 | 90.00 | 91.00 | 0.310 | model.dtype=bfloat16 |" in page
    other = BENCHMARK | {"device": "1 x Y"}
    assert len(accelerator_page.merged(rows, [other])) == 3


def test_the_page_is_that_of_the_committed_results():
    written = accelerator_page.page(read(accelerator_page.RESULTS))
    assert accelerator_page.PAGE.read_text() == written, "run: python -m scripts.accelerator_page"


@pytest.mark.slow
def test_from_the_first_call_to_the_page_with_a_tiny_model_on_the_cpu(tmp_path):
    data = data_of_the_tables(tmp_path / "data")
    fields = ["model.depth=1", "model.embed_dim=24", "model.num_heads=1", "data.rand_augment="]
    fields += ["data.crop=none", "data.erase=0", "train.batch_size=8", "train.epochs=150"]
    fields += ["train.eval_epochs=50", "train.checkpoint_epochs=50", "eval.batch_size=80"]
    flags = [f"--config.{field}" for field in fields]
    small = {"BENCHMARKS": "step", "BATCH_SIZES": "8", "MODEL": "mlp", "DTYPE": "float32"}
    small |= {"ROUNDS": "1", "CASES": "gelu raa+zero", "DATA_DIR": data}
    calls = []
    while not calls or calls[-1].returncode == 75:
        calls.append(kit(tmp_path, *flags, LIMIT=str(45 if calls else 55), **small))
        assert len(calls) < 20
    assert calls[-1].returncode == 0, calls[-1].stdout
    assert calls[-1].stdout.splitlines()[-1] == "finished"
    assert len(calls) > 1  # a training was interrupted, and went on
    rows = read(tmp_path / "results")
    assert sum(row.get("benchmark") == "step" for row in rows) == 8
    trained = {row["training"]: row for row in rows if "training" in row}
    assert set(trained) == {"gelu", "raa+zero"}
    assert trained["raa+zero"]["settings"]["epochs"] == 150
    assert trained["raa+zero"]["settings"]["changed"]["model.depth"] == 1
    records = (tmp_path / "runs" / "raa+zero" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in records]
    assert steps == sorted(set(steps))
    page = (tmp_path / "page").read_text()
    assert len(re.findall(r"\| raa\+zero \| 150 \|", page)) == 1
