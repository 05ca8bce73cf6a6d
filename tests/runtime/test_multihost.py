"""Real processes on loopback: the program on two hosts is the program on one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dnrt_jax import run as run_module
from dnrt_jax.runtime import checkpoint, multihost, storage
from dnrt_jax.runtime.errors import WorkdirError
from dnrt_jax.runtime.workdir import Workdir, read_records

ROOT = Path(__file__).parents[2]
STEPS = 30
SMALL = [
    "--config.model.embed_dim=16",
    "--config.model.depth=2",
    "--config.model.num_heads=2",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=64",
    "--config.train.log_steps=1",
    "--config.train.eval_steps=30",
    "--config.train.checkpoint_steps=10",
    "--config.optim.warmup_steps=5",
    "--config.eval.batch_size=360",
]
LOST = 75


def start(workdir, processes, devices, *arguments):
    """The program in `processes` processes of `devices` devices each, in one folder, or in a list
    of one for each process."""
    folders = workdir if isinstance(workdir, list) else [workdir] * processes
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['TEST_XLA_FLAGS']} {flags}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
    }
    program = [sys.executable, "-m", "dnrt_jax.main", "--config=configs/digits.py"]
    program += [*SMALL, *arguments]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        program += [f"--coordinator=localhost:{port}", f"--processes={processes}"]
    places = [[f"--process={i}"] for i in range(processes)] if processes > 1 else [[]]
    return [
        subprocess.Popen(
            [*program, f"--workdir={folder}", *place],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder, place in zip(folders, places, strict=True)
    ]


def finish(running, timeout=240):
    """(exit status, standard error) of each."""
    answers = []
    for process in running:
        try:
            _, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for other in running:
                other.kill()
            raise
        answers.append((process.returncode, errors))
    return answers


def run(*args):
    answers = finish(start(*args))
    assert all(status == 0 for status, _ in answers), answers


def losses(workdir):
    return {r["step"]: r["train/loss"] for r in read_records(storage.path(workdir))}


def wait_for_step(workdir, step, running):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and all(p.poll() is None for p in running):
        if step in checkpoint.steps(storage.path(workdir) / "checkpoints"):
            return
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint {step}: {finish(running, 1)}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses of the run on one device of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(workdir, 1, 1)
    return losses(workdir)


def same(workdir, expected):
    seen = losses(workdir)
    assert seen.keys() == expected.keys()
    np.testing.assert_allclose(list(seen.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "fsdp"), [(1, True), (4, False)])
def test_two_processes_equal_one(alone, tmp_path, devices, fsdp):
    run(tmp_path / "run", 2, devices, f"--config.parallel.fsdp={fsdp}")
    same(tmp_path / "run", alone)
    assert len(list((tmp_path / "run").glob("events*"))) == 1  # one process wrote


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["single", "scan"])
def test_two_processes_train_a_set_with_a_member_each(alone, tmp_path, dispatch):
    flags = ["--seeds=42,7", "--config.parallel.members=together"]
    flags += [f"--config.train.dispatch={dispatch}"]
    run(tmp_path / "set", 2, 2, *flags)
    same(tmp_path / "set" / "seed42", alone)
    assert losses(tmp_path / "set" / "seed7").keys() == alone.keys()
    summary = json.loads((tmp_path / "set" / "summary.json").read_text())
    assert summary["settings"][0]["last"]["test/acc"]["n"] == 2


@pytest.mark.slow
def test_a_lost_process_is_named_and_the_run_goes_on_elsewhere(alone, tmp_path):
    workdir = tmp_path / "run"
    running = start(workdir, 2, 4, "--config.parallel.heartbeat_seconds=5")
    wait_for_step(workdir, 10, running)
    running[1].kill()
    killed = time.monotonic()
    status, errors = finish(running)[0]
    assert time.monotonic() - killed < 2 * 5 + 60
    assert status == LOST, errors
    assert "error: process 1 of this run was lost" in errors
    run(workdir, 1, 1)  # of eight devices in two processes, to one
    same(workdir, alone)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_on_all(alone, tmp_path):
    workdir = tmp_path / "run"
    running = start(workdir, 2, 1)
    wait_for_step(workdir, 10, running)
    running[1].send_signal(signal.SIGTERM)
    assert [status for status, _ in finish(running)] == [128 + signal.SIGTERM] * 2
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert 10 <= saved < STEPS
    assert max(losses(workdir)) == saved
    run(workdir, 2, 1)
    same(workdir, alone)


@pytest.mark.slow
def test_from_eight_devices_to_one_to_two_processes_and_back(alone, tmp_path):
    workdir = tmp_path / "run"
    for processes, devices, kept in [(1, 8, 10), (1, 1, 20), (2, 4, STEPS)]:
        run(workdir, processes, devices, "--config.train.keep=3")
        saved = checkpoint.steps(workdir / "checkpoints")
        assert kept in saved
        for later in saved[saved.index(kept) + 1 :]:
            shutil.rmtree(workdir / "checkpoints" / str(later))  # as if it had not got there
        (workdir / "summary.json").unlink()
    same(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_in_a_bucket_two_processes_save_and_one_goes_on(alone, store, fsdp):
    workdir, flag = f"gs://bucket/two-{fsdp}", f"--config.parallel.fsdp={fsdp}"
    running = start(workdir, 2, 2, flag)
    wait_for_step(workdir, 10, running)
    running[1].send_signal(signal.SIGTERM)
    assert [status for status, _ in finish(running)] == [128 + signal.SIGTERM] * 2
    run(workdir, 1, 1)
    same(workdir, alone)


SEEN = "the processes see different checkpoints: --workdir must be a folder that all share"


@pytest.mark.slow
def test_processes_with_folders_of_their_own_do_not_go_on(tmp_path):
    run(tmp_path / "run", 1, 1)
    (tmp_path / "run" / "summary.json").unlink()
    answers = finish(start([tmp_path / "run", tmp_path / "other"], 2, 1))
    for (status, errors), name in zip(answers, ("run", "other"), strict=True):
        assert status == 1, errors
        assert f"error: {tmp_path / name}: {SEEN}" in errors


@pytest.mark.parametrize(("elsewhere", "refused"), [(0, False), (10, True)])
def test_no_process_starts_from_another_step_than_the_others(
    tmp_path, monkeypatch, elsewhere, refused
):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gathered = lambda value: np.stack([value, np.asarray(elsewhere)])
    monkeypatch.setattr(multihost.multihost_utils, "process_allgather", gathered)
    experiment = SimpleNamespace(total_steps=20, shapes=None)
    with Workdir(tmp_path / "run") as workdir:
        start = lambda: run_module._start(experiment, workdir, fresh="fresh")
        if refused:
            with pytest.raises(WorkdirError, match=SEEN):
                start()
        else:
            assert start()[:2] == ("fresh", 0)


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "host-0", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
    ],
    ids=str,
)
def test_several_hosts_that_the_environment_names_are_joined(monkeypatch, environment, joins):
    for name in ("TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: joined.append(args))
    monkeypatch.setattr(multihost, "_watch", lambda seconds: None)
    monkeypatch.setattr(multihost, "_watches", [])
    multihost.initialize(None, None, None, 10)
    assert joined == ([(None, None, None)] if joins else [])


def test_who_never_watched_the_others_leaves_in_peace(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost.multihost_utils, "sync_global_devices", lambda name: None)
    monkeypatch.setattr(multihost, "_leaving", threading.Event())
    with pytest.raises(SystemExit) as ended:
        multihost.leave(0)
    assert ended.value.code == 0


def test_half_an_address_is_answered(tmp_path):
    (answer,) = finish(start(tmp_path / "run", 1, 1, "--coordinator=localhost:1"))
    assert answer[0] == 1
    assert answer[1].splitlines() == [
        "error: give --coordinator, --processes and --process together"
    ]
