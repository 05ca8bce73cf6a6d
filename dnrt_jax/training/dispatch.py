"""Dispatch of training steps to the devices: many steps per program, or one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dnrt_jax.config import Config
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.multihost import fetch
from dnrt_jax.runtime.sharding import constrain, platform, split
from dnrt_jax.training import optim
from dnrt_jax.training.packed import Packing
from dnrt_jax.training.state import TrainState
from dnrt_jax.training.step import Batch, Values

Numbers = dict[str, np.ndarray]  # what differs between runs of the same program
Step = Callable[[Numbers, TrainState, Batch], tuple[TrainState, Values]]
StepOf = Callable[[Any], Step]
Over = Callable[[Callable[..., Any], Any, Any], Callable[..., Any]]
Later = Callable[[], dict[str, np.ndarray]]
Draw = Callable[[int], Iterator[Batch]]  # start -> batches of the steps from `start` on

LANES = 128  # elements of a TPU's row


class Places(NamedTuple):
    """Shardings: a tree for the state, and those of a batch and of the values of a step."""

    state: Any
    batch: NamedSharding
    values: NamedSharding


class Dispatch(Protocol):
    """Runs training steps on the training split."""

    def run(self, state: TrainState, start: int, count: int) -> tuple[TrainState, Later]:
        """Dispatches the steps start .. start + count - 1, of one epoch: (state, a function that
        waits for the values of the steps and gives them, {name: f32[count]}).

        The buffers of `state` are donated.
        """
        ...


def create_dispatches(
    tasks: Sequence[Any],
    numbers: Sequence[Numbers],
    step_of: StepOf,
    shapes: TrainState,
    places: Places,
    config: Config,
    over: Over = lambda function, in_axes, out_axes: function,
) -> list[Dispatch]:
    """Creates the dispatch `config.train.dispatch` for each task with its numbers. All run the same
    compiled program.

    Args:
      step_of: unravel of a packed state or None -> a step of one run.
      shapes: the state of one run as a tree of jax.ShapeDtypeStruct with shardings.
      over: makes of a function for one run that for all the runs of a dispatch, if they are
        several, which then are on these axes of its arguments and results, as for jax.vmap.

    Raises:
      ConfigError: for "scan" if the data set is not in device memory.
    """
    mesh: Any = places.batch.mesh
    where, how = platform(mesh), config.train.dispatch
    whole = all(x.sharding.is_fully_replicated for x in jax.tree.leaves(shapes.params))
    packed = whole and optim.is_elementwise(config.optim) and where != "cpu"
    packing = Packing(shapes, vectors_apart=where == "gpu") if packed else None
    step = step_of(packing.unravel if packing else None)
    if in_loops(how, mesh):
        on_device = [task.on_device(mesh) for task in tasks]
        if None not in on_device:
            run = train_steps(step, split(mesh), on_device[0].shape)
            run = over(packing.around(run) if packing else run, (0, 0, None, 1, 1, None), (0, 1))
            out = places.state, of_steps(places.values)
            run = jax.jit(run, out_shardings=out, donate_argnums=1)
            order, most = of_steps(places.batch), config.train.dispatch_steps
            each = zip(numbers, on_device, strict=True)
            return [Scan(run, *parts, order, most, where == "cpu") for parts in each]
        if how == "scan":
            raise ConfigError("config.train.dispatch='scan': the data set is not in device memory")
    run = over(packing.around(step) if packing else step, 0, 0)
    run = jax.jit(run, out_shardings=(places.state, places.values), donate_argnums=1)
    draws = [task.train_batches(mesh) for task in tasks]
    return [Single(run, *parts, where == "cpu") for parts in zip(numbers, draws, strict=True)]


def in_loops(how: str, mesh: Mesh) -> bool:
    """Whether `config.train.dispatch` asks for many batches per dispatch, where data allow it."""
    # On XLA:CPU, convolutions are about thirty times slower inside a loop than outside.
    return how == "scan" or (how == "auto" and platform(mesh) != "cpu")


def of_steps(sharding: NamedSharding) -> NamedSharding:
    """The sharding of arrays with a leading axis of steps."""
    return NamedSharding(sharding.mesh, P(None, *sharding.spec))


class Scan:
    """Many steps per dispatch, on data in device memory.

    Args:
      run: `train_steps`, jitted.
      order: the sharding of the indices of the steps.
      most: the steps of the program; it may be told to run fewer.
      wait: whether to wait for each dispatch before the next: CPU collectives may deadlock with
        several programs in flight.
    """

    def __init__(
        self, run: Any, numbers: Numbers, on_device: Any, order: Any, most: int, wait: bool
    ):
        self._run, self._numbers, self._order, self._most = run, numbers, order, most
        self._data, self._rows, self._wait = on_device.data, on_device.rows, wait

    def run(self, state: TrainState, start: int, count: int) -> tuple[TrainState, Later]:
        place = lambda x: jax.make_array_from_callback(x.shape, self._order, x.__getitem__)
        indices, mask = map(place, self._rows(start, self._most))
        state, values = self._run(self._numbers, state, self._data, indices, mask, count)
        values = jax.block_until_ready(values) if self._wait else values
        return state, lambda: {name: column[:count] for name, column in fetch(values).items()}

    def lower(self, state: TrainState) -> Any:
        """The program that `run` dispatches, for the shapes of a state, not compiled yet."""
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._order)
        indices, mask = map(shape, self._rows(0, self._most))
        return self._run.lower(self._numbers, state, self._data, indices, mask, self._most)


class Single:
    """One step per dispatch.

    Args:
      step: jitted.
      wait: whether to wait for each step before the next, as in `Scan`.
    """

    def __init__(self, step: Any, numbers: Numbers, draw: Draw, wait: bool):
        self._step, self._numbers, self._draw, self._wait = step, numbers, draw, wait
        self._batches, self._at = iter(()), -1

    def run(self, state: TrainState, start: int, count: int) -> tuple[TrainState, Later]:
        if not np.array_equal(start, self._at):
            self._batches = self._draw(start)
        self._at = start + count
        values = []
        for _ in range(count):
            state, value = self._step(self._numbers, state, next(self._batches))
            if self._wait:
                jax.block_until_ready(value)
            values.append(value)

        def later() -> dict[str, np.ndarray]:
            fetched = fetch(values)
            return {name: np.stack([value[name] for value in fetched]) for name in fetched[0]}

        return state, later

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """The program of a step, for the shapes of a state and of a batch, not compiled yet."""
        return self._step.lower(self._numbers, state, batch)


def train_steps(
    step: Step, sharding: Any, shape: tuple[int, ...] | None = None
) -> Callable[..., tuple[TrainState, Values]]:
    """Returns run(numbers, state, data, indices, mask, count) -> (state, values f32[S]).

    It runs the first `count` of S steps, with indices i32[S, B] and mask bool[S, B].
    `data` is a dict of inputs [N, ...] and label i32[N]. The same program is used for all counts,
    so the result does not depend on where dispatches end.

    Args:
      shape: of the input of one sample, if it lies flat in `data`.
    """

    def run(numbers, state, data, indices, mask, count):
        def body(i, carry):
            state, log = carry
            state, values = step(numbers, state, take(data, indices[i], mask[i], sharding, shape))
            return state, jax.tree.map(lambda xs, x: xs.at[i].set(x), log, values)

        batch = take(data, indices[0], mask[0], sharding, shape)
        _, shapes = jax.eval_shape(step, numbers, state, batch)
        log = jax.tree.map(lambda x: jnp.zeros(len(indices), x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, log))

    return run


def take(
    data: Batch, indices: Array, mask: Array, sharding: Any, shape: tuple[int, ...] | None = None
) -> Batch:
    """The batch of `data` at `indices` i32[B], sharded over the devices; `shape` as for
    `train_steps`."""
    rows = lambda x: x[indices] if x.ndim > 1 else _elements(x, indices)
    batch = jax.tree.map(rows, data) | {"mask": mask}
    if shape is not None:
        batch["inputs"] = batch["inputs"].reshape(-1, *shape)
    return constrain(batch, sharding)


def _elements(x: Array, indices: Array) -> Array:
    """x[indices], of x [N]."""
    by_index = lambda x, indices: x[indices]
    return jax.lax.platform_dependent(x, indices, tpu=_by_rows, default=by_index)


def _by_rows(x: Array, indices: Array) -> Array:
    """x[indices]: rows of 128 and an element of each, as a TPU gathers single elements one by
    one."""
    rows = jnp.pad(x, (0, -len(x) % LANES)).reshape(-1, LANES)
    at = indices[:, None] % LANES == jnp.arange(LANES)
    return jnp.where(at, rows[indices // LANES], 0).sum(1, dtype=x.dtype)
