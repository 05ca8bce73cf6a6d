"""Kill it, damage it, fill the disk: nothing is lost and nothing is silently wrong.

Each test runs the real program as a process and compares what it leaves with the run that nothing
happened to, bit for bit.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from runs import assert_same_run, content, load_arrays

from dnrt_jax.runtime import checkpoint


def cases(*rows):
    """Each case with one step in a dispatch, as here by itself, and with many; the first on every
    run of the tests, the others with the long ones."""
    return [
        pytest.param(*row, dispatch, marks=[] if (i, dispatch) == (0, "auto") else pytest.mark.slow)
        for dispatch in ("auto", "scan")
        for i, row in enumerate(rows)
    ]


def steps(workdir):
    return sorted(int(p.parent.name) for p in Path(workdir).glob("checkpoints/*/manifest.json"))


def errors_of(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("stage", "dispatch"),
    cases(
        ["before manifest"],
        ["before arrays"],
        ["in arrays"],
        ["before rename"],
        ["in verify"],
        ["in sweep"],
    ),
)
def test_a_kill_during_a_save_loses_nothing_that_was_saved(
    undisturbed, run, tmp_path, stage, dispatch
):
    workdir, flag = tmp_path / "run", f"--config.train.dispatch={dispatch}"
    assert run(f"kill {stage}", workdir, flag)[0] == -signal.SIGKILL
    assert steps(workdir)  # the previous step was never gone
    status, errors = run("none", workdir, flag)
    assert status == 0, errors
    whole = undisturbed(dispatch)
    assert_same_run(whole, workdir)
    names = lambda folder: sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names(workdir) == names(whole)  # leftovers are swept


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["single", "scan"])
def test_killed_at_twenty_random_moments(undisturbed, start, run, tmp_path, dispatch):
    moments, flag = random.Random(1), f"--config.train.dispatch={dispatch}"
    for _ in range(20):
        process = start("none", tmp_path / "run", flag)
        time.sleep(moments.uniform(0, 14))
        process.kill()
        process.communicate()
    assert run("none", tmp_path / "run", flag)[0] == 0
    assert_same_run(undisturbed(dispatch), tmp_path / "run")


@pytest.mark.parametrize(
    ("fault", "number", "dispatch"),
    cases(
        ["stop in step", signal.SIGTERM],
        ["stop in compile", signal.SIGTERM],
        ["stop in evaluation", signal.SIGTERM],
        ["stop in save", signal.SIGTERM],
        ["interrupt in step", signal.SIGINT],
    ),
)
def test_a_signal_saves_and_the_next_start_goes_on(
    undisturbed, run, tmp_path, fault, number, dispatch
):
    workdir, flag = tmp_path / "run", f"--config.train.dispatch={dispatch}"
    status, errors = run(fault, workdir, flag)
    ended = time.time()
    assert status == 128 + number, errors
    sent = float(re.search(r"signal ([\d.]+)", errors)[1])
    print(f"{fault}: {ended - sent:.2f} s from the signal to the end")
    assert steps(workdir)
    assert run("none", workdir, flag)[0] == 0
    assert_same_run(undisturbed(dispatch), workdir)


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_and_the_older_step_serves(whole, run, tmp_path):
    workdir = tmp_path / "run"
    assert run("stop twice", workdir)[0] == 128 + signal.SIGTERM
    assert steps(workdir) == [5]
    assert run("none", workdir)[0] == 0
    assert_same_run(whole, workdir)


def finite(workdir):
    """(whether all arrays of the newest checkpoint are finite, the records)"""
    arrays = load_arrays(workdir / "checkpoints" / str(steps(workdir)[-1]))
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return all(np.isfinite(value).all() for value in arrays.values()), list(records)


@pytest.mark.parametrize(
    ("fault", "flags", "cause"),
    [
        ("nan parameter", (), "loss_ce is not finite at step 13"),
        pytest.param(
            "nan parameter",
            ("--config.train.dispatch=scan",),
            "loss_ce is not finite at step 13",
            marks=pytest.mark.slow,
        ),
        pytest.param("bad label", (), "loss_arr is not finite", marks=pytest.mark.slow),
        pytest.param(
            "none",
            ("--config.optim.lr=1e30", "--config.optim.clip=0"),
            "is not finite at step",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_never_saved(run, tmp_path, fault, flags, cause):
    workdir = tmp_path / "run"
    status, errors = run(fault, workdir, *flags)
    assert status == 1
    (line,) = errors_of(errors)
    assert cause in line
    assert "the last checkpoint is intact" in line
    if steps(workdir):
        assert finite(workdir)[0]


@pytest.mark.slow
def test_a_step_that_is_not_finite_can_be_skipped_up_to_a_cap(run, tmp_path):
    flag = "--config.train.on_nonfinite=skip"
    status, errors = run("bad label", tmp_path / "skipped", flag)
    assert status == 0, errors
    assert "loss_arr is not finite at step 13" in errors
    good, records = finite(tmp_path / "skipped")
    assert good
    assert records[-1]["train/skipped"] == 1
    flags = (flag, "--config.train.max_skipped=1")
    status, errors = run("nan parameter", tmp_path / "capped", *flags)
    assert status == 1
    assert "more than config.train.max_skipped=1" in errors_of(errors)[0]
    status, errors = run("nan parameter", tmp_path / "unsaved", flag)
    assert status == 1
    assert (
        "step 15: a parameter or class mean is not finite; no checkpoint was saved"
        in errors_of(errors)[0]
    )
    assert finite(tmp_path / "unsaved")[0]


@pytest.mark.parametrize("moment", ["save", pytest.param("record", marks=pytest.mark.slow)])
def test_a_full_disk_stops_the_run_and_the_earlier_checkpoint_serves(whole, run, tmp_path, moment):
    workdir = tmp_path / "run"
    status, errors = run(f"disk full at {moment}", workdir)
    assert status == 1
    assert "No space left on device" in errors_of(errors)[0]
    assert run("none", workdir)[0] == 0
    assert_same_run(whole, workdir)


@pytest.mark.slow
def test_a_really_full_disk(run, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        status, errors = run("none", disk / "run", "--config.train.keep=100")
        assert status == 1
        assert len(errors_of(errors)) == 1
        assert steps(disk / "run")
        shutil.copytree(disk / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    for step in steps(tmp_path / "run"):
        checkpoint.verify(tmp_path / "run" / "checkpoints", step)
    assert run("none", tmp_path / "run")[0] == 0
    assert_same_run(whole, tmp_path / "run")


def test_no_space_for_two_checkpoints_is_answered_before_compiling(run, tmp_path):
    status, errors = run("no space", tmp_path / "run")
    assert status == 1
    assert re.search(r"0.0 MB are free, two checkpoints take \d\.\d MB", errors_of(errors)[0])
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_answered(run):
    status, errors = run("none", "/proc/dnrt_jax")
    assert status == 1
    assert "--workdir=/proc/dnrt_jax" in errors_of(errors)[0]


@pytest.mark.slow
def test_a_torn_record_is_repaired_once(whole, start, run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "44")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 44, "train/lo')
    assert run("none", workdir)[0] == 0
    assert_same_run(whole, workdir)


@pytest.mark.slow
def test_another_clock_host_and_place_change_nothing(whole, run, tmp_path):
    assert run("stop in step", tmp_path / "here")[0] == 128 + signal.SIGTERM
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert run("clock and host", tmp_path / "there")[0] == 0
    assert_same_run(whole, tmp_path / "there")


@pytest.mark.slow
def test_a_corrupt_compilation_cache_is_compiled_again(whole, run, tmp_path):
    damaged = tmp_path / "cache"
    shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], damaged)
    programs = [p for p in damaged.iterdir() if p.name.endswith("-cache")]
    assert programs
    for path in programs:
        path.write_bytes(path.read_bytes()[:100])
    status, errors = run("none", tmp_path / "run", JAX_COMPILATION_CACHE_DIR=str(damaged))
    assert status == 0, errors
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_memory_does_not_grow(start, tmp_path):
    flags = ["--config.train.steps=2000", "--config.train.checkpoint_steps=250"]
    flags += ["--config.train.eval_steps=250", "--config.train.log_steps=50"]
    out, errors = start("resident", tmp_path / "run", *flags).communicate(timeout=1200)
    found = {int(s): float(m) for s, m in re.findall(r"resident (\d+) ([\d.]+)", out)}
    print({step: round(found[step], 1) for step in (500, 1000, 1500, 2000)})
    assert found[2000] <= 1.02 * found[500], errors


@pytest.mark.slow
def test_the_lock_dies_with_its_process(start, run, tmp_path):
    process = start("none", tmp_path / "run")
    while not (tmp_path / "run" / ".lock").exists():
        time.sleep(0.05)
    time.sleep(1)
    status, errors = run("none", tmp_path / "run")
    assert status == 1
    assert f"in use by process {process.pid}" in errors_of(errors)[0]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert run("none", tmp_path / "run")[0] == 0
    assert content(tmp_path / "run")
