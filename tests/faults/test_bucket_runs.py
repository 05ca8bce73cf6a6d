"""Runs in a bucket end as runs on a disk do, bit for bit, whatever happens on the way."""

import json
import random
import re
import signal
import sys
import time

import pytest
from buckets import BUCKET, Fault
from runs import assert_same_run

from dnrt_jax import convert, main, predict
from dnrt_jax.report import __main__ as report
from dnrt_jax.runtime import bucket, checkpoint, lock, storage

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def workdir(tmp_path):
    return f"gs://{BUCKET}/{tmp_path.name}"


def steps(workdir):
    return checkpoint.steps(storage.path(workdir) / "checkpoints")


def errors_of(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def disturbed(running_store, run, tmp_path_factory):
    """A run over a faulty connection."""
    place = f"gs://{BUCKET}/{tmp_path_factory.mktemp('disturbed').name}"
    running_store.faults += [  # the first that fits a request is taken
        Fault("lose answer", "POST /upload.*lock"),
        Fault("status", "POST /upload.*arrays", 1, 429),
        Fault("status", "manifest", 1, 503),
        Fault("cut upload", "POST /upload.*arrays"),
        Fault("wrong byte up", "POST /upload.*metrics"),
        Fault("slow", "POST /upload", 3, 0.5),
    ]
    status, errors = run("none", place, **running_store.environment)
    assert status == 0, errors
    assert not [fault for fault in running_store.faults if fault.times]
    return place


def test_a_run_over_a_faulty_connection_ends_as_one_on_disk(whole, disturbed):
    assert_same_run(whole, disturbed)
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    assert {str(step) for step in steps(disturbed)} == names
    named = lambda names: {re.sub(r"/arrays(/.*|.tar)", "/arrays", name) for name in names}
    expected = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()} - {".lock"}
    events = lambda names: {name for name in names if not name.startswith("events.")}
    found = storage.files(storage.path(disturbed))
    assert events(named(found)) == events(named(expected))


def test_the_programs_take_a_run_over_a_faulty_connection(disturbed, store, tmp_path, capsys):
    from PIL import Image

    store.faults += [
        Fault("cut download", "alt=media"),
        Fault("shorten download", "arrays.*alt=media"),
        Fault("wrong byte down", "arrays.*alt=media"),
    ]
    Image.new("L", (8, 8)).save(tmp_path / "zero.png")
    assert predict.main([f"--workdir={disturbed}", str(tmp_path / "zero.png")]) == 0
    convert.main([disturbed, f"{disturbed}-weights/digits.safetensors"])
    weights = f"--weights={disturbed}-weights/digits.safetensors"
    assert predict.main([weights, str(tmp_path / "zero.png")]) == 0
    first, _, second = capsys.readouterr().out.splitlines()
    assert first == second
    out = f"{disturbed}-report"
    assert report.main([disturbed, f"--out={out}", "--count=100"]) == 0
    assert b"<!doctype html>" in storage.read(storage.path(out) / "report.html")
    with pytest.raises(SystemExit) as ended:
        main.main([f"--workdir={disturbed}", "--eval_only", "--checkpoint=best"])
    assert ended.value.code == 0
    assert re.search(r"step \d+ .*acc=", capsys.readouterr().out)
    assert not [fault for fault in store.faults if fault.times]


def refused(capsys, workdir):
    """The one line with which the program ends, before anything is compiled."""
    with pytest.raises(SystemExit) as ended:
        main.main(["--config=configs/digits.py", f"--workdir={workdir}"])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_bucket_that_cannot_be_used_is_one_line(store, workdir, capsys):
    assert "gs://nowhere: no such bucket; make it" in refused(capsys, "gs://nowhere/run")
    store.faults.append(Fault("status", "POST /upload", 1, 403))
    assert f"{workdir}/.lock: no permission; the account" in refused(capsys, workdir)
    store.faults.append(Fault("status", "GET", 1, 401))
    assert "no credentials (injected, 401); run: gcloud auth" in refused(capsys, workdir)
    assert "s3://a/b: give a local path or gs://BUCKET/PATH" in refused(capsys, "s3://a/b")


def test_without_gcsfs_the_line_says_what_to_install(workdir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    bucket._store_of.cache_clear()
    said = refused(capsys, workdir)
    assert "needs gcsfs" in said
    assert said.endswith("run: pip install 'dnrt_jax[gcs]'")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["before arrays", "before manifest", "in verify", "in sweep"])
def test_a_kill_during_a_save_loses_nothing(whole, run, workdir, stage):
    assert run(f"kill {stage}", workdir)[0] == -signal.SIGKILL
    assert steps(workdir)
    status, errors = run("none", workdir)
    assert status == 0, errors
    assert_same_run(whole, workdir)


@pytest.mark.slow
def test_killed_at_ten_random_moments(whole, start, run, workdir):
    moments = random.Random(1)
    for _ in range(10):
        process = start("none", workdir)
        time.sleep(moments.uniform(0, 14))
        process.kill()
        process.communicate()
    status, errors = run("none", workdir)
    assert status == 0, errors
    assert_same_run(whole, workdir)


@pytest.mark.slow
def test_a_store_that_is_gone_for_20_seconds(whole, store, start, run, workdir):
    process = start("none", workdir)
    while not steps(workdir):
        time.sleep(0.05)
    store.stop()
    time.sleep(20)
    store.start()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same_run(whole, workdir)


@pytest.mark.slow
def test_a_store_that_does_not_come_back_ends_the_run_and_loses_nothing(
    whole, store, start, run, workdir
):
    process = start("none", workdir)
    while not steps(workdir):
        time.sleep(0.05)
    store.stop()
    _, errors = process.communicate(timeout=300)
    store.start()
    assert process.returncode == 1
    assert "the bucket does not answer as it should" in errors_of(errors)[0]
    assert run("none", workdir)[0] == 0
    assert_same_run(whole, workdir)


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_signal_saves(whole, store, start, run, workdir):
    store.faults.append(Fault("slow", "POST /upload.*manifest", 1000, 2))
    process = start("none", workdir)
    while not steps(workdir):
        time.sleep(0.05)
    status, errors = run("none", workdir)
    assert status == 1
    assert f"in use by process {process.pid} on" in errors_of(errors)[0]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    store.faults.clear()
    assert run("none", workdir)[0] == 0
    assert_same_run(whole, workdir)


@pytest.mark.slow
def test_a_run_that_slept_leaves_the_folder_to_who_took_it_over(start, workdir):
    long = "--config.train.steps=400"
    sleeper = start("short lock", workdir, long)
    while not steps(workdir):
        time.sleep(0.05)
    sleeper.send_signal(signal.SIGSTOP)
    time.sleep(4)
    second = start("short lock", workdir, long)
    while json.loads(storage.read(storage.path(workdir) / lock.NAME))["pid"] != second.pid:
        time.sleep(0.05)
        assert second.poll() is None, second.communicate()
    sleeper.send_signal(signal.SIGCONT)
    _, errors = sleeper.communicate(timeout=100)
    assert sleeper.returncode == 1
    assert f"in use by process {second.pid}" in errors_of(errors)[0]
    _, errors = second.communicate(timeout=100)
    assert second.returncode == 0, errors
    assert steps(workdir)[-1] == 400
