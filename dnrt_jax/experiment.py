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
from dnrt_jax import models
from dnrt_jax.config import Config
from dnrt_jax.data import augment, datasets, graphs
from dnrt_jax.runtime import flops as cost
from dnrt_jax.runtime import sharding as parallel
from dnrt_jax.tasks import node_classification as nodes
from dnrt_jax.training import dispatch as feed
from dnrt_jax.training import metrics, optim
from dnrt_jax.training import state as train_state
from dnrt_jax.training import step as steps

TRAIN_FIELDS = (
    "image_size mean std crop crop_area crop_aspect interpolation pad flip rand_augment erase"
)
EVAL_FIELDS = "image_size eval_resize mean std"
SEQUENTIAL_AT_MOST = 16384  # samples; their weights then fill a gigabyte


class Problem(NamedTuple):
    config: Config
    train: feed.Split
    test: feed.Split
    model: nn.Module
    mesh: jax.sharding.Mesh
    epoch_steps: int
    total_steps: int

    @property
    def batch_size(self) -> int:
        """Images a step, or labelled nodes: without sampling, all of them."""
        whole = schema.takes_graph(self.config) and not self.config.data.fanout
        return feed.size(self.train) if whole else self.config.train.batch_size

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of an image's forward pass; None for a graph."""
        if isinstance(self.train, graphs.GraphData):
            return None
        size = self.config.data.image_size
        return cost.of_image(self.model, (1, size, size, feed.channels(self.train))).total

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
    size, kwargs = feed.size(train), schema.model_kwargs(config)
    mesh = parallel.mesh() if mesh is None else mesh
    if not isinstance(train, graphs.GraphData):
        _check_images(config, train, mesh)
        kwargs["image_size"] = config.data.image_size
    model = models.create(
        config.model.name,
        num_classes=len(train.class_names),
        act=config.model.act,
        dtype=jnp.bfloat16 if config.model.dtype == "bfloat16" else None,
        **kwargs,
    )
    problem = Problem(config, train, test, model, mesh, 1, 1)
    if problem.batch_size > size:
        raise schema.ConfigError(
            f"config.train.batch_size={problem.batch_size}: there are only {size} training samples"
        )
    sequential = config.arr.weight and config.arr.rule == "sequential"
    if sequential and problem.batch_size > SEQUENTIAL_AT_MOST:
        raise schema.ConfigError(
            f"config.arr.rule='sequential': weighs every pair of {problem.batch_size} samples; "
            "take --config.arr.rule=centroid"
        )
    epoch_steps = math.ceil(size / problem.batch_size)
    total_steps = schema.steps(config.train.epochs, config.train.steps, epoch_steps)
    return problem._replace(epoch_steps=epoch_steps, total_steps=total_steps)


def _check_images(config: Config, train: feed.Images, mesh: jax.sharding.Mesh) -> None:
    if (channels := feed.channels(train)) != len(config.data.mean):
        raise schema.ConfigError(
            f"config.data.mean={tuple(config.data.mean)}: the images have {channels} channels"
        )
    parts = mesh.size * config.train.accumulate
    parallel.check_batch("train.batch_size", config.train.batch_size, parts)
    parallel.check_batch("eval.batch_size", config.eval.batch_size, mesh.size)


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
    transform, example = _input(problem, step_key)
    rate = optim.schedule(config.optim, problem.total_steps, problem.epoch_steps)
    tx = optim.create(config.optim, rate)
    num_classes = len(problem.train.class_names)
    create = partial(
        train_state.create,
        problem.model,
        tx,
        example,
        init_key,
        num_classes=num_classes,
        use_arr=config.arr.weight > 0,
    )
    mixing = [mix for mix in (augment.mixup, augment.cutmix) if data[mix.__name__]]
    step = steps.train_step(
        problem.model,
        tx,
        config,
        transform,
        [partial(mix, alpha=data[mix.__name__]) for mix in mixing],
        step_key,
        parallel.split(problem.mesh, axis=1),
        _log_prior(problem),
    )
    shapes = jax.eval_shape(create)
    shardings = parallel.state_shardings(problem.mesh, shapes, config.parallel.fsdp)
    shapes = jax.tree.map(lambda x, at: x.update(sharding=at), shapes, shardings)
    return Programs(jax.jit(create, out_shardings=shardings), step, rate, shapes)


def _input(problem: Problem, key: jax.Array) -> tuple[Callable[..., Any], Any]:
    """The transform of training, and the shape of what the model takes of one sample."""
    train, data = problem.train, problem.config.data
    if isinstance(train, graphs.GraphData):
        return lambda _, graph: graph, nodes.example(train)
    options = _pick(data, TRAIN_FIELDS)
    if feed.crops_on_host(train, problem.config):
        options["crop"] = "none"
    transform = augment.train_transform(**options)
    if isinstance(train, datasets.Dataset):
        # Images that the transform cannot take are better answered before compiling.
        jax.eval_shape(transform, jax.random.split(key, 1), train.images[:1])
    shape = (1, data.image_size, data.image_size, feed.channels(train))
    return transform, jax.ShapeDtypeStruct(shape, jnp.float32)


def _log_prior(problem: Problem) -> np.ndarray | None:
    """What Balanced Softmax adds to the logits of training, f32[K]."""
    if problem.config.loss.name != "balanced_softmax":
        return None
    return np.log(feed.class_counts(problem.train)).astype(np.float32)


def evaluator(problem: Problem) -> Callable[[train_state.TrainState], dict[str, Any]]:
    """Makes evaluate(state) -> {"test/acc": ..., "confusion": i64[K, K]} on the whole test split.

    Raises:
      NonFiniteError: when called, if a logit is NaN or infinite.
    """
    config = problem.config
    train, test = problem.train, problem.test
    if isinstance(test, graphs.GraphData):
        return nodes.evaluator(problem.model, config, test, problem.mesh)
    transform = augment.eval_transform(**_pick(config.data, EVAL_FIELDS))
    num_classes = len(problem.test.class_names)
    step = jax.jit(
        steps.eval_step(problem.model, config.arr, transform, num_classes),
        out_shardings=parallel.replicated(problem.mesh),
    )
    batches = feed.test_batches(test, config, problem.mesh)

    def evaluate(state):
        sums: dict[str, Any] = {}
        for batch in batches():
            out = jax.device_get(step(state, batch))
            sums = {k: sums.get(k, 0) + np.asarray(v, np.float64) for k, v in out.items()}
        values = metrics.summary(sums, f"test images at step {int(state.step)}")
        if config.data.imbalance:
            counts, names = feed.class_counts(train), test.class_names
            values |= metrics.by_frequency(sums["confusion"], counts, names)
        values = {f"test/{name}": value for name, value in values.items()}
        return values | {"confusion": sums["confusion"].astype(np.int64)}

    return evaluate


def _pick(section: Config, fields: str) -> dict[str, Any]:
    return {field: section[field] for field in fields.split()}
