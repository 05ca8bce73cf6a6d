"""The study: its plan, its statistics, its runs on a tiny archive, its page held to its results."""

import itertools
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from making import data_of_the_tables
from runs import ROOT, environment

from dnrt_jax.config import validate
from dnrt_jax.config_file import load

sys.path.insert(0, str(ROOT))
from scripts import reproduce_results, study, study_figures
from scripts.study_plan import CASES, Run, candidates, chosen, needed, read, run_of
from scripts.study_results import first_table, summarize, tables

SMALL = ["train.steps=1", "train.batch_size=8", "eval.batch_size=8"]
SMALL = [f"--config.{field}" for field in SMALL]
T_95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179]
T_95 = dict(enumerate([*T_95, 2.160, 2.145], 2))  # by the number of values, of a printed table


def made(run, rng):
    """A line of the results with random figures."""
    row = {"run": run._asdict()}
    if run.valid:
        return row | {"valid": {"acc": rng.uniform(0.5, 0.6), "loss_ce": 1.2}}
    epochs = [{"epoch": 4.0 * i, "acc": rng.uniform(0.5, 0.6), "loss_ce": 1.3} for i in (1, 2)]
    for at in epochs if run.case != "none" else ():
        at |= {name: rng.uniform(1, 2, 4).tolist() for name in ("norm", "ratio")}
    layers = {name: rng.uniform(1, 2, 4).tolist() for name in ("norm", "within", "between")}
    return row | {"epochs": epochs, "train": {"loss_ce": 0.9}, "layers": layers}


@pytest.fixture(scope="module")
def whole():
    """Made-up results of the whole study."""
    rng, rows = np.random.default_rng(0), []
    while todo := set(needed(rows)) - set(map(run_of, rows)):
        rows += [made(run, rng) for run in sorted(todo)]
    return rows


def test_every_case_gets_its_lambda_before_its_test_runs(whole):
    assert {run.case for run in needed([]) if not run.valid} == {"none"}
    runs = set(map(run_of, whole))
    tests = {run for run in runs if not run.valid}
    assert len(tests) == 3 * (3 * 5 + 3 * 3) + 2 * 3 + 3 * 3 + 3 * 3
    assert {run.case for run in tests if run.setting == "vit"} == set(CASES)
    for run in tests:
        assert run.weight == chosen(whole, run.setting, run.act, run.case), run.name
    assert not {run.seed for run in runs - tests} & {run.seed for run in tests}


@pytest.mark.parametrize(
    ("accuracies", "tried"),
    [
        ({}, (3, 10, 30)),
        ({3: 0.5, 10: 0.6}, (3, 10, 30)),
        ({3: 0.5, 10: 0.6, 30: 0.5}, (3, 10, 30)),
        ({3: 0.6, 10: 0.5, 30: 0.5}, (3, 10, 30, 1)),
        ({3: 0.5, 10: 0.5, 30: 0.6, 100: 0.7}, (3, 10, 30, 100)),
        ({3: 0.6, 10: 0.6, 30: 0.5}, (3, 10, 30, 1)),  # the smaller, if equal
    ],
)
def test_a_lambda_beyond_the_best_is_tried_at_the_edge_only(accuracies, tried):
    assert candidates("updated", accuracies) == tried
    scaled = {weight / 100: value for weight, value in accuracies.items()}
    if not accuracies:
        assert candidates("unit", scaled) == (0.1, 0.3, 1)


def test_runs_that_choose_a_lambda_keep_nothing_of_the_test_split(tmp_path):
    record = {"step": 1, "valid/acc": 0.5, "valid/loss_ce": 1.0, "test/acc": 0.9}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert study.result(tmp_path, valid=True) == {"valid": {"acc": 0.5, "loss_ce": 1.0}}


def test_a_layer_whose_class_means_are_one_keeps_its_place():
    record = {"epoch": 1.0, "test/acc": 0.1, "test/loss_ce": 2.3}
    record |= {f"test/responses/{layer}/norm": 0.5 for layer in "ab"}
    kept = study._epoch(record | {"test/responses/b/ratio": 3.0})
    assert (kept["norm"], kept["ratio"]) == ([0.5, 0.5], [None, 3.0])


@pytest.mark.parametrize("run", [*dict.fromkeys(needed([])), Run("vit", "raa", "unit", 0.3, 0)])
def test_a_run_is_a_valid_config_of_its_case(run):
    fields = {name: str(value) for name, value in run.fields().items()}
    config = load(f"configs/study.py:{run.setting}", fields)
    validate(config)
    target = "updated" if run.case in ("none", "unit") else run.case
    assert (config.arr.target, config.arr.normalize == "unit") == (target, run.case == "unit")
    assert (config.arr.weight > 0) == (run.case != "none")
    held = 0.2 if run.setting == "40k" else 0.25 * run.valid
    assert config.data.valid_fraction == held


def brute(values):
    """Mean, t-interval by a printed quantile, and p over all signs."""
    mean, n = statistics.fmean(values), len(values)
    half = T_95[n] * statistics.stdev(values) / math.sqrt(n)
    flipped = [np.dot(signs, values) / n for signs in itertools.product((-1, 1), repeat=n)]
    return mean, (mean - half, mean + half), np.mean(np.abs(flipped) >= abs(mean) - 1e-12)


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_intervals_and_p_values_equal_those_by_hand(n):
    values = np.random.default_rng(n).normal(0.3, 1, n).tolist()
    mean, interval, p = brute(values)
    found = summarize(values)
    assert found.mean == pytest.approx(mean)
    assert found.interval == pytest.approx(interval, abs=2e-3)
    assert found.p == pytest.approx(p)
    assert summarize([2.0]) == (2.0, None, None, 1)
    assert summarize([1.0, 1.5, 0.7, 2.0, 1.1]).p == 2 / 32  # the smallest that five can give


def check_comparisons(rows, text):
    """Recomputes the tables of differences in `text` from the results; the number of lines."""
    acc = {}
    for row in rows:
        run = run_of(row)
        if not run.valid:
            acc[run.setting, run.act, run.case, run.seed] = 100 * row["epochs"][-1]["acc"]
    pattern = r"\| (\S+) \| (\S+) - (\S+) \| (\S+) \| (\S+) \| (.*?) \| (.*?) \| (\d+) \|"
    lines = re.findall(pattern, text)
    for setting, one, other, which, points, interval, p, n in lines:
        if one in CASES:
            acts = ("relu", "gelu", "raa") if which == "all" else (which,)
            pairs = [((act, one), (act, other)) for act in acts]
        else:
            pairs = [((one, which), (other, which))]
        values = [
            acc[setting, *a, seed] - acc[setting, *b, seed]
            for a, b in pairs
            for seed in range(5)
            if {(setting, *a, seed), (setting, *b, seed)} <= acc.keys()
        ]
        assert len(values) == int(n)
        if n == "1":
            assert (float(points), interval, p) == (pytest.approx(values[0], abs=0.006), "", "")
            continue
        mean, bounds, share = brute(values)
        assert float(points) == pytest.approx(mean, abs=0.006)
        assert [float(x) for x in interval.split(" to ")] == pytest.approx(bounds, abs=0.02)
        assert float(p) == pytest.approx(share, rel=0.06)
    return len(lines)


def test_the_comparisons_of_a_whole_study_are_paired_by_seed(whole):
    # 7 pairs of cases, three activations and all; 2 of activations by 6 cases; 3 + 3 + 1 elsewhere
    assert check_comparisons(whole, tables(whole)) == 7 * 4 + 2 * 6 + 3 + 3 + 1


def page():
    return (ROOT / "docs" / "study.md").read_text()


def test_the_page_has_the_tables_of_the_committed_results():
    rows = read(study.RESULTS)
    assert rows
    for table in tables(rows).split("\n\n"):
        assert table in page()
    check_comparisons(rows, page())


def test_the_page_shows_the_figures_of_the_committed_results():
    drawn = set(study_figures.figures(read(study.RESULTS)))
    assert {path.stem for path in (ROOT / "docs/figures").glob("study_*.png")} == drawn
    assert set(re.findall(r"\(figures/(study_\w+)\.png\)", page())) == drawn


def numbers(text):
    """Numbers with a decimal point, and sign if one is written, outside tables and code."""
    text = re.sub(r"^\|.*$|`[^`]*`", "", text, flags=re.MULTILINE)
    return re.findall(r"(?<![\w.])[-+]?\d+\.\d+", text)


def committed():
    """Every number of the tables, of the paper, and the ratios of the benchmarks."""
    first = json.loads(study.FIRST.read_text())
    found = tables(read(study.RESULTS)) + first_table(first) + reproduce_results.markdown(first)
    found += (ROOT / "results/paper/tables.json").read_text()
    lines = (ROOT / "results/performance.jsonl").read_text().splitlines()
    ratios = [json.loads(line)["ratio"] for line in lines]
    found += " ".join(f"{ratio:.2f}" for ratio in ratios if ratio)
    return set(re.findall(r"[-+]?\d+\.\d+", found))


@pytest.mark.parametrize("name", ["study", "guide"])
def test_the_text_has_no_number_that_is_not_among_the_results(name):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    told = numbers(text.partition("## Results")[2] if name == "study" else text)
    assert not set(told) - committed()


def test_a_number_of_no_result_is_found():
    assert numbers("by +1.25 (p = 0.063), 3 seeds\n| 7.1 |\n`0.5` v0.4") == ["+1.25", "0.063"]
    assert not {"+99.99", "0.0001"} & committed()


def test_the_figures_show_the_results(whole):
    drawn = study_figures.figures(whole)
    assert set(drawn) == {"study_accuracy", "study_spread", "study_norms"}
    (axes,) = drawn["study_accuracy"].axes
    shown = sorted(
        y for line in axes.lines if line.get_marker() == "." for y in np.asarray(line.get_ydata())
    )
    tests = [row for row in whole if row["run"]["setting"] == "vit" and not row["run"]["valid"]]
    assert shown == pytest.approx(sorted(100 * row["epochs"][-1]["acc"] for row in tests))
    of_relu = drawn["study_spread"].axes[0].lines
    assert [line.get_label() for line in of_relu] == list(CASES)
    none = [row["layers"] for row in tests if row["run"]["act"] + row["run"]["case"] == "relunone"]
    ratios = np.mean([np.divide(x["within"], x["between"]) for x in none], axis=0)
    np.testing.assert_allclose(np.asarray(of_relu[0].get_ydata()), ratios)
    assert len(drawn["study_norms"].axes[2].lines) == len(CASES)


def test_the_study_takes_the_first_2000_of_each_class(tmp_path):
    with tarfile.open(tmp_path / "cifar10-jpeg.tar.xz", "w:xz") as archive:
        for name in ("cat/1999.jpg", "cat/2000.jpg", "cat/._1999.jpg", ".DS_Store"):
            archive.addfile(tarfile.TarInfo(f"train/{name}"))
        archive.addfile(tarfile.TarInfo("test/cat/2000.jpg"))
    study.make_data(tmp_path)
    with tarfile.open(tmp_path / "cifar10-jpeg-20k.tar") as subset:
        names = subset.getnames()
    assert names == ["train/cat/1999.jpg", "test/cat/2000.jpg"]
    with pytest.raises(FileNotFoundError, match=r"cifar10-jpeg\.tar\.xz"):
        study.make_data(tmp_path / "elsewhere")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_of_the_tables(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "valid-vit/gelu/updated/10/seed5",
        "vit/raa/none/0/seed0",
        "long/relu/none/0/seed0",
        "40k/gelu/none/0/seed0",
        "valid-cnn/relu/zero/10/seed5",
        "cnn/relu/none/0/seed0",
    ],
)
def test_a_run_of_the_study_trains_from_an_archive_as_tar_makes_it(tmp_path, data, name):
    program = "scripts/reproduce.py study" if name.startswith("valid-vit") else "scripts/study.py"
    places = [f"--runs={tmp_path}/runs", f"--results={tmp_path}/results.jsonl"]
    done = subprocess.run(
        [sys.executable, *program.split(), f"--only={name}", *places, *SMALL],
        cwd=ROOT,
        env=environment() | {"DATA_DIR": str(data)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (row,) = read(tmp_path / "results.jsonl")
    run = run_of(row)
    assert run.name == name
    assert ("valid" in row) == run.valid
    if not run.valid:
        assert 0 <= row["epochs"][-1]["acc"] <= 1
        assert all(len(values) > 2 for values in row["layers"].values())
    assert (Path(tmp_path) / "runs" / name / "summary.json").exists()


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def command(self, run):
        folder = tmp_path / "runs" / run.name
        code = "import sys; sys.exit('error: out of luck')"
        if run.weight != 10:
            code = f"from pathlib import Path; p = Path({str(folder)!r}); p.mkdir(); "
            code += "(p / 'summary.json').write_text('')"
        return [sys.executable, "-c", code]

    monkeypatch.setattr(study.Study, "command", command)
    monkeypatch.setattr(study, "result", lambda _, valid: {"valid": {"acc": 0.5}})
    monkeypatch.setattr(study, "make_data", lambda folder: None)
    argv = [f"--runs={tmp_path}/runs", f"--results={tmp_path}/new/results.jsonl", "--jobs=2"]
    assert study.main([*argv, "--only=valid-vit/gelu/updated"]) == 1
    said = capsys.readouterr().err
    assert "failed: valid-vit/gelu/updated/10/seed5: error: out of luck" in said
    runs = {run_of(row).weight for row in read(tmp_path / "new" / "results.jsonl")}
    assert runs == {3, 30}


def test_an_interrupted_study_ends_its_runs_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def command(self, run):
        marker = tmp_path / f"{run.weight}.started"
        code = f"import pathlib, time; pathlib.Path({str(marker)!r}).touch(); time.sleep(60)"
        return [sys.executable, "-c", code]

    def interrupt():
        while len(list(tmp_path.glob("*.started"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(study.Study, "command", command)
    monkeypatch.setattr(study, "make_data", lambda folder: None)
    before, start = signal.getsignal(signal.SIGTERM), time.monotonic()
    threading.Thread(target=interrupt).start()
    argv = [f"--runs={tmp_path}/runs", f"--results={tmp_path}/results.jsonl", "--jobs=2"]
    try:
        assert study.main(argv) == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - start < 30
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()
