"""What a run starts from and ends with, on a task and a model of a few numbers."""

import json
import shutil
from pathlib import Path

import pytest
from runs import here
from tiny import get_config

from dnrt_jax import experiment
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.workdir import read_records

CONFIG = f"--config={Path(__file__).parent}/tiny.py"
FLAGS = ["train.steps=8", "train.log_steps=4", "train.eval_steps=8", "train.checkpoint_steps=4"]
FLAGS = [CONFIG, *(f"--config.{flag}" for flag in FLAGS)]


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
