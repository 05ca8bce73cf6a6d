"""What a run starts from and ends with, on a task and a model of a few numbers."""

import json
import shutil
from pathlib import Path

import pytest
from runs import here
from tiny import Tiny, get_config

from dnrt_jax import experiment
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.workdir import read_records

CONFIG = f"--config={Path(__file__).parent}/tiny.py"
FLAGS = ["train.steps=8", "train.log_steps=4", "train.eval_steps=8", "train.checkpoint_steps=4"]
FLAGS = [CONFIG, *(f"--config.{flag}" for flag in FLAGS)]
WARMUP = "--config.optim.warmup_steps=1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tiny") / "run"
    done = here(*FLAGS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def stopped(whole, place):
    """The folder of the run as it is when killed after its first checkpoint."""
    folder = shutil.copytree(whole, place)
    shutil.rmtree(folder / "checkpoints" / "8")
    (folder / "summary.json").unlink()
    return folder


def test_a_run_shortened_to_where_it_was_stopped_is_evaluated_there(whole, tmp_path):
    folder = stopped(whole, tmp_path / "run")
    short = [f"--workdir={folder}", "--config.train.steps=4", "--allow_change=train.steps"]
    done = here(*short)
    assert done.returncode == 0, done.stderr
    assert "Finished. Test accuracy" in done.stdout
    last = json.loads((folder / "summary.json").read_text())["last"]
    assert last == read_records(folder)[-1]
    assert last["step"] == 4
    assert {"train/loss", "test/acc"} <= last.keys()
    assert "finished at step 4" in here(*short).stdout


def test_weights_to_start_from_are_of_models_of_images(whole):
    config = get_config()
    config.init_from = str(whole)
    with pytest.raises(ConfigError, match=r"init_from=.*: only for models of images"):
        experiment.initial_state(experiment.load(config))


def refused(*arguments):
    """The last line of a command that is refused, without the folder and the traceback."""
    done = here(*arguments)
    assert done.returncode == 1, done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_run_goes_on_and_is_evaluated_with_the_classes_it_was_trained_on(whole, monkeypatch):
    at = f"--workdir={whole}"
    monkeypatch.setattr(Tiny, "class_names", ("low", "high", "middle"))
    for flags in (["--eval_only"], ["--config.train.steps=9", "--allow_change=train.steps"]):
        line = refused(at, *flags)
        assert "the run has other classes: 1 was 'middle', is 'high'; set config.data" in line
    monkeypatch.setattr(Tiny, "class_names", ("low", "middle", "high", "none"))
    assert "the run has 3 classes, and the data have 4; set" in refused(at, "--eval_only")
    assert json.loads((whole / "classes.json").read_text()) == ["low", "middle", "high"]


def test_clipping_is_not_switched_on_or_off_on_the_way(whole):
    line = refused(f"--workdir={whole}", "--config.optim.clip=0", "--allow_change=optim.clip")
    assert "config.optim.clip was 1, is 0: the state of the optimizer has another form" in line


def test_only_training_names_the_task_of_someone_else_and_warns_of_a_long_warm_up(tmp_path):
    flags = [*FLAGS, f"--workdir={tmp_path}/run", "--config.train.steps=2", WARMUP]
    train, *others = (here(*flags, *more) for more in ([], [], ["--eval_only"]))
    assert "tiny:Tiny: 48 training samples of 3 classes" in train.stdout
    assert "the warm-up takes 1 of 2 steps" in train.stderr
    assert [done.stderr for done in others] == ["", ""]
