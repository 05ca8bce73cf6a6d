"""The program as a person runs it: as a process, with its exit status and what it prints."""

import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time

import jax
import pytest
from runs import ROOT, assert_same_run, command, environment, here, program, run


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    """whole(dispatch) -> the folder of an undisturbed run, many steps in a dispatch or one."""
    folders = {"single": finished[0]}

    def get(dispatch):
        if dispatch not in folders:
            folders[dispatch] = tmp_path_factory.mktemp(dispatch) / "run"
            done = run(folders[dispatch], f"--config.train.dispatch={dispatch}")
            assert done.returncode == 0, done.stderr
        return folders[dispatch]

    return get


def typed(workdir, *arguments):
    """The words after `python -m dnrt_jax.main` with which `run` starts a run."""
    return command(workdir, *arguments)[3:]


def records_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_the_design_names(finished):
    workdir, printed = finished
    assert re.search(r"Finished. Test accuracy 0\.\d{4}", printed.out)
    assert str(workdir) in printed.out.splitlines()[-1]  # where the results are
    assert "compiling" in printed.err
    assert re.search(r"step 10 \| epoch 0\.\d+ \| \d\d:\d\d:\d\d, \d\d:\d\d left", printed.err)
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "curves.png"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    records = records_of(workdir)
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


@pytest.mark.slow
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
    again = here(f"--workdir={workdir}")
    assert again.returncode == 0
    assert "finished at step 44" in again.stdout


@pytest.mark.parametrize("flags", [[], pytest.param(["--checkpoint=44"], marks=pytest.mark.slow)])
def test_the_folder_is_enough_to_evaluate_with_the_digits_of_training(finished, flags):
    workdir, _ = finished
    done = program(f"--workdir={workdir}", "--eval_only", *flags)
    assert done.returncode == 0, done.stderr
    printed = dict(part.split("=") for part in done.stdout.split() if "=" in part)
    last = records_of(workdir)[-1]
    assert printed == {k: f"{v:.6g}" for k, v in last.items() if k.startswith("test/")}
    assert "test/loss_arr" in printed


def killed_at(workdir, seconds, *flags, record="step "):
    """Starts the program and kills it some seconds after its first record that begins so."""
    process = subprocess.Popen(
        command(workdir, *flags),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_records(process, record)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_for_records(process, start="step "):
    for line in process.stderr:
        if line.startswith(start):
            return


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["scan", "single"])
def test_killed_at_random_moments_a_run_ends_as_if_never_killed(whole, tmp_path, dispatch):
    flag, moments = f"--config.train.dispatch={dispatch}", random.Random(5)
    for _ in range(5):
        killed_at(tmp_path / "killed", moments.uniform(0, 0.5), flag)
    done = run(tmp_path / "killed", flag)
    assert done.returncode == 0, done.stderr
    assert_same_run(whole(dispatch), tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["scan", "single"])
def test_sigterm_saves_and_the_next_start_goes_on_bit_for_bit(whole, tmp_path, dispatch):
    flag = f"--config.train.dispatch={dispatch}"
    process = subprocess.Popen(
        command(tmp_path / "stopped", flag),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_records(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode in (128 + signal.SIGTERM, 0)  # 0: it was at its end already
    done = program(f"--workdir={tmp_path}/stopped")  # the folder knows its config
    assert done.returncode == 0, done.stderr
    assert_same_run(whole(dispatch), tmp_path / "stopped")


def test_tensorboard_has_after_a_kill_what_the_records_have(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    killed_at(tmp_path / "run", 0, record="step 20 ")
    logged = set()
    for path in (tmp_path / "run").glob("events*"):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            if at + 16 + length > len(data):
                break
            assert masked_crc32c(data[at : at + 8]) == struct.unpack_from("<I", data, at + 8)[0]
            event = Event.FromString(data[at + 12 : at + 12 + length])
            logged |= {(event.step, value.tag) for value in event.summary.value}
            at += 16 + length
    saved = max(int(p.parent.name) for p in (tmp_path / "run").glob("checkpoints/*/manifest.json"))
    for record in records_of(tmp_path / "run"):
        if record["step"] <= saved:
            assert (record["step"], "train/loss") in logged


def test_a_shortened_run_is_refused_and_goes_on_as_before(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    before = (workdir / "config.json").read_text()
    flags = ["--config.train.steps=20", "--allow_change=train.steps"]
    refused = here(*typed(workdir, *flags))
    assert refused.returncode == 1
    assert "is at step 44, beyond the 20 steps" in refused.stderr.splitlines()[-1]
    assert (workdir / "config.json").read_text() == before
    assert "finished at step 44" in here(*typed(workdir)).stdout


def test_without_its_config_a_run_takes_that_of_its_newest_checkpoint(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "config.json").unlink()
    done = here(f"--workdir={workdir}", "--eval_only")
    assert done.returncode == 0, done.stderr
    assert "config.json is missing: using the config of the newest checkpoint" in done.stderr


def test_a_finished_run_without_checkpoints_says_so_when_it_is_extended(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "checkpoints")
    assert here(*typed(workdir)).returncode == 0
    other = here(*typed(workdir, "--config.model.act=gelu"))  # whose result it is not
    assert (other.returncode, "model.act was" in other.stderr) == (1, True)
    refused = here(*typed(workdir, "--config.train.steps=60", "--allow_change=train.steps"))
    assert refused.returncode == 1
    assert "finished at step 44, and its checkpoints are gone" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_second_run_in_the_folder_leaves_at_once_and_names_the_first(tmp_path):
    from dnrt_jax.runtime.workdir import Workdir

    workdir = Workdir(tmp_path)
    refused = here(*typed(tmp_path))
    assert refused.returncode == 1
    assert f"in use by process {os.getpid()}" in refused.stderr
    workdir.close()


def test_another_config_in_the_folder_is_refused_and_a_longer_run_can_be_allowed(finished):
    workdir, _ = finished
    for change in ("arr.momentum=0.2", "model.act=gelu", "train.batch_size=64", "train.steps=60"):
        field = change.split("=")[0]
        refused = here(*typed(workdir, f"--config.{change}"))
        assert refused.returncode == 1
        assert f"{field} was" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert here(*typed(workdir, "--config.train.log_steps=9")).returncode == 0


@pytest.mark.slow
def test_debug_nans_names_the_operation(tmp_path):
    flags = ["optim.lr=1e30", "optim.warmup_lr=1e30", "optim.clip=0", "train.dispatch=single"]
    call = command(tmp_path / "run", *(f"--config.{flag}" for flag in flags))
    said = environment() | {"JAX_DEBUG_NANS": "True"}
    done = subprocess.run(call, cwd=ROOT, env=said, capture_output=True, text=True)
    assert done.returncode == 1
    assert "FloatingPointError: invalid value (nan) encountered in" in done.stderr


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
    assert done.returncode == 0
    assert "--workdir" in done.stdout
    assert spent() - before < 3  # of processor time: the tests share the machine
