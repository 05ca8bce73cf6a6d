"""The splits of image data: in memory, or streamed from disk if they are too large."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dnrt_jax.config import Config
from dnrt_jax.data import datasets
from dnrt_jax.data.source import Source, Subset
from dnrt_jax.data.stream import RandomResizedCrop, Stream, is_large
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.tasks.arrays import Arrays, place, placed

Images = datasets.Dataset | Source


def read(config: Config, split: str) -> Images:
    """Reads the "train" or "test" split into memory, or opens it as a source to be streamed.

    Raises:
      UserError: if the data cannot be read as the config says.
    """
    data, folder = config.data, datasets.local_dir(config.data.name, config.data.dir)
    if data.loader != "memory":
        source = datasets.find(data.name, folder, split)
        large = source is not None and is_large(source, data.image_size)
        if source is None and data.loader == "stream" and data.name in datasets.names():
            raise ConfigError(
                f"config.data.loader='stream': {data.name} is neither a folder nor prepared"
            )
        if source is not None and (large or data.loader == "stream"):
            if data.imbalance:
                raise ConfigError(
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


def subset(images: Images, indices: np.ndarray) -> Images:
    """The images at `indices` i64[M]."""
    if isinstance(images, datasets.Dataset):
        return images.subset(indices)
    return Subset(images, indices)


class Streamed:
    """A split whose images are decoded on demand, with the methods of `Arrays`."""

    crops = True  # the random crop happens while decoding, not on the device
    fits_devices = False

    def __init__(self, source: Source, config: Config, *, train: bool):
        self._source, self._data, self._train = source, config.data, train
        self._evaluated: Stream | None = None  # kept, with its workers, between evaluations

    def __len__(self) -> int:
        return len(self._source)

    def _stream(self, batch_size: int, **options: Any) -> Stream:
        data = self._data
        crop = RandomResizedCrop(data.crop_area, data.crop_aspect, data.interpolation)
        return Stream(
            self._source,
            batch_size=batch_size,
            side=data.image_size if self._train else data.eval_resize,
            crop=crop if self._train and data.crop == "random_resized" else None,
            workers=data.workers,
            on_error=data.on_error,
            **options,
        )

    def train_batches(self, batch_size: int, seed: int, mesh: Mesh) -> Callable[[int], Iterator]:
        stream = self._stream(batch_size, shuffle=True, seed=seed, **_process())

        def draw(start):
            stream.set_state({"position": start})
            return iter(stream)

        return placed(draw, mesh)

    def on_device(self, batch_size: int, seed: int, mesh: Mesh) -> None:
        return None

    def batches(self, batch_size: int, mesh: Mesh) -> Iterator:
        self._evaluated = self._evaluated or self._stream(batch_size, **_process())
        return (place(batch, mesh) for batch in self._evaluated.epoch())

    def samples(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        stream = self._stream(min(32, len(self)), shuffle=True, seed=seed)
        return ((b["inputs"][b["mask"]], b["label"][b["mask"]]) for b in stream.epoch())


def _process() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


Split = Arrays | Streamed


def open_split(images: Images, config: Config, *, train: bool) -> Split:
    """What gives the batches of `images`."""
    if isinstance(images, datasets.Dataset):
        return Arrays(images.images, images.labels, len(images.class_names))
    return Streamed(images, config, train=train)
