"""The kit for accelerators: its commands are valid, and it goes from the first call to the page on
a CPU, with a tiny model and an interruption."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from making import data_of_the_tables
from runs import ROOT, environment

from dnrt_jax import command_line
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
AGAIN = "not finished: call again"
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
        args = command_line.parser().parse_args(words)
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


@pytest.mark.parametrize(("devices", "left_out"), [(1, False), (2, True)])
def test_pytorch_is_compared_on_one_device(tmp_path, devices, left_out):
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = kit(tmp_path, "--dry-run", BENCHMARKS="peer", CASES="", XLA_FLAGS=flags)
    assert ("peer: compares on one CPU or GPU; left out" in done.stdout) == left_out
    assert ("dnrt_jax.benchmark peer" in done.stdout) != left_out


def test_a_call_without_time_says_to_call_again(tmp_path):
    done = kit(tmp_path, BENCHMARKS="", LIMIT="0")
    assert (done.returncode, done.stdout) == (75, f"{AGAIN}\n")
    assert "No accelerator has been measured yet." in (tmp_path / "page").read_text()


@pytest.fixture
def fake(tmp_path):
    """Calls the kit with an interpreter that does what a shell's case says of its arguments."""

    def call(cases, **variables):
        python = tmp_path / "python"
        quiet = "*accelerator_page*|*--help*) exit 0 ;;"
        python.write_text(f'#!/bin/sh\ncase "$*" in {quiet} {cases} esac\n')
        python.chmod(0o755)
        few = {"BENCHMARKS": "", "BATCH_SIZES": "8", "CASES": "", "LIMIT": "32"}
        return kit(tmp_path, PYTHON=python, **(few | variables))

    return call


def test_a_benchmark_that_takes_longer_than_a_call_is_left_out_and_named_in_the_end(fake):
    cases, benchmarks = "*step*) sleep 9 ;; *) echo '{}' ;;", "step infer"
    first, second = (fake(cases, BENCHMARKS=benchmarks) for _ in range(2))
    assert first.returncode == 75
    assert first.stdout.splitlines()[1:] == ["step-8: takes longer than a call", AGAIN]
    assert second.returncode == 1
    *_, infer, last = second.stdout.splitlines()
    assert infer == "infer-8"
    assert last.startswith("failed: step-8; ")


def test_a_training_killed_by_the_machine_has_failed_and_the_next_one_runs(fake):
    done = fake('*workdir=*/gelu*) kill -9 $$ ;; *) echo "yes" ;;', CASES="gelu raa", LIMIT="60")
    assert done.returncode == 1
    assert "\nraa\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("failed: gelu; ")


def test_what_another_command_measured_does_not_count(fake):
    assert fake("*) exit 0 ;;", BENCHMARKS="step").stdout == "step-8\nfinished\n"
    done = fake("*) exit 0 ;;", BENCHMARKS="step", DTYPE="float32")
    assert done.returncode == 2
    assert "has step-8 by another command; give another folder as RUNS" in done.stderr


def test_ctrl_c_ends_the_call_at_once_and_lets_the_training_save(tmp_path):
    python = tmp_path / "python"
    saves = "trap 'echo saved; exit' TERM; while :; do sleep 0.1; done"
    python.write_text(f'#!/bin/sh\ncase "$*" in *page*) ;; *) {saves} ;; esac\n')
    python.chmod(0o755)
    variables = {"PYTHON": python, "RUNS": tmp_path, "BENCHMARKS": "", "CASES": "raa"}
    process = subprocess.Popen(
        [ROOT / "scripts" / "accelerator.sh"],
        env=environment() | variables,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "raa\n"
    time.sleep(1)  # as a terminal does, to all that it started
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "interrupted: the next call goes on\n"
    assert process.returncode == 130
    assert (tmp_path / "raa.partial").read_text() == "saved\n"


def test_a_training_is_that_of_the_machine_that_trained_it(tmp_path):
    (tmp_path / "gelu").mkdir()
    config = load(str(ROOT / "configs" / "cifar10.py"))
    (tmp_path / "gelu" / "config.json").write_text(config.to_json())
    scores = {"test/acc": 0.5, "test/loss_ce": 1.0}
    summary = json.dumps({"step": 9, "last": scores, "best": scores})
    (tmp_path / "gelu" / "summary.json").write_text(summary)
    said = "cifar10-jpeg: 10 classes; 9 steps on {} in 1 processes; runs"
    said = [said.format(device) for device in ("1 x NVIDIA A100", "2 x TPU v5 lite")]
    (tmp_path / "gelu.out").write_text("\n".join(said))
    (row,) = accelerator_page.measured(tmp_path)
    assert row["device"] == "2 x TPU v5 lite"


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
    fields += ["data.crop=none", "data.erase=0", "train.batch_size=8", "train.epochs=600"]
    fields += ["train.eval_epochs=200", "train.checkpoint_epochs=200", "eval.batch_size=80"]
    flags = [f"--config.{field}" for field in fields]
    small = {"BENCHMARKS": "step", "BATCH_SIZES": "8", "MODEL": "mlp", "DTYPE": "float32"}
    small |= {"ROUNDS": "1", "CASES": "gelu raa+zero", "DATA_DIR": data}
    calls = []
    while not calls or calls[-1].returncode == 75:
        calls.append(kit(tmp_path, *flags, LIMIT=str(45 if calls else 90), **small))
        assert len(calls) < 20
    assert calls[-1].returncode == 0, calls[-1].stdout
    assert calls[-1].stdout.splitlines()[-1] == "finished"
    logs = "".join(path.read_text() for path in (tmp_path / "runs").glob("*.log"))
    first_steps = map(int, re.findall(r"compiling the training step\nstep (\d+)", logs))
    assert max(first_steps) > 50  # one was interrupted, and went on
    rows = read(tmp_path / "results")
    assert sum(row.get("benchmark") == "step" for row in rows) == 8
    trained = {row["training"]: row for row in rows if "training" in row}
    assert set(trained) == {"gelu", "raa+zero"}
    assert trained["raa+zero"]["settings"]["epochs"] == 600
    assert trained["raa+zero"]["settings"]["changed"]["model.depth"] == 1
    records = (tmp_path / "runs" / "raa+zero" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in records]
    assert steps == sorted(set(steps))
    page = (tmp_path / "page").read_text()
    assert len(re.findall(r"\| raa\+zero \| 600 \|", page)) == 1
