"""Early end, profile, trackers, moving average and the rest of what people switch on every day."""

import json
import random
import shutil
import sys
from types import SimpleNamespace

import pytest
from runs import arguments, assert_same_run, here, run
from test_main import killed_at

from dnrt_jax.config import default
from dnrt_jax.runtime import trackers
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.workdir import read_records


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """(workdir, logged): a run whose weights never move, so that no evaluation is better than the
    first, with a profile; and what a package `wandb` got from it."""
    logged = []

    def init(**options):
        assert (options["resume"], options["reinit"]) == ("allow", "create_new")
        assert options["config"]["train"]["tracker"] == "wandb"
        log = lambda values, step: logged.append((step, values))
        return SimpleNamespace(log=log, finish=lambda: logged.append("finished"))

    workdir = tmp_path_factory.mktemp("still") / "run"
    flags = ["--config.optim.lr=1e-30", "--config.optim.warmup_lr=0", "--config.optim.min_lr=0"]
    flags += ["--config.train.patience=1", "--config.train.tracker=wandb", "--profile=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
        done = here(*arguments(workdir, *flags))
    assert done.returncode == 0, done.stderr
    return workdir, logged


def test_a_run_ends_when_evaluations_get_no_better(still):
    workdir, _ = still
    summary = json.loads((workdir / "summary.json").read_text())
    assert (summary["step"], summary["ended_early"]) == (20, True)  # it is evaluated every 10
    flags = ["--config.train.tracker=none"]
    assert "finished at step 20" in here(f"--workdir={workdir}", *flags).stdout


@pytest.mark.slow
def test_a_run_that_ended_early_goes_on_without_patience(still, tmp_path):
    workdir = shutil.copytree(still[0], tmp_path / "run")
    flags = ["--config.train.tracker=none", "--config.train.patience=0"]
    done = here(f"--workdir={workdir}", *flags)
    assert done.returncode == 0, done.stderr
    assert "ended_early" not in (workdir / "summary.json").read_text()
    assert read_records(workdir)[-1]["step"] == 44


def test_a_profile_is_where_it_is_said_to_be(still):
    assert list((still[0] / "profile").rglob("*.xplane.pb"))


def test_a_tracker_gets_every_record(still):
    workdir, (*logged, last) = still
    records = [r for r in read_records(workdir) if r["step"] <= 20]
    assert [step for step, _ in logged] == [r["step"] for r in records]
    for (_, values), record in zip(logged, records, strict=True):
        assert values["train/loss"] == record["train/loss"]
    assert last == "finished"


def test_mlflow_goes_on_in_the_run_of_the_same_folder(monkeypatch, tmp_path):
    calls, made = [], []  # runs as MLflow's client has them

    def create_run(place, run_name, tags):
        made.append(SimpleNamespace(info=SimpleNamespace(run_id=run_name), tags=tags))
        return made[-1]

    def search_runs(places, text):
        return [run for run in made if text == f"tags.run = '{run.tags['run']}'"]

    note = lambda name: lambda *args, **options: calls.append((name, *args, options))
    client = SimpleNamespace(create_run=create_run, search_runs=search_runs)
    client.update_run, client.set_terminated = note("update_run"), note("set_terminated")
    fake = SimpleNamespace(MlflowClient=lambda: client, log_params=note("log_params"))
    fake.log_metrics = note("log_metrics")
    fake.set_experiment = lambda name: SimpleNamespace(experiment_id="1")
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    config = default()
    config.train.tracker = "mlflow"
    one, other = (trackers.open_tracker(config, tmp_path / name) for name in ("seed0", "seed1"))
    assert one
    assert other
    one.log({"step": 3, "train/loss": 0.5, "train/utilization": None})
    other.close()
    trackers.open_tracker(config, tmp_path / "seed0")
    assert [run.info.run_id for run in made] == ["seed0", "seed1"]
    assert [call[0] for call in calls[:2]] == ["log_params"] * 2
    assert calls[2:] == [
        ("log_metrics", {"train/loss": 0.5}, {"step": 3, "run_id": "seed0"}),
        ("set_terminated", "seed1", {}),
        ("update_run", "seed0", {"status": "RUNNING"}),
    ]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_answered(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    config = default()
    config.train.tracker = name
    with pytest.raises(ConfigError, match=f"needs {name}; run: pip install {name}"):
        trackers.open_tracker(config, tmp_path)


EVERYTHING = ["train.ema=0.9", "train.remat=true", "optim.layer_decay=0.8", "eval.flip=true"]
EVERYTHING += ["optim.no_decay=scale|bias", "optim.name=lion"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [*([flag] for flag in EVERYTHING), EVERYTHING])
def test_with_any_of_them_a_killed_run_ends_as_if_never_killed(tmp_path, flags):
    flags = [f"--config.{flag}" for flag in flags]
    assert run(tmp_path / "whole", *flags).returncode == 0
    killed_at(tmp_path / "killed", random.Random(0).uniform(0, 0.5), *flags)
    assert run(tmp_path / "killed", *flags).returncode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
