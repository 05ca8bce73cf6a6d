"""What a config describes, ready to run: data, model, mesh, durations, compiled programs."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax import config as schema
from dnrt_jax import feed, metrics, models, optim, parallel
from dnrt_jax import state as train_state
from dnrt_jax import step as steps
from dnrt_jax.config import Config
from dnrt_jax.data import augment, datasets

TRAIN_FIELDS = (
    "image_size mean std crop crop_area crop_aspect interpolation pad flip rand_augment erase"
)
EVAL_FIELDS = "image_size eval_resize mean std"


class NonFiniteError(RuntimeError):
    """The loss, a gradient or a logit is not finite. The message is one line."""


class Problem(NamedTuple):
    config: Config
    train: feed.Split
    test: feed.Split
    model: nn.Module
    mesh: jax.sharding.Mesh
    epoch_steps: int
    total_steps: int

    def duration(self, name: str) -> int:
        """config.train.{name}_epochs or _steps, in steps; at least 1."""
        train = self.config.train
        steps = schema.steps(train[f"{name}_epochs"], train[f"{name}_steps"], self.epoch_steps)
        return max(steps, 1)


def load(config: Config) -> Problem:
    """Reads the data and builds the model of a valid config.

    Raises:
      ValueError, FileNotFoundError, ConnectionError: one line on the config or the data.
    """
    return build(config, feed.read(config, "train"), feed.read(config, "test"))


def build(
    config: Config, train: feed.Split, test: feed.Split, mesh: jax.sharding.Mesh | None = None
) -> Problem:
    """The problem of a valid config on images at hand; without a mesh, on all devices.

    Raises:
      ValueError: if the images, the devices or the model do not fit the config.
    """
    data, batch_size = config.data, config.train.batch_size
    size, channels = feed.size(train), feed.channels(train)
    if channels != len(data.mean):
        raise schema.ConfigError(
            f"config.data.mean={tuple(data.mean)}: the images have {channels} channels"
        )
    if batch_size > size:
        raise schema.ConfigError(
            f"config.train.batch_size={batch_size}: there are only {size} training images"
        )
    mesh = parallel.mesh() if mesh is None else mesh
    parallel.check_batch("train.batch_size", batch_size, mesh.size * config.train.accumulate)
    parallel.check_batch("eval.batch_size", config.eval.batch_size, mesh.size)
    model = models.create(
        config.model.name,
        num_classes=len(train.class_names),
        act=config.model.act,
        image_size=data.image_size,
        dtype=jnp.bfloat16 if config.model.dtype == "bfloat16" else None,
        **schema.model_kwargs(config),
    )
    epoch_steps = math.ceil(size / batch_size)
    total_steps = schema.steps(config.train.epochs, config.train.steps, epoch_steps)
    return Problem(config, train, test, model, mesh, epoch_steps, total_steps)


class Programs(NamedTuple):
    """create() -> state; step(state, batch) -> (state, values); rate(step) -> learning rate.

    shapes: of the state, jax.ShapeDtypeStruct that say where each array lies.
    """

    create: Callable[[], train_state.TrainState]
    step: feed.Step
    rate: optim.Schedule
    shapes: train_state.TrainState


def programs(problem: Problem) -> Programs:
    """Builds them; compiles nothing.

    Raises:
      ValueError: if the transforms cannot make what the model takes of the images.
    """
    config, data = problem.config, problem.config.data
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    rate = optim.schedule(config.optim, problem.total_steps, problem.epoch_steps)
    tx = optim.create(config.optim, rate)
    channels, num_classes = feed.channels(problem.train), len(problem.train.class_names)
    create = partial(
        train_state.create,
        problem.model,
        tx,
        (1, data.image_size, data.image_size, channels),
        init_key,
        num_classes=num_classes,
        use_arr=config.arr.weight > 0,
    )
    options = _pick(data, TRAIN_FIELDS)
    if feed.crops_on_host(problem.train, config):
        options["crop"] = "none"
    transform = augment.train_transform(**options)
    if isinstance(problem.train, datasets.Dataset):
        # Images that the transform cannot take are better answered before compiling.
        image = problem.train.images[:1]
        jax.eval_shape(transform, jax.random.split(step_key, 1), image)
    mixing = [mix for mix in (augment.mixup, augment.cutmix) if data[mix.__name__]]
    step = steps.train_step(
        problem.model,
        tx,
        config,
        transform,
        [partial(mix, alpha=data[mix.__name__]) for mix in mixing],
        step_key,
        parallel.split(problem.mesh, axis=1),
    )
    shapes = jax.eval_shape(create)
    shardings = parallel.state_shardings(problem.mesh, shapes, config.parallel.fsdp)
    shapes = jax.tree.map(lambda x, at: x.update(sharding=at), shapes, shardings)
    return Programs(jax.jit(create, out_shardings=shardings), step, rate, shapes)


def evaluator(problem: Problem) -> Callable[[train_state.TrainState], dict[str, Any]]:
    """Makes evaluate(state) -> values by name on the whole test split, with `confusion` i64[K, K].

    Raises:
      NonFiniteError: when called, if a logit is NaN or infinite.
    """
    config = problem.config
    transform = augment.eval_transform(**_pick(config.data, EVAL_FIELDS))
    num_classes = len(problem.test.class_names)
    step = jax.jit(
        steps.eval_step(problem.model, config.arr, transform, num_classes),
        out_shardings=parallel.replicated(problem.mesh),
    )
    batches = feed.test_batches(problem.test, config, problem.mesh)

    def evaluate(state):
        sums: dict[str, Any] = {}
        for batch in batches():
            out = jax.device_get(step(state, batch))
            sums = {k: sums.get(k, 0) + np.asarray(v, np.float64) for k, v in out.items()}
        if bad := int(sums["non_finite"]):
            raise NonFiniteError(
                f"step {int(state.step)}: the logits of {bad} test images are not finite"
            )
        values = metrics.classification(sums["confusion"])
        values |= {k: float(v / sums["count"]) for k, v in sums.items() if k.startswith("loss")}
        return values | {"confusion": sums["confusion"].astype(np.int64)}

    return evaluate


def _pick(section: Config, fields: str) -> dict[str, Any]:
    return {field: section[field] for field in fields.split()}
