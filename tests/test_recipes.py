"""What docs/recipes.md promises of configs: schedules that fit their length, models by override."""

import numpy as np
import pytest
from making import data_of_the_tables
from runs import ROOT, here

from dnrt_jax.config_file import load
from dnrt_jax.training.optim import schedule

SMALL = ["train.steps=1", "train.batch_size=8", "eval.batch_size=8"]
SMALL = [f"--config.{field}" for field in SMALL]


def test_fine_tuning_ends_at_the_floor_after_a_run_below_the_peak():
    config, epoch_steps = load(str(ROOT / "configs/finetune.py:flowers")), 50
    total = config.train.epochs * epoch_steps
    rate = schedule(config.optim, total, epoch_steps)
    rates = np.array([rate(step) for step in range(total)])
    assert config.train.epochs == 30
    np.testing.assert_allclose(rates[-1], config.optim.min_lr, rtol=1e-3)
    assert rates.max() == pytest.approx(config.optim.lr, rel=0.02)
    assert np.median(rates) < 0.6 * config.optim.lr
    assert (np.diff(rates[3 * epoch_steps :]) <= 0).all()
    assert rates.argmax() <= 0.1 * total


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "warned"), [(23, True), (24, False)])
def test_a_warm_up_above_a_third_of_the_run_is_warned_of(tmp_path, steps, warned):
    arguments = ["--config=configs/digits.py", f"--workdir={tmp_path}/run"]
    small = ["model.embed_dim=16", "model.depth=1", "model.num_heads=2", "optim.warmup_steps=8"]
    small += [f"train.steps={steps}", "model.drop_path_rate=none"]
    done = here(*arguments, *[f"--config.{field}" for field in small])
    assert done.returncode == 0, done.stderr
    line = (
        f"the warm-up takes 8 of {steps} steps: the rate hardly gets to fall; shorten it with "
        "--config.optim.warmup_steps or --config.optim.warmup_epochs"
    )
    assert done.stderr.splitlines().count(line) == warned


def test_a_cnn_follows_a_vits_config_and_the_vits_own_field_is_named(tmp_path):
    data_of_the_tables(tmp_path / "data")
    arguments = ["--config=configs/cifar10.py", "--config.model.name=cifar_resnet18"]
    shrunk = ["model.widths=(8,8)", "model.stage_sizes=(1,1)", "data.rand_augment=", "data.erase=0"]
    shrunk += [f"data.dir={tmp_path}/data"]
    done = here(
        *arguments, f"--workdir={tmp_path}/run", *SMALL, *[f"--config.{field}" for field in shrunk]
    )
    assert done.returncode == 0, done.stderr
    assert "config: cifar_resnet18 has no model.drop_path_rate=0.1; left out" in done.stderr
    assert "Finished. Test accuracy" in done.stdout


def test_none_sets_a_field_of_the_model_back_to_its_default():
    config = load(str(ROOT / "configs/cifar10.py"), {"model.drop_path_rate": "none"})
    assert config.model.drop_path_rate == 0
    assert load(str(ROOT / "configs/cifar10.py")).model.drop_path_rate == 0.1


@pytest.mark.parametrize("name", ["cifar10_cnn", "cifar100_cnn", "imagenet_cnn"])
def test_a_config_of_cnns_has_their_protocol(name):
    config = load(str(ROOT / f"configs/{name}.py"))
    optim = config.optim
    assert (optim.name, optim.schedule, optim.milestones) == ("sgd", "multistep", (60, 120, 160))
    assert config.model.name.endswith("resnet18")
    assert f"configs/{name}.py" in (ROOT / f"configs/{name}.py").read_text()
