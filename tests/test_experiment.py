"""What a run starts from and ends with, on a task and a model of a few numbers."""

import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from runs import here
from tiny import Tiny, get_config

from dnrt_jax import experiment, record
from dnrt_jax.config import replaced
from dnrt_jax.runtime.errors import ConfigError, DataError, ModelError
from dnrt_jax.runtime.sharding import make_mesh
from dnrt_jax.runtime.workdir import read_records
from dnrt_jax.tasks.arrays import Arrays

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


class Own(nn.Module):
    """A mistake in a model of someone else."""

    num_classes: int
    act: str = "raa"

    def logits(self, x):
        record(self, x)
        return nn.Dense(self.num_classes)(x)


class Wide(Own):
    @nn.compact
    def __call__(self, x, train=False):
        record(self, x)
        return nn.Dense(self.num_classes + 1)(x)


class Pair(Own):
    @nn.compact
    def __call__(self, x, train=False):
        return self.logits(x), x


class NoTrain(Own):
    @nn.compact
    def __call__(self, x):
        return self.logits(x)


class Noisy(Own):
    @nn.compact
    def __call__(self, x, train=False):
        x = x + jax.random.normal(self.make_rng("noise"), x.shape) if train else x
        return self.logits(x)


class Broken(Own):
    @nn.compact
    def __call__(self, x, train=False):
        raise ValueError("no such thing\nand more")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Wide, r"^Wide: gives float32\[1, 4\] for one sample, not logits \[1, 3\]"),
        (Pair, r"^Pair: gives a tuple for one sample, not logits \[1, 3\]"),
        (NoTrain, r"NoTrain': TypeError: .* unexpected keyword argument 'train'; with DNRT"),
        (Noisy, r"Noisy': InvalidRngError: .*noise"),
        (Broken, r"Broken': ValueError: no such thing; with DNRT_TRACEBACK=1 the program says"),
    ],
)
def test_a_mistake_in_a_model_of_someone_else_is_one_line(model, said):
    config = get_config()
    config.model.name = f"{__name__}:{model.__name__}"
    with pytest.raises(ModelError, match=said) as error:
        experiment.load(config)
    assert "\n" not in str(error.value)


TASKS = {
    "a batch for other devices": ({"train.batch_size": 12}, "batch_size=12 does not .* 8 devices"),
    "parts for other devices": (
        {"train.batch_size": 24, "train.accumulate": 2},
        "batch_size=24 does not divide over 8 devices x config.train.accumulate=2; try 3?",
    ),
    "a loss that needs counts": ({"loss.name": "balanced_softmax"}, "Tiny has no class_counts"),
}


@pytest.mark.parametrize(("values", "said"), TASKS.values(), ids=TASKS)
def test_what_a_task_of_someone_else_cannot_do_is_one_line(values, said):
    with pytest.raises(ConfigError, match=said):
        experiment.load(replaced(get_config(), values))


def test_a_metric_that_the_task_does_not_report_is_answered_by_the_first_evaluation(tmp_path):
    line = refused(*FLAGS, f"--workdir={tmp_path}/run", "--config.eval.metric=auc")
    assert "config.eval.metric='auc': the task reports only test/acc, test/f1" in line


INPUTS, LABELS = np.zeros((4, 2), np.float32), np.array([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (LABELS[:, None], r"labels: int64\[4, 1\] for 4 samples, not integers \[N\]"),
        (LABELS[:3], r"labels: int64\[3\] for 4 samples"),
        (LABELS * 1.0, r"labels: float64\[4\]"),
        (np.eye(4), r"labels: float64\[4, 4\]"),
        (LABELS.tolist(), "labels: a list, not an array"),
        (LABELS - 1, r"labels: -1 of sample 0 is not in 0\.\.2"),
        (LABELS + np.uint8(1), r"labels: 3 of sample 2 is not in 0\.\.2"),
    ],
)
def test_labels_are_integers_of_the_classes(label, said):
    with pytest.raises(DataError, match=said):
        Arrays(INPUTS, label, 3)


def test_labels_of_any_integers_are_taken_as_int32():
    assert Arrays(INPUTS, LABELS.astype(np.uint8)).label.dtype == np.int32
    with pytest.raises(DataError, match=r"labels: -1 of sample 0 is not in"):
        Arrays(INPUTS, LABELS - 1)


def test_a_split_is_evaluated_by_batches_that_the_devices_share():
    (batch,) = Arrays(np.zeros((50, 2), np.float32), np.zeros(50, int)).batches(50, make_mesh())
    assert (len(batch["mask"]), batch["mask"].sum()) == (56, 50)
