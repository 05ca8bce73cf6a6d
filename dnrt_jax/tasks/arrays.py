"""Batches from a data set of two arrays in memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from dnrt_jax.data.order import epoch_batches
from dnrt_jax.runtime.errors import DataError
from dnrt_jax.runtime.multihost import own_rows
from dnrt_jax.runtime.sharding import device_memory, replicated, split
from dnrt_jax.tasks.base import OnDevice
from dnrt_jax.training import metrics
from dnrt_jax.training.dispatch import take
from dnrt_jax.training.step import Batch

HostBatch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Arrays:
    """inputs [N, ...] and label i32[N], which may be given as integers of any dtype.

    Whoever shares one also shares its copy in device memory, which is freed with it.

    Raises:
      DataError: if the labels are not N integers in 0 .. num_classes - 1.
    """

    crops: ClassVar = False  # random crops are made on the device

    inputs: np.ndarray
    label: np.ndarray
    num_classes: int = 2**31  # of any int32, where it is not told
    _copies: dict[Mesh, Batch] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        label: Any = self.label
        if not isinstance(label, np.ndarray):
            raise DataError(f"labels: a {type(label).__name__}, not an array of integers [N]")
        if label.dtype.kind not in "iu" or label.shape != (len(self.inputs),):
            given = f"{label.dtype}{list(label.shape)}"
            raise DataError(f"labels: {given} for {len(self.inputs)} samples, not integers [N]")
        if (bad := np.flatnonzero((label < 0) | (label >= self.num_classes))).size:
            raise DataError(
                f"labels: {label[bad[0]]} of sample {bad[0]} is not in 0..{self.num_classes - 1}"
            )
        object.__setattr__(self, "label", label.astype(np.int32, copy=False))  # it is frozen

    def __len__(self) -> int:
        return len(self.label)

    @property
    def fits_devices(self) -> bool:
        """Whether a copy takes at most a quarter of a device's memory, where that is told."""
        memory = device_memory()
        return memory is None or self.inputs.nbytes <= memory / 4

    def train_batches(self, batch_size: int, seed: int, mesh: Mesh) -> Callable[[int], Iterator]:
        """As `Task.train_batches`: each sample once per epoch, in an order from (seed, epoch)."""
        return placed(partial(self._draw, batch_size, seed), mesh)

    def _draw(self, batch_size: int, seed: int, start: int) -> Iterator[HostBatch]:
        own = own_rows(batch_size)
        epoch, first = divmod(start, -(-len(self) // batch_size))
        while True:
            indices, mask = epoch_batches(len(self), batch_size, seed, epoch)
            for rows, real in zip(indices[first:], mask[first:], strict=True):
                mine = rows[own]
                yield {"inputs": self.inputs[mine], "label": self.label[mine], "mask": real[own]}
            epoch, first = epoch + 1, 0

    def on_device(self, batch_size: int, seed: int, mesh: Mesh) -> OnDevice:
        """As `Task.on_device`, in the order of `train_batches`."""
        epoch_steps = -(-len(self) // batch_size)

        def rows(start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
            indices, mask = epoch_batches(len(self), batch_size, seed, start // epoch_steps)
            steps = np.arange(start, start + count) % epoch_steps
            return indices[steps], mask[steps]

        return OnDevice(self._copy(mesh), rows, self.inputs.shape[1:])

    def _copy(self, mesh: Mesh) -> Batch:
        """The one copy in the memory of each device of `mesh`."""
        if mesh not in self._copies:
            # Flat: a TPU would copy images of few channels into another layout at every dispatch.
            data = {"inputs": self.inputs.reshape(len(self), -1), "label": self.label}
            self._copies[mesh] = jax.device_put(data, replicated(mesh))
        return self._copies[mesh]

    def batches(self, batch_size: int, mesh: Mesh) -> Iterator[Batch]:
        """All samples once, in order; the last batch is padded, with mask False."""
        for rows, real in zip(*_rows(len(self), batch_size, mesh), strict=True):
            own = own_rows(len(rows))
            batch = {"inputs": self.inputs[rows[own]], "label": self.label[rows[own]]}
            yield place(batch | {"mask": real[own]}, mesh)

    def at_once(self, steps: Callable[..., Any], mesh: Mesh) -> Callable[[Any], Iterator[Any]]:
        """state -> the results for `batches`, by `all_steps`, in one dispatch."""
        data, shape = self._copy(mesh), self.inputs.shape[1:]

        def results(state: Any) -> Iterator[Any]:
            values = jax.device_get(steps(state, data, shape))
            count = len(jax.tree.leaves(values)[0])
            return (jax.tree.map(lambda x, i=i: x[i], values) for i in range(count))

        return results

    def samples(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `Task.samples`, one by one."""
        order = np.random.default_rng(seed).permutation(len(self))
        return ((self.inputs[[i]], self.label[[i]]) for i in order)


def all_steps(step: Callable[..., Any], batch_size: int, mesh: Mesh) -> Callable[..., Any]:
    """Jits a `training.eval_step` for all batches of a split in device memory: (state, data, shape
    of one sample) -> its results, with a leading axis of batches."""

    def steps(state: Any, data: Batch, shape: tuple[int, ...]) -> Any:
        batch = lambda rows, mask: take(data, rows, mask, split(mesh), shape)
        parts = _rows(len(data["label"]), batch_size, mesh)
        return jax.lax.map(lambda part: step(state, batch(*part)), parts)

    return jax.jit(steps, static_argnums=2, out_shardings=replicated(mesh))


def _rows(count: int, batch_size: int, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """The rows i32[steps, B] and mask bool[steps, B] of the batches of `count` samples in order."""
    # For a split smaller than a batch, the batch is its size rounded up to a multiple of 8.
    up = lambda size, step: -(-size // step) * step
    batch_size = min(up(batch_size, mesh.size), up(count, 8 * mesh.size))
    positions = np.arange(-(-count // batch_size) * batch_size).reshape(-1, batch_size)
    return np.minimum(positions, count - 1).astype(np.int32), positions < count


def place(batch: HostBatch, mesh: Mesh) -> Batch:
    """Assembles the global batch, sharded over the devices, from this process's part."""
    return jax.tree.map(partial(jax.make_array_from_process_local_data, split(mesh)), batch)


def placed(draw: Callable[[int], Iterator[HostBatch]], mesh: Mesh) -> Callable[[int], Iterator]:
    """The batches of `draw` on the devices."""
    return lambda start: (place(batch, mesh) for batch in draw(start))


def evaluate(step: Callable[..., Any], state: Any, batches: Iterator[Batch], what: str) -> Any:
    """Runs a jitted `training.eval_step` on all batches: (metrics by name, confusion i64[K, K]).

    Raises: as `summarize`.
    """
    return summarize((step(state, batch) for batch in batches), what)


def summarize(results: Iterable[dict[str, Any]], what: str) -> Any:
    """Adds up what a `training.eval_step` gave for all batches: (metrics by name, confusion
    i64[K, K]).

    Raises:
      NonFiniteError: if a logit is NaN or infinite; `what` names the data in the message.
    """
    sums: dict[str, Any] = {}
    for out in map(jax.device_get, results):
        sums = {k: sums.get(k, 0) + np.asarray(v, np.float64) for k, v in out.items()}
    return metrics.summary(sums, what), sums["confusion"].astype(np.int64)
