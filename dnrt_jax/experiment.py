"""Builds an experiment from a config: data, model, device mesh, jitted functions."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dnrt_jax import convert, models, tasks
from dnrt_jax.config import Config, duration, flatten, model_kwargs, replaced, varied_fields
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.runtime.errors import ConfigError, UserError
from dnrt_jax.runtime.sharding import check_batch, make_mesh, replicated, split, state_shardings
from dnrt_jax.runtime.weight_files import Description
from dnrt_jax.tasks.base import Task
from dnrt_jax.training import optim
from dnrt_jax.training.dispatch import Dispatch, Numbers, Places, Step, create_dispatches
from dnrt_jax.training.state import RUNS_ONCE, TrainState, check_own_model, create_state, own_model
from dnrt_jax.training.step import Batch, TrainStep, Values

SEQUENTIAL_AT_MOST = 16384  # samples; the [B, B] weights then take 1 GB


class Experiment(NamedTuple):
    """All parts of a run before its first step; nothing is compiled yet.

    init: key -> the initial state, jitted.
    shapes: the state as a tree of jax.ShapeDtypeStruct with shardings.
    """

    config: Config
    task: Task
    model: nn.Module
    mesh: Mesh
    epoch_steps: int
    total_steps: int
    init: Callable[[Array], TrainState]
    shapes: TrainState

    @property
    def rate(self) -> optim.Schedule:
        """step -> learning rate."""
        return optim.schedule(self.config.optim, self.total_steps, self.epoch_steps)

    @property
    def step(self) -> Callable[[TrainState, Batch], tuple[TrainState, Values]]:
        """(state, batch) -> (state, values), see `training.step`."""
        return partial(self.step_of(self.mesh), self.numbers())

    def create(self) -> TrainState:
        """The initial state, on the devices."""
        return self.init(self._keys()[0])

    def period(self, name: str) -> int:
        """The duration config.train.{name}_epochs or _steps, in steps; at least 1."""
        train = self.config.train
        epochs, steps = train[f"{name}_epochs"], train[f"{name}_steps"]
        return max(duration(epochs, steps, self.epoch_steps), 1)

    def dispatch(self) -> Dispatch:
        return dispatches([self])[0]

    def numbers(self, varied: Iterable[str] = ()) -> Numbers:
        """What enters the training step as data: its key, u32[2], and the `varied` fields of the
        config, f32[] each."""
        key = np.asarray(jax.random.key_data(self._keys()[1]))
        flat = flatten(self.config)
        return {"key": key} | {name: np.array(flat[name], np.float32) for name in varied}

    def step_of(self, mesh: Mesh, unravel: Any = None) -> Step:
        """(numbers, state, batch) -> (state, values), for the devices of `mesh`. The key, and the
        fields of the config that are among the numbers, are taken from these; `unravel` as for
        `TrainStep`."""
        log_prior = None
        if self.config.loss.name == "balanced_softmax":
            counts: Any = self.task.class_counts()  # `build` has seen them
            log_prior = np.log(counts).astype(np.float32)

        def step(numbers, state, batch):
            numbers = dict(numbers)
            key = jax.random.wrap_key_data(numbers.pop("key"))
            config = replaced(self.config, numbers)
            rate = optim.schedule(config.optim, self.total_steps, self.epoch_steps)
            tx, task = optim.create(config.optim, rate), self.task
            run = TrainStep(
                self.model, tx, config, task.preprocess, task.mixing, key, mesh, log_prior, unravel
            )
            return run(state, batch)

        return step

    def like(self, config: Config) -> "Experiment":
        """The experiment of a config that differs in numbers alone (`Field.number`): it shares the
        data and what is compiled."""
        return self._replace(config=config, task=self.task.like(config))

    def _keys(self) -> Array:
        """Of the initial state and of the training steps."""
        return jax.random.split(jax.random.key(self.config.seed))


def dispatches(experiments: Sequence[Experiment]) -> list[Dispatch]:
    """A dispatch for each of some experiments that are like the first; one program for all."""
    first, numbers = experiments[0], numbers_of(experiments)
    tasks, mesh = [experiment.task for experiment in experiments], first.mesh
    state = jax.tree.map(lambda x: x.sharding, first.shapes)
    places, step_of = Places(state, split(mesh), replicated(mesh)), partial(first.step_of, mesh)
    return create_dispatches(tasks, numbers, step_of, first.shapes, places, first.config)


def numbers_of(experiments: Sequence[Experiment]) -> list[Numbers]:
    """What enters the training step of each as data, of experiments that are like one another."""
    varied = varied_fields([experiment.config for experiment in experiments])
    return [experiment.numbers(varied) for experiment in experiments]


def load(config: Config) -> Experiment:
    """Reads the data of a valid config and builds the experiment.

    Raises:
      UserError: if the data cannot be read or do not fit the config.
    """
    return build(config, tasks.find(config.task)(config))


def build(config: Config, task: Task, mesh: Mesh | None = None) -> Experiment:
    """Builds the experiment of a valid config for a task; `mesh` defaults to all devices.

    Raises:
      UserError: if the data, the devices or the model do not fit the config.
    """
    mesh = make_mesh() if mesh is None else mesh
    _check_batch(config, task, mesh)
    task.check_mesh(mesh)
    model = create_model(config, len(task.class_names), formulation_of(mesh))
    epoch_steps = math.ceil(task.num_train / task.batch_size)
    total_steps = duration(config.train.epochs, config.train.steps, epoch_steps)
    tx = optim.create(config.optim, optim.schedule(config.optim, total_steps, epoch_steps))
    init = partial(
        create_state,
        model,
        tx,
        task.example,
        num_classes=len(task.class_names),
        use_arr=config.arr.weight > 0,
        use_ema=config.train.ema > 0,
    )
    with own_model(config.model.name):
        shapes = jax.eval_shape(init, jax.random.key(0))
    if ":" in config.model.name:
        check_own_model(model, config.model.name, shapes, task.example)
    shardings = state_shardings(mesh, shapes, config.parallel.fsdp)
    shapes = jax.tree.map(lambda x, at: x.update(sharding=at), shapes, shardings)
    init = jax.jit(init, out_shardings=shardings, compiler_options=RUNS_ONCE)
    return Experiment(config, task, model, mesh, epoch_steps, total_steps, init, shapes)


def formulation_of(mesh: Mesh) -> Formulation:
    """The formulation of a model on the devices of `mesh`."""
    device = mesh.devices.flat[0]
    if device.platform == "tpu":
        generation = re.match(r"TPU v?(\d+)", device.device_kind)
        return "tpu5" if generation and int(generation[1]) <= 5 else "tpu"
    # cuDNN's attention needs an Ampere GPU or a newer one.
    cuda = re.fullmatch(r"(\d+)\.\d+", getattr(device, "compute_capability", ""))
    return "gpu" if cuda and int(cuda[1]) >= 8 else "cpu"


def create_model(config: Config, num_classes: int, formulation: Formulation = "cpu") -> nn.Module:
    """Creates the model of a valid config, in a formulation if it has several.

    Raises:
      ModelError, ConfigError: for incompatible fields.
    """
    kwargs, fields = model_kwargs(config), models.fields(config.model.name)
    if "formulation" in fields:
        kwargs["formulation"] = formulation
    if config.train.remat and "remat" not in fields:
        raise ConfigError(f"config.train.remat=True: {config.model.name} has no blocks to repeat")
    if "remat" in fields:
        kwargs["remat"] = config.train.remat
    if "image_size" in fields:
        kwargs["image_size"] = config.data.image_size
    if config.model.dtype != "float32":
        kwargs["dtype"] = jnp.dtype(config.model.dtype)
    return models.create(config.model.name, num_classes=num_classes, act=config.model.act, **kwargs)


def initial_state(experiment: Experiment) -> TrainState:
    """The initial state, with the weights of `config.init_from` if that is set.

    Raises:
      ConfigError: for weights that cannot be read or do not fit, or a model of other data than
        images.
    """
    config, source = experiment.config, experiment.config.init_from
    if source and "image_size" not in models.fields(config.model.name):
        raise ConfigError(f"config.init_from={source!r}: only for models of images")
    fresh = experiment.create()
    if not source:
        return fresh
    channels = experiment.task.example.shape[-1]
    try:
        state_dict, known = convert.load(source)
        variables = convert.fit(state_dict, experiment.model, channels)
    except UserError as error:
        raise ConfigError(f"config.init_from: {error}") from None
    place = lambda value, like: jax.device_put(value.astype(like.dtype), like.sharding)
    params = jax.tree.map(place, variables["params"], fresh.params)
    batch_stats = jax.tree.map(place, variables.get("batch_stats", {}), fresh.batch_stats)
    logging.info("starting from the weights of %s", source)
    if known:
        _warn_of_normalisation(known, config)
    # A copy, as a step is given the buffers of both.
    variables = {"params": params, "batch_stats": batch_stats}
    ema = fresh.ema and jax.tree.map(jnp.copy, variables)
    return fresh.replace(params=params, batch_stats=batch_stats, ema=ema)


def _warn_of_normalisation(known: Description, config: Config) -> None:
    rounded = lambda values: [round(x, 3) for x in values]
    mean, std = (config.data.get(name, ()) for name in ("mean", "std"))
    if (rounded(mean), rounded(std)) != (rounded(known.mean), rounded(known.std)):
        logging.warning(
            "the weights were trained with another normalisation; take "
            "--config.data.mean=%s --config.data.std=%s",
            str(known.mean).replace(" ", ""),
            str(known.std).replace(" ", ""),
        )


def _check_batch(config: Config, task: Task, mesh: Mesh) -> None:
    if task.batch_size > task.num_train:
        raise ConfigError(
            f"config.train.batch_size={task.batch_size}: there are only {task.num_train} training "
            "samples"
        )
    if config.train.accumulate > 1:
        check_batch("train.batch_size", task.batch_size, mesh.size, config.train.accumulate)
    if config.loss.name == "balanced_softmax" and task.class_counts() is None:
        raise ConfigError(f"config.loss.name='balanced_softmax': {config.task} has no class_counts")
    if config.arr.weight and config.arr.target == "permuted" and len(task.class_names) < 2:
        raise ConfigError("config.arr.target='permuted': needs two classes or more")
    sequential = config.arr.weight and config.arr.rule == "sequential"
    if sequential and task.batch_size > SEQUENTIAL_AT_MOST:
        raise ConfigError(
            f"config.arr.rule='sequential': weighs every pair of {task.batch_size} samples; "
            "take --config.arr.rule=centroid"
        )


def warn_of_warmup(experiment: Experiment) -> None:
    """Warns of a warm-up that takes more than a third of the run."""
    optim, total_steps = experiment.config.optim, experiment.total_steps
    warmup = duration(optim.warmup_epochs, optim.warmup_steps, experiment.epoch_steps)
    if 3 * warmup > total_steps:
        logging.warning(
            "the warm-up takes %d of %d steps: the rate hardly gets to fall; shorten it with "
            "--config.optim.warmup_steps or --config.optim.warmup_epochs",
            warmup,
            total_steps,
        )
