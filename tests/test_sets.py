"""Sets of runs as a person starts them: folders, summaries, kills, members added, members lost."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import ROOT, assert_same_run, command, environment, program, run

from dnrt_jax.runtime.statistics import describe

SEEDS = "--seeds=0,1,42"
MEMBERS = ["seed0", "seed1", "seed42"]
TOGETHER = "--config.parallel.members=together"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(flag) -> the folder of a set that nothing happens to, one after the other or, with
    TOGETHER, at once; and what the program said."""
    found = {}

    def get(*flags):
        if flags not in found:
            workdir = tmp_path_factory.mktemp("sets") / "set"
            done = run(workdir, SEEDS, *flags)
            assert done.returncode == 0, done.stderr
            found[flags] = workdir, done
        return found[flags]

    return get


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_member_is_a_run_like_any_other(whole, finished):
    (own, _), (folder, _) = finished, whole()
    assert_same_run(own, folder / "seed42")
    names = lambda path: {p.name for p in path.iterdir() if not p.name.startswith("events")}
    assert names(folder / "seed42") == names(own)
    config = lambda path: json.loads((path / "config.json").read_text())
    assert config(folder / "seed42") == config(own)


def test_a_set_says_mean_deviation_and_interval(whole):
    folder, done = whole()
    accuracy = [records_of(folder / member)[-1]["test/acc"] for member in MEMBERS]
    mean, deviation = np.mean(accuracy), np.std(accuracy, ddof=1)
    (about,) = json.loads((folder / "summary.json").read_text())["settings"]
    assert (about["members"], about["unfinished"]) == (MEMBERS, [])
    found = about["last"]["test/acc"]
    assert (found["n"], found["mean"]) == (3, pytest.approx(mean))
    assert found["deviation"] == pytest.approx(deviation)
    # 4.303 is the 97.5% quantile of Student's t with two degrees of freedom
    half = 4.303 * deviation / np.sqrt(3)
    assert found["interval"] == pytest.approx([mean - half, mean + half], rel=1e-3)
    assert f"test accuracy {mean:.4f} ± {deviation:.4f} over 3 runs" in done.stdout
    assert re.search(r"step 44 \|.* test acc 0\.\d+ ± 0\.\d+", done.stderr)
    means = records_of(folder)
    assert [r["step"] for r in means] == [r["step"] for r in records_of(folder / "seed0")]
    assert means[-1]["test/acc"] == pytest.approx(mean)
    assert means[-1]["deviation/test/acc"] == pytest.approx(deviation)
    assert len(list(folder.glob("events*"))) == 1


def test_the_table_of_the_digits_is_of_the_committed_accuracies():
    page = (ROOT / "docs" / "sets.md").read_text()
    for case, accuracies in json.loads((ROOT / "results" / "digits.json").read_text()).items():
        found = describe([100 * accuracy for accuracy in accuracies])
        interval = "{:.2f} to {:.2f}".format(*found["interval"])
        assert f"| {case} | {found['mean']:.2f} | {found['deviation']:.2f} | {interval} |" in page


@pytest.mark.slow
def test_members_at_once_are_close_to_members_in_turn(whole):
    (turn, _), (at_once, _) = whole(), whole(TOGETHER)
    for member in MEMBERS:
        one, other = (records_of(folder / member) for folder in (turn, at_once))
        for a, b in zip(one, other, strict=True):
            if a["step"] <= 20 and "train/loss" in a:
                assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-5)


@pytest.mark.slow
def test_one_member_diverges_and_the_others_go_on(tmp_path):
    flags = ["--sweep=optim.lr=1e30,3e-3", "--config.optim.clip=0", "--config.train.steps=12"]
    flags += ["--config.optim.warmup_steps=2", "--config.train.eval_steps=100"]
    done = run(tmp_path / "set", *flags)
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"lr=1e\+30,seed=42: \w+ is not finite at step \d+", error)
    (lost, good) = json.loads((tmp_path / "set" / "summary.json").read_text())["settings"]
    assert (lost["setting"], lost["unfinished"]) == ("lr=1e+30", ["lr=1e+30,seed=42"])
    assert good["last"]["step"]["mean"] == 12
    assert not (tmp_path / "set" / "lr=1e+30,seed=42" / "summary.json").exists()
    evaluated = program(f"--workdir={tmp_path / 'set'}", "--eval_only")
    assert evaluated.stdout.startswith("lr=0.003,seed=42 step 12 "), evaluated.stderr
    assert "lr=1e+30,seed=42: no checkpoint to evaluate" in evaluated.stderr
    shown = subprocess.run(
        [sys.executable, "-m", "dnrt_jax.report", tmp_path / "set", f"--out={tmp_path}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert "lr=1e+30,seed=42: nothing was evaluated yet; left out" in shown.stderr


def start(*arguments):
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_records(process):
    for line in process.stderr:
        if line.startswith("step "):
            return


def assert_same_set(one, other):
    for member in MEMBERS:
        assert_same_run(one / member, other / member)
    timeless = lambda record: {k: v for k, v in record.items() if "images_per_sec" not in k}
    assert list(map(timeless, records_of(one))) == list(map(timeless, records_of(other)))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], [TOGETHER], [TOGETHER, "--config.train.dispatch=scan"]])
def test_a_set_killed_and_stopped_ends_as_if_it_never_was(whole, tmp_path, flags):
    folder = tmp_path / "set"
    process = start(folder, SEEDS, *flags)
    wait_for_records(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start(folder, SEEDS, *flags)
    wait_for_records(process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode in (128 + signal.SIGTERM, 0)
    done = program(f"--workdir={folder}", *flags)  # the folder knows its members
    assert done.returncode == 0, done.stderr
    assert_same_set(whole(*flags)[0], folder)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], [TOGETHER]])
def test_killed_at_twenty_random_moments_every_member_ends_as_if_never_killed(
    whole, tmp_path, flags
):
    moments = random.Random(1)
    for _ in range(20):
        process = start(tmp_path / "set", SEEDS, *flags)
        time.sleep(moments.uniform(0, 14))
        process.kill()
        process.communicate()
    assert run(tmp_path / "set", SEEDS, *flags).returncode == 0
    assert_same_set(whole(*flags)[0], tmp_path / "set")


@pytest.mark.slow
def test_a_member_of_a_stopped_set_goes_on_by_itself(whole, tmp_path):
    process = start(tmp_path / "set", SEEDS)
    wait_for_records(process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    member = tmp_path / "set" / "seed1"
    assert program(f"--workdir={member}").returncode == 0
    assert_same_run(whole()[0] / "seed1", member)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], [TOGETHER]])
def test_members_are_added_to_a_finished_set(whole, tmp_path, flags):
    folder = tmp_path / "set"
    shutil.copytree(whole(*flags)[0], folder)
    written = (folder / "seed1" / "checkpoints" / "44" / "manifest.json").stat().st_mtime_ns
    done = run(folder, f"{SEEDS},3", *flags)
    assert done.returncode == 0, done.stderr
    assert (folder / "seed1" / "checkpoints" / "44" / "manifest.json").stat().st_mtime_ns == written
    (about,) = json.loads((folder / "summary.json").read_text())["settings"]
    assert about["last"]["test/acc"]["n"] == 4
    assert [r["step"] for r in records_of(folder)] == [
        r["step"] for r in records_of(folder / "seed3")
    ]
    done = program(f"--workdir={folder}", "--eval_only")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*MEMBERS, "seed3"]


@pytest.mark.slow
def test_a_set_without_arr_in_some_members_trains_each_program(tmp_path):
    folder = tmp_path / "set"
    done = run(folder, "--seeds=0,1", "--sweep=arr.weight=0,5", TOGETHER)
    assert done.returncode == 0, done.stderr
    off, on = json.loads((folder / "summary.json").read_text())["settings"]
    assert off["members"] == ["arr.weight=0,seed=0", "arr.weight=0,seed=1"]
    assert "test/loss_arr" in on["last"]
    assert "test/loss_arr" not in off["last"]
    assert records_of(folder / "arr.weight=5")[-1]["step"] == 44
    assert run(tmp_path / "own", "--config.arr.weight=0", "--config.seed=1").returncode == 0
    own, member = records_of(tmp_path / "own"), records_of(folder / "arr.weight=0,seed=1")
    assert member[1]["train/loss"] == pytest.approx(own[1]["train/loss"], rel=1e-5)
