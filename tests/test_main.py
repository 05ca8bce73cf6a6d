"""The program as a person runs it: as a process, with its exit status and what it prints."""

import json
import os
import platform
import random
import re
import resource
import signal
import subprocess
import sys
import time

import jax
import pytest
from runs import ROOT, assert_same_run, command, environment, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "whole"
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_a_run_leaves_what_the_design_names(finished):
    workdir, done = finished
    assert re.search(r"Finished. Test accuracy 0\.\d{4}", done.stdout)
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "curves.png"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train/loss" in r] == sorted(
        {*range(7, 45, 7), *range(10, 45, 10), 44}
    )
    assert [r["step"] for r in records if "test/acc" in r] == [10, 20, 30, 40, 44]
    train = "loss loss_ce loss_arr lr images_per_sec"
    test = "acc recall precision f1 loss_ce loss_arr"
    assert records[-1].keys() >= {f"train/{k}" for k in train.split()}
    assert records[-1].keys() >= {f"test/{k}" for k in test.split()}
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["last"]["test/acc"] == records[-1]["test/acc"]
    assert summary["best"]["test/acc"] == max(r.get("test/acc", 0) for r in records)


def test_what_a_run_compiles_is_kept_by_version_and_host(tmp_path):
    settings = environment() | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    del settings["JAX_COMPILATION_CACHE_DIR"]
    flags = ["--config.train.steps=1", "--config.optim.warmup_steps=0"]
    subprocess.run(command(tmp_path / "run", *flags), cwd=ROOT, env=settings, check=True)
    (folder,) = (tmp_path / "cache" / "dnrt_jax").iterdir()
    assert folder.name == f"jax-{jax.__version__}-{platform.node()}"
    kept = [path.name for path in folder.iterdir() if path.name.startswith("jit_step")]
    assert kept  # the training program


def test_a_finished_run_says_so_and_ends_well(finished):
    workdir, _ = finished
    again = run(workdir)
    assert again.returncode == 0
    assert "finished at step 44" in again.stdout


def test_evaluating_a_checkpoint_repeats_its_record_arr_included(finished):
    workdir, _ = finished
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for which in ("latest", "44"):
        done = run(workdir, "--eval_only", f"--checkpoint={which}")
        assert done.returncode == 0, done.stderr
        printed = dict(part.split("=") for part in done.stdout.split() if "=" in part)
        for name, value in printed.items():
            assert float(value) == pytest.approx(records[-1][name], rel=1e-4)
        assert "test/loss_arr" in printed


def test_killed_at_random_moments_a_run_ends_as_if_never_killed(finished, tmp_path):
    whole, _ = finished
    moments = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            command(tmp_path / "killed"),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        # The first lines come after the compilation; then anywhere in the next few records.
        for _ in range(moments.randint(1, 4)):
            process.stderr.readline()
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = run(tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, tmp_path / "killed")


def test_sigterm_saves_and_the_next_start_goes_on_bit_for_bit(finished, tmp_path):
    whole, _ = finished
    process = subprocess.Popen(
        command(tmp_path / "stopped"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode in (128 + signal.SIGTERM, 0)  # 0: it was at its end already
    done = run(tmp_path / "stopped")
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, tmp_path / "stopped")


def test_a_second_run_in_the_folder_leaves_at_once_and_names_the_first(tmp_path):
    from dnrt_jax.runtime.workdir import Workdir

    workdir = Workdir(tmp_path)
    refused = run(tmp_path)
    assert refused.returncode == 1
    assert f"in use by process {os.getpid()}" in refused.stderr
    workdir.close()


def test_another_config_in_the_folder_is_refused_and_a_longer_run_can_be_allowed(finished):
    workdir, _ = finished
    for change in ("arr.momentum=0.2", "model.act=gelu", "train.batch_size=64", "train.steps=60"):
        field = change.split("=")[0]
        refused = run(workdir, f"--config.{change}")
        assert refused.returncode == 1
        assert f"{field} was" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert run(workdir, "--config.train.log_steps=9").returncode == 0


BAD_INPUT = {
    "a misspelt field": (["--config.optim.lrr=1"], "did you mean optim.lr?"),
    "a wrong type": (["--config.optim.lr=fast"], "config.optim.lr: must be a number above 0"),
    "an impossible value": (["--config.arr.momentum=2"], "config.arr.momentum=2.0: must be"),
    "an unknown flag": (["--wrkdir=x"], "workdir"),
    "an unknown model": (["--config.model.name=vit"], "config.model.name='vit'"),
    "no such data": (["--config.data.name=nowhere"], "nowhere"),
    "channels that differ": (
        ["--config.data.mean=(.5,.5,.5)", "--config.data.std=(1,1,1)"],
        "1 ch",
    ),
    "a batch beyond the data": (["--config.train.batch_size=5000"], "only"),
    "images of another size": (["--config.data.crop=none", "--config.data.image_size=6"], "8 x 8"),
    "nothing to evaluate": (["--eval_only"], "no checkpoint"),
}


@pytest.mark.parametrize(("arguments", "answer"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_no_half_written_run(tmp_path, arguments, answer):
    refused = run(tmp_path / "new", f"--config.data.dir={tmp_path}", *arguments)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert refused.stderr.startswith("error: ")
    assert answer in refused.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["file", "missing"])
def test_a_workdir_or_config_that_cannot_be_is_one_line(tmp_path, kind):
    (tmp_path / "file").write_text("")
    refused = run(tmp_path / "file") if kind == "file" else run(tmp_path, config="configs/digit.py")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1, refused.stderr


def test_help_takes_under_three_seconds():
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = spent()
    done = subprocess.run(
        [sys.executable, "-m", "dnrt_jax.main", "--help"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert "--workdir" in done.stdout
    assert spent() - before < 3  # of processor time: the tests share the machine
