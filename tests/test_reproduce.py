"""The tables of the paper: planned, trained on digits, interrupted, continued, printed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ROOT, environment

sys.path.insert(0, str(ROOT))
from scripts import reproduce, reproduce_plan, reproduce_results, reproduce_rows
from scripts.study_results import first_table


def planned(*argv):
    """{"DATASET MODEL CASE": fields} and the paper's numbers by the same names."""
    runs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "_show_plan", lambda made: runs.extend(made) or 0)
        assert reproduce.main([*argv, "--dry_run"]) == 0
    key = lambda run: f"{run.row.dataset} {run.row.model} {run.row.case}"
    return {key(r): r.fields for r in runs}, {key(r): r.row.paper for r in runs}


@pytest.mark.parametrize(
    ("table", "count", "name", "paper"),
    [
        ("table1", 3 * 5 * 8, "cifar100 vit_tiny raa+arr", 71.4),
        ("table2", 3 * 5 * 8, "imagenet100 mobilenet gdn", 73.6),
        ("table3", 3 * 5, "imagenet1k pvt_tiny gelu", 73.5),
        ("table5", 2 * 3 + 3 * 3 * 2, "cifar10_lt50 resnet32 raa+arr", 84.1),
        ("table6", 2 * 6, "cifar100 resnet18 relu+arr", 76.3),
    ],
)
def test_a_plan_is_the_whole_table_of_the_paper(table, count, name, paper):
    fields, numbers = planned(table)
    assert len(fields) == count
    assert numbers[name] == paper


def test_a_case_is_its_activation_with_or_without_arr():
    fields, _ = planned("table6", "--models", "vit_tiny")
    model = {"model.name": "vit_tiny_patch4_32", "seed": 42}
    assert fields["cifar100 vit_tiny gelu"] == model | {"model.act": "gelu", "arr.weight": 0}
    assert fields["cifar100 vit_tiny raa+arr"] == model | {"model.act": "raa"}


def test_the_study_is_that_of_its_own_program(capsys):
    assert reproduce.main(["study", "--only=vit/gelu/none", "--results=none", "--dry_run"]) == 0
    *runs, total = capsys.readouterr().out.splitlines()
    assert runs == [f"vit/gelu/none/0/seed{seed}" for seed in range(5)]
    assert total == "5 runs, about 0.3 hours of one core"


def test_the_first_small_study_is_that_of_its_results():
    rows = json.loads((ROOT / "results" / "study" / "first.json").read_text())
    lines = reproduce_results.markdown(rows).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    page = (ROOT / "docs" / "reproduce.md").read_text()
    for data, _, case, _, last, best, _, seeds in cells:
        assert f"| {data} | {case} | {last} | {best} | {seeds} |" in page
    assert first_table(rows) in page


def test_the_plan_tells_the_time(capsys):
    argv = ["table6", "--models", "vit_tiny", "--acts", "gelu", "--seeds", "0", "1", "--dry_run"]
    assert reproduce.main(argv) == 0
    *runs, total = capsys.readouterr().out.splitlines()
    # 0.366 GMACs x 3 x 2 x 50,000 images x 300 epochs at 150 GFLOP/s
    said = "61 h, in a set of 2"
    assert runs == [f"cifar100 vit_tiny gelu seed {seed}: {said}" for seed in (0, 1)]
    assert total.startswith("2 runs, about 12")


def test_fewer_epochs_keep_the_share_of_warm_up_and_drops():
    """A tenth of 300 epochs with 20 of warm-up; of 200 with one and drops at 60, 120 and 160."""
    fields, _ = planned("table6", "--epochs", "30")
    vit, cnn = fields["cifar100 vit_tiny raa"], fields["cifar100 resnet18 raa"]
    assert vit["train.epochs"] == cnn["train.epochs"] == 30
    assert vit["optim.warmup_epochs"] == pytest.approx(2)
    assert cnn["optim.warmup_epochs"] == pytest.approx(0.15)
    assert cnn["optim.milestones"] == pytest.approx((9, 18, 24))
    assert "optim.milestones" not in vit


def test_fields_of_the_config_are_set_in_every_run_and_steps_change_the_time(capsys):
    argv = ["table6", "--config.model.dtype=bfloat16", "--config.arr.momentum", "0.2"]
    fields, _ = planned(*argv)
    assert {f["model.dtype"] for f in fields.values()} == {"bfloat16"}
    assert {f["arr.momentum"] for f in fields.values()} == {"0.2"}
    assert reproduce.main([*argv, "--steps=1", "--dry_run"]) == 0
    assert "12 runs, about 0.1 hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["table6", "--models", "vit"], "--models vit: choose of vit_tiny, resnet18"),
        (["table5", "--scale=tiny"], "table5: has no --scale=tiny"),
        (["table6", "--config.optim.lrr=1"], "did you mean optim.lr?"),
    ],
)
def test_a_mistake_is_answered(capsys, argv, words):
    with pytest.raises(SystemExit):
        reproduce.main(argv)
    assert words in capsys.readouterr().err


def test_the_table_has_means_deviations_and_the_difference():
    seeds = {str(i): {"step": 9, "last": v, "best": v + 2} for i, v in enumerate((60.0, 62.0))}
    row = {"dataset": "d", "model": "m", "case": "gelu", "paper": 65.4, "seeds": seeds}
    other = row | {"paper": None, "seeds": {}}
    *_, first, second = reproduce_results.markdown([row, other]).splitlines()
    assert first == "| d | m | gelu | 65.4 | 61.0 ± 1.4 | 63.0 ± 1.4 | -4.4 | 2 |"
    assert second == "| d | m | gelu |  | - | - |  | 0 |"


def test_the_seeds_of_a_row_are_one_command_but_of_streamed_images(tmp_path):
    rows = {row.dataset: row for row in reproduce_rows.rows_of("table1", "full")}
    make = lambda row, seed: reproduce_plan.Run(
        row, seed, tmp_path / row.dataset / f"seed{seed}", {}
    )
    runs = [make(rows[name], seed) for seed in (0, 1) for name in ("cifar10", "imagenet100")]
    small, *large = reproduce_plan.sets_of(runs)
    assert [run.seed for run in small] == [0, 1]
    assert [len(runs) for runs in large] == [1, 1]
    command = small[0].command_with(small[1:])
    assert command[-1] == "--seeds=0,1"
    assert f"--workdir={tmp_path / 'cifar10'}" in command


def test_a_part_of_a_table_does_not_erase_another():
    row = lambda case, **seeds: {"dataset": "d", "model": "m", "case": case, "seeds": seeds}
    old = [row("gelu", **{"1": "a", "10": "b"}), row("relu", **{"1": "c"})]
    new = [row("gelu", **{"2": "d", "1": "e"})]
    seeds = {"1": "e", "2": "d", "10": "b"}
    assert reproduce_results.merged(old, new) == [row("gelu", **seeds), row("relu", **{"1": "c"})]
    assert list(reproduce_results.merged(old, new)[0]["seeds"]) == ["1", "2", "10"]


@pytest.mark.slow
def test_ctrl_c_lets_the_run_save(tmp_path):
    """Sent to the whole group of processes, as a terminal does."""
    code = """
import sys
from pathlib import Path
from scripts import reproduce
from types import SimpleNamespace as Run
saves = "from dnrt_jax.train import Stop; import time; stop = Stop().__enter__(); print('runs', "
saves += "flush=True); [time.sleep(.1) for _ in iter(lambda: stop.signal, 15)]; print('saved')"
log = Path(sys.argv[1], "log")
run = Run(result=lambda: None, name="run", log=log, workdir=log, row=Run(dataset="imagenet1k"))
run.command = lambda: [sys.executable, "-c", saves]
reproduce.train([run], print)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, start_new_session=True
    )
    log = tmp_path / "log"
    while not (log.exists() and log.read_text() == "runs\n"):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    assert log.read_text().splitlines()[-1] == "saved"


@pytest.mark.slow
def test_table6_on_digits_from_plan_to_table_through_an_interruption(tmp_path):
    cases = ["gelu", "raa+arr"]
    command = [
        sys.executable,
        "scripts/reproduce.py",
        "table6",
        "--scale=tiny",
        "--seeds=0",
    ]
    command += ["--acts", *cases]
    command += ["--epochs=1", f"--runs={tmp_path}/runs", f"--results={tmp_path}"]
    results = Path(tmp_path, "table6-tiny-1.json")
    options = {"cwd": ROOT, "env": environment(), "text": True}

    def finished():
        rows = json.loads(results.read_text() or "[]") if results.exists() else []
        return [row["case"] for row in rows if row["seeds"]]

    process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    while not finished():
        assert process.poll() is None
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    before = finished()
    assert len(before) == 1
    first = next(Path(tmp_path).rglob("summary.json"))
    written = first.stat().st_mtime_ns

    done = subprocess.run(command, capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == written
    header, _, *lines = done.stdout.splitlines()
    assert header.startswith("| data | model | case | paper |")
    assert [line.split(" | ")[2] for line in lines] == cases == finished()
    assert done.stderr.count("[") == 1


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    ran = []

    def command(run):
        ran.append(run.row.case)
        good = run.row.case != "gelu"
        code = "from pathlib import Path; p = Path(r'{}'); p.mkdir(); "
        code += "(p / 'summary.json').write_text('{}')"
        summary = '{"step": 1, "best": {"test/acc": 0.5}, "last": {"test/acc": 0.25}}'
        bad = "import sys; sys.exit('error: out of luck')"
        return [sys.executable, "-c", code.format(run.workdir, summary) if good else bad]

    monkeypatch.setattr(reproduce_plan.Run, "command", command)
    argv = ["table6", "--scale=tiny", f"--runs={tmp_path}/runs", f"--results={tmp_path}"]
    assert reproduce.main([*argv, "--acts", "relu", "gelu", "raa"]) == 1
    out, err = capsys.readouterr()
    assert ran == ["relu", "gelu", "raa"]
    assert "failed: digits vit gelu seed 42: error: out of luck" in err
    assert "| raa |  | 25.0 | 50.0 |" in out
