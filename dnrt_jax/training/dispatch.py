"""Dispatch of training steps to the devices: many steps per program, or one."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.sharding import platform, replicated, split
from dnrt_jax.training.packed import Packing
from dnrt_jax.training.state import TrainState
from dnrt_jax.training.step import Batch, TrainStep, Values

Step = Callable[[TrainState, Batch], tuple[TrainState, Values]]
Draw = Callable[[int], Iterator[Batch]]  # start -> batches of the steps from `start` on


class Dispatch(Protocol):
    """Runs training steps on the training split."""

    def run(self, state: TrainState, start: int, count: int) -> tuple[TrainState, dict[str, Any]]:
        """Runs the steps start .. start + count - 1, of one epoch: (state, {name: f32[count]}).

        The buffers of `state` are donated.
        """
        ...


def create_dispatch(
    task: Any, step: TrainStep, shapes: TrainState, mesh: Mesh, train: Any
) -> Dispatch:
    """Creates the dispatch `train.dispatch`; `train` is that section of the config.

    Args:
      shapes: the state as a tree of jax.ShapeDtypeStruct with shardings.

    Raises:
      ConfigError: for "scan" if the data set is not in device memory.
    """
    out = jax.tree.map(lambda x: x.sharding, shapes), replicated(mesh)
    # On XLA:CPU, convolutions are about thirty times slower inside a loop than outside.
    how = train.dispatch
    if how == "scan" or (how == "auto" and platform(mesh) != "cpu"):
        if (on_device := task.on_device(mesh)) is not None:
            whole = all(x.sharding.is_fully_replicated for x in jax.tree.leaves(shapes.params))
            packing = Packing(shapes) if whole and platform(mesh) != "cpu" else None
            return Scan(on_device, step, out, mesh, train.dispatch_steps, packing)
        if how == "scan":
            raise ConfigError("config.train.dispatch='scan': the data set is not in device memory")
    return Single(task.train_batches(mesh), step, out, mesh)


class Scan:
    """Many steps per dispatch, on data in device memory."""

    def __init__(
        self,
        on_device: Any,
        step: TrainStep,
        out: Any,
        mesh: Mesh,
        most: int,
        packing: Packing | None = None,
    ):
        self._data, self._rows, self._most = on_device.data, on_device.rows, most
        self._order = split(mesh, axis=1)
        run = train_steps(step, split(mesh), on_device.shape, packing)
        self._run = jax.jit(run, out_shardings=out, donate_argnums=0)

    def run(self, state: TrainState, start: int, count: int) -> tuple[TrainState, dict[str, Any]]:
        place = lambda x: jax.make_array_from_callback(x.shape, self._order, x.__getitem__)
        indices, mask = map(place, self._rows(start, self._most))
        state, values = self._run(state, self._data, indices, mask, count)
        return state, {name: column[:count] for name, column in jax.device_get(values).items()}

    def lower(self, state: TrainState) -> Any:
        """The program that `run` dispatches, for the shapes of a state, not compiled yet."""
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._order)
        indices, mask = map(shape, self._rows(0, self._most))
        return self._run.lower(state, self._data, indices, mask, self._most)


class Single:
    """One step per dispatch."""

    def __init__(self, draw: Draw, step: Step, out: Any, mesh: Mesh):
        self._draw, self._on_host = draw, platform(mesh) == "cpu"
        self._batches, self._at = iter(()), -1
        self._step = jax.jit(step, out_shardings=out, donate_argnums=0)

    def run(self, state: TrainState, start: int, count: int) -> tuple[TrainState, dict[str, Any]]:
        if start != self._at:
            self._batches = self._draw(start)
        self._at = start + count
        values = []
        for _ in range(count):
            state, value = self._step(state, next(self._batches))
            if self._on_host:
                jax.block_until_ready(
                    value
                )  # CPU collectives may deadlock with many calls in flight
            values.append(value)
        values = jax.device_get(values)
        return state, {name: np.stack([value[name] for value in values]) for name in values[0]}


def train_steps(
    step: TrainStep,
    sharding: Any,
    shape: tuple[int, ...] | None = None,
    packing: Packing | None = None,
) -> Callable[..., tuple[TrainState, Values]]:
    """Returns run(state, data, indices, mask, count) -> (state, values f32[S]).

    It runs the first `count` of S steps, with indices i32[S, B] and mask bool[S, B].
    `data` is a dict of inputs [N, ...] and label i32[N]. The same program is used for all counts,
    so the result does not depend on where dispatches end.

    Args:
      shape: of the input of one sample, if it lies flat in `data`.
      packing: if given, the state is packed between its first and its last step.
    """
    if packing:
        step = dataclasses.replace(step, unravel=packing.unravel)

    def run(state, data, indices, mask, count):
        def body(i, carry):
            state, log = carry
            state, values = step(state, take(data, indices[i], mask[i], sharding, shape))
            return state, jax.tree.map(lambda xs, x: xs.at[i].set(x), log, values)

        state = packing.pack(state) if packing else state
        batch = take(data, indices[0], mask[0], sharding, shape)
        _, shapes = jax.eval_shape(step, state, batch)
        log = jax.tree.map(lambda x: jax.numpy.zeros(indices.shape[0], x.dtype), shapes)
        state, log = jax.lax.fori_loop(0, count, body, (state, log))
        return packing.unpack(state) if packing else state, log

    return run


def take(
    data: Batch, indices: Array, mask: Array, sharding: Any, shape: tuple[int, ...] | None = None
) -> Batch:
    """The batch of `data` at `indices` i32[B], sharded over the devices; `shape` as for
    `train_steps`."""
    batch = jax.tree.map(lambda x: x[indices], data) | {"mask": mask}
    if shape is not None:
        batch["inputs"] = batch["inputs"].reshape(-1, *shape)
    return jax.lax.with_sharding_constraint(batch, sharding)
