"""Training on random images, with the same jitted functions as real runs."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dnrt_jax import experiment, models
from dnrt_jax.config import Config, default, validate
from dnrt_jax.data.datasets import Dataset
from dnrt_jax.experiment import Experiment
from dnrt_jax.tasks.image_classification import ImageClassification


def config_of(model: str, batch_size: int, dtype: str) -> Config:
    """The default config with RAA and ARR, the model's image size and no augmentation."""
    config = default()
    config.model.name, config.model.dtype = model, dtype
    built: Any = models.create(model, num_classes=1)
    config.data.image_size = config.data.eval_resize = built.image_size
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.train.batch_size = batch_size
    validate(config)
    return config


def images_of(config: Config) -> np.ndarray:
    """Random u8[B, S, S, 3]."""
    size = config.data.image_size
    shape = (config.train.batch_size, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def labels_of(config: Config, num_classes: int) -> np.ndarray:
    """Random i32[B]."""
    size = config.train.batch_size
    return np.random.default_rng(1).integers(0, num_classes, size).astype(np.int32)


def trainer(config: Config, num_classes: int, steps: int) -> Callable[[], np.ndarray]:
    """A function that runs `steps` steps in one dispatch and returns their losses f32[steps].

    Raises:
      ValueError: if the batch is not divisible by the devices, or ARR has no responses.
    """
    config = copy.deepcopy(config)
    config.train.dispatch_steps = steps
    config.train.steps = 10_000  # for the learning rate schedule
    built = describe(config, num_classes)
    dispatch, state, taken = built.dispatch(), built.create(), 0

    def run():
        nonlocal state, taken
        state, values = dispatch.run(state, taken, steps)
        taken += steps
        return values["loss"]

    return run


def predictor(config: Config, num_classes: int) -> Callable[[], np.ndarray]:
    """A function that runs inference on a batch: uint8 images to logits f32[B, K]."""
    built = describe(copy.deepcopy(config), num_classes)
    state = built.create()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    predict = jax.jit(
        lambda variables, x: built.model.apply(variables, built.task.eval_preprocess(x))
    )
    images = jax.device_put(images_of(config))
    return lambda: np.asarray(predict(variables, images))


def describe(config: Config, num_classes: int) -> Experiment:
    """An experiment with a data set of one batch."""
    config.eval.batch_size = config.train.batch_size
    names = tuple(map(str, range(num_classes)))
    data = Dataset(images_of(config), labels_of(config, num_classes), names)
    return experiment.build(config, ImageClassification(config, data, data))


def default_steps() -> int:
    """Steps per dispatch: on an accelerator, enough to hide the overhead of the host."""
    return 1 if jax.default_backend() == "cpu" else 16
