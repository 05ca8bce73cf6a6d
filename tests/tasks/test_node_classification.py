"""The program on a graph: the loop, the records and the folder of a run are those of images."""

import gc
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from runs import ROOT, environment, here, load_arrays

from dnrt_jax import config_file, experiment, sets
from dnrt_jax.config import replaced
from dnrt_jax.data import graphs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """DATA_DIR with a graph of 300 nodes in the layout of DGraph-Fin."""
    folder = tmp_path_factory.mktemp("graphs")
    np.savez(folder / "cora.npz", **graphs.synthetic(300, 600, normal=150, fraud=90))
    return folder


def program(folder, *arguments, config="configs/cora.py"):
    command = [sys.executable, "-m", "dnrt_jax.main", f"--config={config}"]
    return subprocess.run(
        [*command, "--config.model.embed_dim=8", *arguments],
        cwd=ROOT,
        env=environment() | {"DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
    )


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for record in found:
        record.pop("train/images_per_sec", None)
    return found


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = program(folder, f"--workdir={workdir}", "--config.train.steps=30")
    assert done.returncode == 0, done.stderr
    return workdir


def test_the_best_epoch_in_validation_picks_the_test_figure(whole):
    best = json.loads((whole / "summary.json").read_text())["best"]
    evaluated = [r for r in records(whole) if "valid/acc" in r]
    assert len(evaluated) == 30
    chosen = max(evaluated, key=lambda r: r["valid/acc"])  # the first of them
    assert (best["step"], best["test/acc"]) == (chosen["step"], chosen["test/acc"])
    assert (whole / "checkpoints" / str(best["step"])).is_dir()
    assert evaluated[-1]["train/loss_arr"] > 0


@pytest.mark.slow
def test_a_continued_run_ends_as_one_that_never_stopped(folder, whole, tmp_path):
    first = program(folder, f"--workdir={tmp_path}/run", "--config.train.steps=13")
    assert first.returncode == 0, first.stderr
    flags = ("--config.train.steps=30", "--allow_change=train.steps")
    then = program(folder, f"--workdir={tmp_path}/run", *flags)
    assert then.returncode == 0, then.stderr
    ours, theirs = (load_arrays(run / "checkpoints" / "30") for run in (tmp_path / "run", whole))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert records(tmp_path / "run")[-1]["test/loss_ce"] == records(whole)[-1]["test/loss_ce"]


@pytest.mark.slow
def test_sampled_neighbourhoods_train_by_the_batch(folder, tmp_path):
    flags = ["--config.data.fanout=(3,2)", "--config.train.batch_size=50"]
    flags += ["--config.train.epochs=2", f"--workdir={tmp_path}/run"]
    done = program(folder, *flags, config="configs/cora.py:graphsage")
    assert done.returncode == 0, done.stderr
    last = records(tmp_path / "run")[-1]
    assert last["step"] == 8  # 168 training nodes, 50 a batch
    assert np.isfinite(last["test/loss_ce"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["name"] == "graphsage"


def test_runs_of_a_set_share_a_copy_of_the_graph_and_the_evaluation(folder):
    config = config_file.load(f"{ROOT}/configs/cora.py", {"data.dir": str(folder)})
    experiments = sets.load_all([replaced(config, {"seed": seed}) for seed in (0, 1, 2)])
    shape = experiments[0].task.graph.features.shape
    copies = lambda: [x.shape for x in jax.live_arrays()].count(shape)
    gc.collect()
    before = copies()
    held = experiment.dispatches(experiments)
    evaluators = {one.task.evaluator(one.model, one.mesh) for one in experiments}
    assert len(evaluators) == 1
    for dispatch, one in zip(held, experiments, strict=True):
        dispatch.run(one.create(), 0, 1)
    assert copies() - before == 1


MISTAKES = {
    "a field of images": (["--config.data.flip=0.5"], "config.data.flip: no such field"),
    "sampling for GCN": (["--config.data.fanout=(3,2)"], "gcn needs all of a node's neighbours"),
    "no such file": (["--config.data.name=pubmed"], "pubmed.npz: no such file"),
    "steps in a loop": (["--config.train.dispatch=scan"], "dispatch='scan': not for graphs"),
    "parts of a graph": (["--config.train.accumulate=2"], "accumulate=2: not for graphs"),
}


@pytest.mark.parametrize(("flags", "answer"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(folder, tmp_path, monkeypatch, flags, answer):
    monkeypatch.setenv("DATA_DIR", str(folder))
    refused = here("--config=configs/cora.py", f"--workdir={tmp_path}/run", *flags)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert answer in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["convert", "predict", "preview"])
def test_programs_for_images_say_so(folder, whole, tmp_path, monkeypatch, module):
    arguments = {
        "convert": [str(whole), f"{tmp_path}/out.safetensors"],
        "predict": [f"--workdir={whole}", f"{tmp_path}/image.png"],
        "preview": ["--config=configs/cora.py", f"--out={tmp_path}/out.png"],
    }[module]
    monkeypatch.setenv("DATA_DIR", str(folder))
    refused = here(*arguments, module=module)
    assert refused.returncode == 1
    assert "no images" in refused.stderr
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert not any(tmp_path.iterdir())
