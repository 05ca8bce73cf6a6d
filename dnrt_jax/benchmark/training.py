"""Training on random images, with the same jitted functions as real runs."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dnrt_jax import experiment, models, sets
from dnrt_jax.config import Config, default, replaced, validate
from dnrt_jax.data.datasets import Dataset
from dnrt_jax.experiment import Experiment
from dnrt_jax.runtime import flops
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.sharding import make_mesh, replicated, split
from dnrt_jax.tasks.arrays import Arrays
from dnrt_jax.tasks.base import OnDevice
from dnrt_jax.tasks.image_classification import ImageClassification
from dnrt_jax.training import members
from dnrt_jax.training.dispatch import Scan, Single
from dnrt_jax.training.step import eval_step

# The paper's augmentation.
AUGMENTED = {
    "crop": "random_resized",
    "flip": 0.5,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erase": 0.25,
}


def config_of(model: str, batch_size: int, dtype: str) -> Config:
    """The default config with RAA and ARR, the model's image size and no augmentation.

    Raises:
      ConfigError: if it is no model of images.
    """
    config = default()
    config.model.name, config.model.dtype = model, dtype
    if "image_size" not in models.fields(model):
        raise ConfigError(f"--model={model}: takes no images")
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
        return values()["loss"]

    return run


def predictor(config: Config, num_classes: int) -> Callable[[], np.ndarray]:
    """A function that runs inference on a batch: uint8 images to logits f32[B, K]."""
    built = describe(copy.deepcopy(config), num_classes)
    state = built.create()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    predict = jax.jit(
        lambda variables, x: built.model.apply(variables, built.task.eval_preprocess(x))
    )
    images = on_all_devices(images_of(config))
    return lambda: np.asarray(predict(variables, images))


def on_all_devices(x: Any) -> jax.Array:
    """An array of samples: a part on each device, if they divide it, else the whole."""
    mesh = make_mesh()
    return jax.device_put(x, replicated(mesh) if len(x) % mesh.size else split(mesh))


def describe(config: Config, num_classes: int) -> Experiment:
    """An experiment with a data set of one batch."""
    config.eval.batch_size = config.train.batch_size
    names = tuple(map(str, range(num_classes)))
    data = Dataset(images_of(config), labels_of(config, num_classes), names)
    return experiment.build(config, ImageClassification(config, data, data))


def lowered(settings: dict[str, Any], values: int, mesh: Mesh) -> tuple[Any, int, int]:
    """A program for the devices of `mesh`, which need not be there, on a data set of as many images
    as have `values` values, and a batch at least.

    Args:
      settings: what ("train", "eval" or "infer"), dispatch (of training: "scan" for many steps on
        data in device memory, "single" for one on a batch that the hosts send), model, depth, act,
        arr_weight, rule, batch_size, num_classes, dtype, augment, fsdp, members (runs that train
        together).

    Returns:
      The program, not compiled yet; multiply-accumulates of an image; values of the data set.
    """
    config = config_of(settings["model"], settings["batch_size"], settings["dtype"])
    config.model.act, config.arr.weight = settings["act"], settings["arr_weight"]
    config.arr.rule, config.parallel.fsdp = settings["rule"], settings["fsdp"]
    if settings["depth"]:
        config.model.depth = settings["depth"]
    config.data.update(AUGMENTED if settings["augment"] == "full" else {})
    config.eval.batch_size = config.train.batch_size
    config.train.dispatch = settings["dispatch"]
    validate(config)
    num_classes, size = settings["num_classes"], config.data.image_size
    samples = max(values // (3 * size**2), config.train.batch_size)
    pixels = np.broadcast_to(np.uint8(0), (samples, size, size, 3))  # takes no memory
    labels = (np.arange(samples) % num_classes).astype(np.int32)
    data = Dataset(pixels, labels, tuple(map(str, range(num_classes))))
    built = experiment.build(config, _Shapes(config, data, data), mesh)
    if settings["what"] == "train":
        program = _train(built, settings["members"])
    else:
        program = {"eval": _eval, "infer": _infer}[settings["what"]](built)
    macs = flops.of_example(built.model, built.task.example).total
    return program, macs, pixels.size


class _Shapes(ImageClassification):
    """Gives the shapes of the split that would lie on the devices."""

    def on_device(self, mesh: Mesh) -> OnDevice:
        made: list[OnDevice] = []

        def arrays():
            assert isinstance(self._train, Arrays), "the images are in memory"
            own = replace(self._train)  # else it would keep what is traced here
            made.append(own.on_device(self.batch_size, self._config.seed, mesh))
            return made[0].data

        shapes = jax.eval_shape(arrays)
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))
        return made[0]._replace(data=jax.tree.map(place, shapes))


def _train(built: Experiment, count: int) -> Any:
    dispatch, shapes = built.dispatch(), built.shapes
    if count > 1:
        of_seed = lambda seed: built.like(replaced(built.config, {"seed": seed}))
        mesh = members.member_mesh(built.mesh, count)
        dispatch, shapes = sets.dispatch_together(list(map(of_seed, range(count))), mesh)
    if isinstance(dispatch, Single):
        return dispatch.lower(shapes, _batch(built))
    assert isinstance(dispatch, Scan), "the config asks for one of both"
    return dispatch.lower(shapes)


def _eval(built: Experiment) -> Any:
    config, task, mesh = built.config, built.task, built.mesh
    step = eval_step(built.model, config.arr, task.eval_preprocess, len(task.class_names))
    return jax.jit(step, out_shardings=replicated(mesh)).lower(built.shapes, _batch(built))


def _infer(built: Experiment) -> Any:
    variables = {"params": built.shapes.params, "batch_stats": built.shapes.batch_stats}
    predict = lambda variables, x: built.model.apply(variables, built.task.eval_preprocess(x))
    return jax.jit(predict).lower(variables, _batch(built)["inputs"])


def _batch(built: Experiment) -> dict[str, Any]:
    size = built.config.data.image_size
    shapes = {"inputs": ((size, size, 3), np.uint8), "label": ((), np.int32), "mask": ((), bool)}
    whole = lambda shape: (built.config.train.batch_size, *shape)
    return {
        name: jax.ShapeDtypeStruct(whole(shape), dtype, sharding=split(built.mesh))
        for name, (shape, dtype) in shapes.items()
    }


def default_steps() -> int:
    """Steps per dispatch: on an accelerator, enough to hide the overhead of the host."""
    return 1 if jax.default_backend() == "cpu" else 16
