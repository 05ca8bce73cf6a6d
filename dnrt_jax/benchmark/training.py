"""Training on generated images, by the very programs that training runs use."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dnrt_jax import config as schema
from dnrt_jax import experiment as problem
from dnrt_jax import models
from dnrt_jax.config import Config
from dnrt_jax.data import augment
from dnrt_jax.data.datasets import Dataset
from dnrt_jax.training import dispatch as feed


def config_of(model: str, batch_size: int, dtype: str) -> Config:
    """The defaults with RAA and ARR, for RGB images of the model's own size; no augmentation."""
    config = schema.default()
    config.model.name, config.model.dtype = model, dtype
    schema.validate(config)  # an unknown model is answered here
    built: Any = models.create(model, num_classes=1)
    config.data.image_size = config.data.eval_resize = built.image_size
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.train.batch_size = batch_size
    schema.validate(config)
    return config


def images_of(config: Config) -> np.ndarray:
    """Random u8[B, S, S, 3]."""
    size = config.data.image_size
    shape = (config.train.batch_size, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def trainer(config: Config, num_classes: int, steps: int) -> Callable[[], np.ndarray]:
    """A function that trains for `steps` more steps in one dispatch: their losses f32[steps].

    Raises:
      ValueError: a batch that the devices cannot share, or ARR on a model without responses.
    """
    config = copy.deepcopy(config)
    config.train.dispatch_steps = steps
    config.train.steps = 10_000  # of the schedule
    described = describe(config, num_classes)
    programs = problem.programs(described)
    feeder = feed.training(described.train, config, programs.step, programs.shapes)
    state, taken = programs.create(), 0

    def run():
        nonlocal state, taken
        state, values = feeder.run(state, taken, steps)
        taken += steps
        return values["loss"]

    return run


def predictor(config: Config, num_classes: int) -> Callable[[], np.ndarray]:
    """A function that takes a batch from uint8 images to logits f32[B, K]."""
    described = describe(copy.deepcopy(config), num_classes)
    state = problem.programs(described).create()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    data = config.data
    transform = augment.eval_transform(
        image_size=data.image_size, eval_resize=data.eval_resize, mean=data.mean, std=data.std
    )
    predict = jax.jit(lambda variables, x: described.model.apply(variables, transform(x)))
    images = jax.device_put(images_of(config))
    return lambda: np.asarray(predict(variables, images))


def describe(config: Config, num_classes: int) -> problem.Problem:
    """A problem whose data are one batch."""
    config.eval.batch_size = config.train.batch_size
    labels = np.random.default_rng(1).integers(0, num_classes, config.train.batch_size)
    data = Dataset(images_of(config), labels.astype(np.int32), tuple(map(str, range(num_classes))))
    return problem.build(config, data, data)


def default_steps() -> int:
    """Steps a dispatch: on an accelerator enough to hide the host."""
    return 1 if jax.default_backend() == "cpu" else 16
