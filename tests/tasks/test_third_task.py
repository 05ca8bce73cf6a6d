"""A task is an interface: one of someone else, with a model of his own, in a file of 60 lines,
trains, is killed, resumes and is evaluated by the ordinary programs."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ROOT, assert_same_run, environment

from dnrt_jax.main import main

FOLDER = Path(__file__).parent / "third"
FLAGS = ["train.steps=44", "train.batch_size=64", "train.log_steps=4", "train.eval_steps=10"]
FLAGS += ["train.checkpoint_steps=5"]
FLAGS = [f"--config.{flag}" for flag in FLAGS]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "dnrt_jax.main", *arguments],
        cwd=FOLDER,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments):
    process = start(*arguments)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


def test_it_is_at_most_sixty_lines():
    assert len((FOLDER / "signals.py").read_text().splitlines()) <= 60


def test_the_command_of_the_page_learns_as_it_is_typed(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "extend.md").read_text()
    (command,) = re.findall(r"<!-- in a folder with these two files -->\n```\n(.*)\n```", page)
    *started, config, workdir, steps = shlex.split(command)
    assert started == ["PYTHONPATH=.", "python", "-m", "dnrt_jax.main"]
    for file in ("signals.py", "config.py"):
        shutil.copy(FOLDER / file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit, match=r"^0$"):
        main([config, workdir, steps])
    record = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert record["step"] == 40
    assert record["test/acc"] > 0.9
    assert 0 < record["train/loss_arr"] < 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("third") / "run"
    run("--config=config.py", f"--workdir={workdir}", *FLAGS)
    return workdir


def test_killed_and_resumed_it_ends_as_if_never_killed(whole, tmp_path):
    process = start("--config=config.py", f"--workdir={tmp_path}/run", *FLAGS)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 8 "):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(f"--workdir={tmp_path}/run")
    assert_same_run(whole, tmp_path / "run")


def test_its_folder_is_enough_to_evaluate_it(whole):
    record = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    out = run(f"--workdir={whole}", "--eval_only")
    assert f"test/acc={record['test/acc']:.6g}" in out


def test_its_fields_are_fields_like_any(tmp_path):
    flags = ["--config=config.py", f"--workdir={tmp_path}/run", *FLAGS]
    process = start(*flags, "--config.data.lenght=9")
    assert "did you mean data.length?" in process.communicate()[1]
    run(*flags, "--config.data.length=9", "--config.train.steps=1")
