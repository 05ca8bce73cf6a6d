"""How a split reaches the devices: images from memory or as a stream, or the nodes of a graph."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dnrt_jax import config as schema
from dnrt_jax.config import Config
from dnrt_jax.data import datasets, graphs
from dnrt_jax.data import stream as loader
from dnrt_jax.data.order import epoch_batches
from dnrt_jax.runtime import sharding as parallel
from dnrt_jax.tasks import node_classification as nodes
from dnrt_jax.training import step as steps
from dnrt_jax.training.state import TrainState

Images = datasets.Dataset | datasets.Source
Split = Images | graphs.GraphData
HostBatch = dict[str, np.ndarray]
Step = Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Values]]


def read(config: Config, split: str) -> Split:
    """The "train" or "test" split: in memory, or a source to be streamed where it is too large.

    A graph is not split: its nodes are, so both are the same.

    Raises:
      ValueError, FileNotFoundError, ConnectionError: one line on the config or the data.
    """
    data = config.data
    folder = datasets.data_dir(data.dir)
    if schema.takes_graph(config):
        return _graph(data.name, folder, data.features, data.self_loops)
    if data.loader != "memory":
        source = datasets.find(data.name, folder, split)
        large = source is not None and loader.is_large(source, data.image_size)
        if source is None and data.loader == "stream":
            raise schema.ConfigError(
                f"config.data.loader='stream': {data.name} is neither a folder nor prepared"
            )
        if source is not None and (large or data.loader == "stream"):
            if data.imbalance:
                raise schema.ConfigError(
                    f"config.data.imbalance={data.imbalance}: only for data in memory"
                )
            return source
    return datasets.load(
        data.name,
        folder,
        split,
        image_size=data.image_size,
        imbalance=data.imbalance,
        on_error=data.on_error,
    )


@cache
def _graph(name: str, folder: Path, features: str, self_loops: bool) -> graphs.GraphData:
    return graphs.load(name, folder, features=features, self_loops=self_loops)


def describe(train: Split, test: Split) -> str:
    """What there is, for people."""
    if not isinstance(train, graphs.GraphData):
        return f"{size(train)} training and {size(test)} test images"
    counts = ", ".join(f"{len(nodes)} {name}" for name, nodes in train.splits.items())
    return f"{len(train.labels)} nodes ({counts}), {len(train.senders)} edges"


def size(split: Split) -> int:
    """How many images, or labelled training nodes."""
    if isinstance(split, graphs.GraphData):
        return len(split.splits["train"])
    return len(split.labels) if isinstance(split, datasets.Dataset) else len(split)


def class_counts(split: Split) -> np.ndarray:
    """How many training samples there are of each class, i64[K].

    Raises:
      ConfigError: for images that are streamed: their labels are not all known.
    """
    if isinstance(split, graphs.GraphData):
        labels = split.labels[split.splits["train"]]
    elif isinstance(split, datasets.Dataset):
        labels = split.labels
    else:
        raise schema.ConfigError("config.loss.name='balanced_softmax': only for data in memory")
    return np.bincount(labels, minlength=len(split.class_names))


def channels(split: Images) -> int:
    return split.images.shape[-1] if isinstance(split, datasets.Dataset) else 3


def crops_on_host(split: Images, config: Config) -> bool:
    """Whether training images arrive cropped: the crop decides what is decoded of a large image."""
    return not isinstance(split, datasets.Dataset) and config.data.crop == "random_resized"


def stream(split: datasets.Source, config: Config, *, train: bool, **options: Any) -> loader.Stream:
    """Batches of decoded squares, ready for the transforms on the device."""
    data = config.data
    crop = loader.RandomResizedCrop(data.crop_area, data.crop_aspect, data.interpolation)
    defaults = {
        "batch_size": config.train.batch_size if train else config.eval.batch_size,
        "side": data.image_size if train else data.eval_resize,
        "crop": crop if train and crops_on_host(split, config) else None,
        "shuffle": train,
        "seed": config.seed,
        "workers": data.workers,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "on_error": data.on_error,
    }
    return loader.Stream(split, **(defaults | options))


class FromMemory:
    """The training split lies on the devices; one program takes many steps a dispatch."""

    def __init__(self, split: datasets.Dataset, config: Config, step: Step, state: TrainState):
        mesh = _mesh(state)
        self._count, self._config = len(split.labels), config
        self._data = _on_device(split, mesh)
        self._order = parallel.split(mesh, axis=1)
        self._run = jax.jit(
            steps.train_steps(step, parallel.split(mesh)),
            out_shardings=(_shardings(state), parallel.replicated(mesh)),
            donate_argnums=0,
        )

    def run(self, state: TrainState, start: int, count: int) -> tuple[TrainState, dict[str, Any]]:
        """Takes the steps start .. start + count - 1, of one epoch; values are f32[count] by name.

        `count` is at most config.train.dispatch_steps.
        """
        batch_size, seed = self._config.train.batch_size, self._config.seed
        epoch_steps = -(-self._count // batch_size)
        indices, mask = epoch_batches(self._count, batch_size, seed, start // epoch_steps)
        rows = np.arange(start, start + self._config.train.dispatch_steps) % epoch_steps
        order = [
            jax.make_array_from_callback(x.shape, self._order, x.__getitem__)
            for x in (indices[rows], mask[rows])
        ]
        state, values = self._run(state, self._data, *order, count)
        return state, {name: column[:count] for name, column in jax.device_get(values).items()}


class ByBatch:
    """One batch a dispatch: a stream, a graph's, or from memory where the device is the host.

    XLA:CPU runs convolutions in a loop of steps some thirty times slower than one by one.
    """

    def __init__(
        self, batches: Callable[[int], Iterator[steps.Batch]], step: Step, state: TrainState
    ):
        self._batches = batches  # from a step on, placed on the devices
        self._iterator, self._at = iter(()), -1
        out = (_shardings(state), parallel.replicated(_mesh(state)))
        self._step = jax.jit(step, out_shardings=out, donate_argnums=0)

    def run(self, state: TrainState, start: int, count: int) -> tuple[TrainState, dict[str, Any]]:
        """As `FromMemory.run`."""
        if start != self._at:
            self._iterator = self._batches(start)
        self._at = start + count
        values = []
        for _ in range(count):
            state, value = self._step(state, next(self._iterator))
            if jax.default_backend() == "cpu":
                jax.block_until_ready(value)  # its collectives may hang with many calls in flight
            values.append(value)
        values = jax.device_get(values)
        return state, {name: np.stack([value[name] for value in values]) for name in values[0]}


def training(split: Split, config: Config, step: Step, state: TrainState) -> FromMemory | ByBatch:
    """The training split, ready to take steps on; `state`, or its shapes, says where arrays lie."""
    sharding = parallel.split(_mesh(state))
    placed = lambda draw: lambda start: (_split(batch, sharding) for batch in draw(start))
    if isinstance(split, graphs.GraphData):
        return ByBatch(nodes.batches(split, config, _mesh(state)), step, state)
    if not isinstance(split, datasets.Dataset):
        source = stream(split, config, train=True)
        return ByBatch(placed(partial(_streamed, source)), step, state)
    if jax.default_backend() == "cpu":
        return ByBatch(placed(partial(_drawn, split, config)), step, state)
    return FromMemory(split, config, step, state)


def _streamed(source: loader.Stream, start: int) -> Iterator[HostBatch]:
    source.set_state({"position": start})
    return iter(source)


def _drawn(split: datasets.Dataset, config: Config, start: int) -> Iterator[HostBatch]:
    """This process's part of the batches of the steps from `start` on."""
    count, batch_size = len(split.labels), config.train.batch_size
    own = parallel.own_rows(batch_size)
    epoch, first = divmod(start, -(-count // batch_size))
    while True:
        indices, mask = epoch_batches(count, batch_size, config.seed, epoch)
        for rows, real in zip(indices[first:], mask[first:], strict=True):
            mine = rows[own]
            yield {"image": split.images[mine], "label": split.labels[mine], "mask": real[own]}
        epoch, first = epoch + 1, 0


def test_batches(split: Images, config: Config, mesh: Mesh) -> Callable[[], Iterator[steps.Batch]]:
    """Makes batches() -> the split once, in order; rows that fill up the last batch are masked."""
    sharding, batch_size = parallel.split(mesh), config.eval.batch_size
    if isinstance(split, datasets.Dataset):
        return partial(_slices, split, batch_size, sharding)
    source = stream(split, config, train=False)
    return lambda: (_split(batch, sharding) for batch in source.epoch())


def _slices(split: datasets.Dataset, batch_size: int, sharding: Any) -> Iterator[steps.Batch]:
    count = len(split.labels)
    for start in range(0, count, batch_size):
        positions = np.arange(start, start + batch_size)[parallel.own_rows(batch_size)]
        rows = np.minimum(positions, count - 1)
        batch = {"image": split.images[rows], "label": split.labels[rows]}
        yield _split(batch | {"mask": positions < count}, sharding)


def _on_device(split: datasets.Dataset, mesh: Mesh) -> dict[str, jax.Array]:
    data = {"image": split.images, "label": split.labels}
    return jax.device_put(data, parallel.replicated(mesh))


def _split(batch: HostBatch, sharding: Any) -> steps.Batch:
    """This process's part of a batch as part of the global one."""
    return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), batch)


def _mesh(state: TrainState) -> Mesh:
    sharding: Any = state.step.sharding
    return sharding.mesh


def _shardings(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: x.sharding, state)
