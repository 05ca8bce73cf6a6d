"""Image classification; `image_splits.py` has the data set, in memory or streamed from disk."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from dnrt_jax import models
from dnrt_jax.config import Config
from dnrt_jax.data import augment, datasets
from dnrt_jax.data.order import hold_out
from dnrt_jax.fields import (
    FLAG,
    FRACTION,
    FROM_0,
    RANGE,
    RATE,
    TEXT,
    Field,
    choice,
    integer,
    numbers_from,
)
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.sharding import check_batch, replicated
from dnrt_jax.tasks.arrays import Arrays, all_steps, summarize
from dnrt_jax.tasks.base import OnDevice, Task
from dnrt_jax.tasks.image_splits import Images, Split, open_split, read, subset
from dnrt_jax.training import metrics
from dnrt_jax.training.dispatch import in_loops
from dnrt_jax.training.step import eval_step

TRAIN_FIELDS = (
    "image_size mean std crop crop_area crop_aspect interpolation pad flip rand_augment erase"
)
EVAL_FIELDS = "image_size eval_resize mean std"


class ImageClassification(Task):
    """Image classification, see `Task`.

    Args:
      train, test: the splits; by default they are read as the config says.

    Raises:
      UserError: if the data cannot be read or the config does not fit them.
    """

    FIELDS: ClassVar = {
        "data.image_size": Field(32, integer(1), "input size of the model, in pixels"),
        "data.eval_resize": Field(
            32, integer(1), "evaluation: size of the shorter side before the centre crop, in pixels"
        ),
        "data.mean": Field(
            (0.5,),
            numbers_from(0, "numbers in 0..1, one per channel"),
            "mean of the pixels, per channel",
        ),
        "data.std": Field(
            (0.5,),
            numbers_from(1e-6, "numbers above 0, one per channel"),
            "standard deviation, per channel",
        ),
        "data.crop": Field("none", choice("none", "pad", "random_resized"), "crop in training"),
        "data.crop_area": Field(
            (0.08, 1.0), RANGE, "random_resized: range of the area, as a fraction of the image"
        ),
        "data.crop_aspect": Field((3 / 4, 4 / 3), RANGE, "random_resized: range of width / height"),
        "data.interpolation": Field(
            "random",
            choice("random", "bilinear", "bicubic"),
            "interpolation of random_resized and of RandAugment",
        ),
        "data.pad": Field(4, integer(1), "pad: pixels added on each side before a random crop"),
        "data.flip": Field(0.0, FRACTION, "probability of a horizontal flip"),
        "data.rand_augment": Field(
            "", TEXT, "RandAugment policy in timm's notation, such as rand-m9-mstd0.5-inc1"
        ),
        "data.erase": Field(0.0, FRACTION, "probability of random erasing"),
        "data.mixup": Field(0.0, FROM_0, "alpha of mixup; 0 for none"),
        "data.cutmix": Field(
            0.0,
            FROM_0,
            "alpha of cutmix; if mixup is on as well, each batch uses one of them at random",
        ),
        "data.imbalance": Field(
            0,
            integer(0),
            "long-tailed training split: largest / smallest class; 0 for the full split",
        ),
        "eval.flip": Field(
            False, FLAG, "average the logits of each image and of its mirror image", free=True
        ),
        "data.valid_fraction": Field(
            0.0, RATE, "fraction of the training split held out to select the best checkpoint"
        ),
        "data.on_error": Field(
            "stop",
            choice("stop", "skip"),
            "what to do with an unreadable image; skip allows 1% of the split, at least one",
        ),
        "data.loader": Field(
            "auto",
            choice("auto", "memory", "stream"),
            "auto streams data sets of more than 4 GiB; in memory, images of several sizes become "
            "centre squares before the random crop",
        ),
        "data.workers": Field(
            0, integer(0), "decoder processes of a stream; 0 uses a thread", free=True
        ),
    }

    def __init__(self, config: Config, train: Images | None = None, test: Images | None = None):
        self._config, data = config, config.data
        train = read(config, "train") if train is None else train
        test = read(config, "test") if test is None else test
        self._whole, self._test = train, open_split(test, config, train=False)
        self.class_names, self.channels = train.class_names, train.channels
        # Shared by the tasks that `like` makes: by seed, and by model and mesh.
        self._divided: dict[int | None, tuple[Images, Split, Split | None]] = {}
        self._jitted: dict[tuple[int, Mesh], tuple[Any, Any]] = {}
        self._hold_out()
        if config.train.dispatch == "scan" and not isinstance(self._train, Arrays):
            raise ConfigError("config.train.dispatch='scan': the data set is not in device memory")
        self.num_train, self.batch_size = len(self._images), config.train.batch_size
        shape = (1, data.image_size, data.image_size, self.channels)
        self.example = jax.ShapeDtypeStruct(shape, jnp.float32)
        mixing = [mix for mix in (augment.mixup, augment.cutmix) if data[mix.__name__]]
        self.mixing = [partial(mix, alpha=data[mix.__name__]) for mix in mixing]
        self.preprocess, self.eval_preprocess = self._transforms()

    @classmethod
    def check(cls, config: Config) -> None:
        data, name = config.data, config.model.name
        if "image_size" not in models.fields(name):
            raise ConfigError(f"config.model.name={name!r}: takes no images; see config.task")
        if data.eval_resize < data.image_size:
            raise ConfigError(
                f"config.data.eval_resize={data.eval_resize}: below image_size={data.image_size}"
            )
        if len(data.mean) != len(data.std) or not data.mean:
            raise ConfigError(
                f"config.data.std={tuple(data.std)}: needs as many values as "
                f"mean={tuple(data.mean)}"
            )
        if data.crop_area[1] > 1:
            raise ConfigError(
                f"config.data.crop_area={tuple(data.crop_area)}: a share is at most 1"
            )
        if config.eval.metric != "acc":
            raise ConfigError(f"config.eval.metric={config.eval.metric!r}: of images only 'acc'")

    def like(self, config: Config) -> "ImageClassification":
        task = copy.copy(self)
        task._config = config
        task._hold_out()
        return task

    def shares_samples(self, other: Task) -> bool:
        return isinstance(other, ImageClassification) and other._images is self._images

    @property
    def description(self) -> str:
        valid = f", {len(self._valid)} validation" if self._valid else ""
        return f"{self.num_train} training{valid} and {len(self._test)} test images"

    def train_batches(self, mesh: Mesh) -> Callable[[int], Iterator]:
        return self._train.train_batches(self.batch_size, self._config.seed, mesh)

    def on_device(self, mesh: Mesh) -> OnDevice | None:
        if not self._goes_to_devices(self._train):
            return None
        return self._train.on_device(self.batch_size, self._config.seed, mesh)

    def _goes_to_devices(self, split: Split) -> bool:
        """Whether a split in memory is to be copied to the devices as a whole."""
        return self._config.train.dispatch == "scan" or split.fits_devices

    def check_mesh(self, mesh: Mesh) -> None:
        super().check_mesh(mesh)
        check_batch("eval.batch_size", self._config.eval.batch_size, mesh.size)

    def evaluator(self, model: nn.Module, mesh: Mesh) -> Callable[[Any], dict[str, Any]]:
        config, class_names = self._config, self.class_names
        size, whole = config.eval.batch_size, in_loops(config.train.dispatch, mesh)
        step, steps = self._eval_steps(model, mesh)

        def results_of(split: Split) -> Callable[[Any], Iterator[Any]]:
            if whole and isinstance(split, Arrays) and self._goes_to_devices(split):
                return split.at_once(steps, mesh)
            return lambda state: map(partial(step, state), split.batches(size, mesh))

        splits = ({"valid": self._valid} if self._valid else {}) | {"test": self._test}
        results = {name: results_of(split) for name, split in splits.items()}

        def run(state):
            values: dict[str, Any] = {}
            for name in splits:
                what = f"{name} images at step {int(state.step)}"
                found, confusion = summarize(results[name](state), what)
                if config.data.imbalance:
                    found |= metrics.by_frequency(confusion, self.class_counts(), class_names)
                values |= {f"{name}/{key}": value for key, value in found.items()}
                values["confusion"] = confusion
            return values

        return run

    def _eval_steps(self, model: nn.Module, mesh: Mesh) -> tuple[Any, Any]:
        """`eval_step`, jitted for one batch and for all batches of a split."""
        key = id(model), mesh  # `step` keeps the model alive; its fields may have no hash
        if key not in self._jitted:
            config, num_classes = self._config, len(self.class_names)
            mirror = (lambda images: images[:, :, ::-1]) if config.eval.flip else None
            step = eval_step(model, config.arr, self.eval_preprocess, num_classes, mirror=mirror)
            steps = all_steps(step, config.eval.batch_size, mesh)
            self._jitted[key] = jax.jit(step, out_shardings=replicated(mesh)), steps
        return self._jitted[key]

    def class_counts(self) -> np.ndarray:
        return np.bincount(self._images.labels, minlength=len(self.class_names))

    def samples(self, split: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return {"train": self._train, "test": self._test}[split].samples(seed)

    def _hold_out(self) -> None:
        """Divides the training split into what is trained on and what is held out, once for each
        seed."""
        train, valid, fraction = self._whole, None, self._config.data.valid_fraction
        seed = self._config.seed if fraction else None
        if seed not in self._divided:
            if seed is not None:
                kept, held = hold_out(train.labels, fraction, seed)
                valid = open_split(subset(train, held), self._config, train=False)
                train = subset(train, kept)
            self._divided[seed] = train, open_split(train, self._config, train=True), valid
        self._images, self._train, self._valid = self._divided[seed]

    def _transforms(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The transforms of training and evaluation; checks that they accept the config."""
        data, images = self._config.data, self._images
        if self.channels != len(data.mean):
            raise ConfigError(
                f"config.data.mean={tuple(data.mean)}: the images have {self.channels} channels"
            )
        pick = lambda fields: {field: data[field] for field in fields.split()}
        options: dict[str, Any] = pick(TRAIN_FIELDS)
        if self._train.crops and data.crop == "random_resized":
            options["crop"] = "none"
        try:
            train = augment.train_transform(**options)
            if isinstance(images, datasets.Dataset):
                # Report mistakes now, not when the step is compiled.
                keys = jax.random.split(jax.random.key(0), 1)
                jax.eval_shape(train, keys, images.images[:1])
            return train, augment.eval_transform(**pick(EVAL_FIELDS))
        except ValueError as error:
            raise ConfigError(f"config.data: {error}") from None
