"""Streams data sets that do not fit in memory: worker processes decode and crop images.

Batch i is a function of (seed, i), independent of the number of workers and hosts. The position in
a checkpoint is therefore one number, and a run can be resumed with other numbers of them.
"""

import atexit
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from dnrt_jax.data import classes, datasets, decode, image_folder
from dnrt_jax.data.order import epoch_order
from dnrt_jax.data.reading import one_line
from dnrt_jax.data.source import Source, Subset
from dnrt_jax.runtime.errors import DataError

# Workers return a few images at a time: all of them work on the next batch, and shared memory
# (64 MB in many containers) stays small.
CHUNK = 32
ENDLESS = 2**40
KEYS = ("inputs", "label", "mask")

Batch = dict[str, np.ndarray]


class RandomResizedCrop(NamedTuple):
    """A random box with a uniform area and log-uniform width / height, resized to a square."""

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "random"  # or bilinear, bicubic


class Stream:
    """Infinite batches {"inputs": uint8[b, side, side, 3], "label": int32[b], "mask": bool[b]}.

    Each epoch has every image once. Its last batch is padded with images from its start, with mask
    False; skipped broken images have mask False as well. b is this host's part of `batch_size`; the
    global batch is the concatenation over hosts.

    Args:
      side: of the images handed over: cut by `crop`, or without it the centre square of the image
        resized to `side` (see `decode.fit`).
      shuffle: order from (seed, epoch), see `order.epoch_order`; otherwise the order of the source.
      workers: processes; they are spawned, so a program needs `if __name__ == "__main__"`.
        0 decodes in a thread of this process.
      on_error: as in `datasets.load`; the 1% are of the split, over the life of the stream.

    Raises:
      DataError: for invalid sizes; while reading, for a broken image or a label outside 0 .. K-1.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        side: int,
        crop: RandomResizedCrop | None = None,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        on_error: str = "stop",
    ):
        self._running: list[Any] = []  # grain's iterator, or nothing
        self._end = partial(_end, self._running)
        whole = _whole(source)
        if isinstance(whole, image_folder.Archive):
            raise DataError(f"{whole.path}: an archive cannot be streamed; extract it to a folder")
        if not len(source):
            raise DataError(f"{source!r}: no images")
        if batch_size % process_count:
            raise DataError(f"batch_size={batch_size}: not divisible by {process_count} hosts")
        if shuffle and batch_size > len(source):
            raise DataError(
                f"train.batch_size={batch_size}: more than the {len(source)} images of {source!r}"
            )
        if isinstance(whole, image_folder.ImageFolder):  # whose labels are known without reading it
            classes.warn(source.labels, source.class_names, repr(source), train=shuffle)
        local = batch_size // process_count
        rows = range(process_index * local, (process_index + 1) * local)
        self._chunks = _Chunks(source, batch_size, rows, side, crop, shuffle, seed)
        self._workers, self._on_error = workers, on_error
        self._broken: list[str] = []
        self._position = 0

    @property
    def steps_per_epoch(self) -> int:
        return self._chunks.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._running:
            self._running.append(self._start())
            atexit.register(self._end)  # after multiprocessing, so that it runs before it
        try:
            parts = [next(self._running[0]) for _ in range(self._chunks.per_batch)]
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise DataError(
                f"a process that decodes images was killed ({one_line(error)}), perhaps as memory "
                "ran out: lower data.workers; the same command resumes"
            ) from None
        self._position += 1
        self._answer_broken([line for part in parts for line in part["broken"]])
        return {key: np.concatenate([part[key] for part in parts]) for key in KEYS}

    def epoch(self) -> Iterator[Batch]:
        """The next `steps_per_epoch` batches."""
        return (next(self) for _ in range(self.steps_per_epoch))

    def get_state(self) -> dict[str, int]:
        """The index of the next batch, for a checkpoint."""
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Stops the workers; the next batch would start new ones."""
        if self._running:
            self._end()
            atexit.unregister(self._end)

    def __del__(self) -> None:
        self.close()

    def _start(self) -> Any:
        import grain

        first = self._position * self._chunks.per_batch
        chunks = grain.MapDataset.source(self._chunks)[first:]
        if not self._workers:
            return iter(chunks.to_iter_dataset(grain.ReadOptions(1, 4)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which must be parsed
        chunks = chunks.to_iter_dataset(grain.ReadOptions(0, 0))
        options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=2)
        return iter(chunks.mp_prefetch(options, _start_worker))

    def _answer_broken(self, lines: list[str]) -> None:
        for line in lines:
            if line not in self._broken:
                self._broken.append(line)
                source = self._chunks.source
                datasets.check_broken(self._broken, len(source), repr(source), self._on_error)
                logging.warning("skipped a broken image: %s", line)


def _start_worker(index: int, count: int) -> None:
    """Leaves signals to the run, as Ctrl-C reaches its workers, too, and ends the worker when the
    run was killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end(running: list[Any]) -> None:
    while running:
        running.pop().close()


class _Chunks:
    """Random access to parts of batches, evaluated in the workers."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        rows: range,
        side: int,
        crop: RandomResizedCrop | None,
        shuffle: bool,
        seed: int,
    ):
        self.source, self.batch_size, self.rows = source, batch_size, rows
        self.side, self.crop, self.shuffle, self.seed = side, crop, shuffle, seed
        self.per_batch = math.ceil(len(rows) / CHUNK)
        self.steps_per_epoch = math.ceil(len(source) / batch_size)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, part = divmod(index, self.per_batch)
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = self.rows[part * CHUNK : (part + 1) * CHUNK]
        draws = np.random.default_rng((self.seed, step)).random((self.batch_size, 41))
        chunk = {
            "inputs": np.zeros((len(rows), self.side, self.side, 3), np.uint8),
            "label": np.zeros(len(rows), np.int32),
            "mask": np.zeros(len(rows), bool),
            "broken": [],
        }
        for i, row in enumerate(rows):
            position = batch * self.batch_size + row
            wrapped = position % len(self.source)
            if self.shuffle:
                wrapped = int(epoch_order(self.seed, epoch, len(self.source))[wrapped])
            try:
                chunk["inputs"][i], chunk["label"][i] = self._read(wrapped, draws[row])
                chunk["mask"][i] = position < len(self.source)
            except decode.BrokenImage as error:
                chunk["broken"].append(str(error))
        return chunk

    def _read(self, index: int, draws: np.ndarray) -> tuple[np.ndarray, int]:
        example = self.source[index]
        if not 0 <= example.label < len(self.source.class_names):
            count = len(self.source.class_names)
            raise DataError(f"{example.name}: label {example.label} outside 0..{count - 1}")
        if self.crop is None:
            return decode.decode(example.data, example.name, self.side), example.label
        with decode.opened(example.data, example.name) as image:
            return np.asarray(
                random_resized_crop(image, self.side, self.crop, draws)
            ), example.label


def random_resized_crop(
    image: Image.Image, side: int, crop: RandomResizedCrop, draws: np.ndarray
) -> Image.Image:
    """Crops an RGB square from an opened image that is not decoded yet.

    The box is one of the upright picture, see `decode.to_rgb`.
    """
    width, height = decode.upright_size(image)
    left, top, wide, high = random_box(width, height, crop, draws[:40].reshape(10, 4))
    bicubic = draws[40] < 0.5 if crop.interpolation == "random" else crop.interpolation == "bicubic"
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    # JPEG can be decoded at 1/2, 1/4 or 1/8 size at a fraction of the cost. At least twice the
    # needed size is kept, as in Pillow's thumbnails (reducing_gap): the result is nearly the same.
    stored, scale, shrink = image.size, 1.0, min(wide, high) // (2 * side)
    if shrink > 1 and (drafted := image.draft(None, (stored[0] // shrink, stored[1] // shrink))):
        scale = drafted[1][2] / stored[0]
    image = decode.to_rgb(image)
    if scale == 1:
        return image.crop((left, top, left + wide, top + high)).resize((side, side), resample)
    box = (left * scale, top * scale, (left + wide) * scale, (top + high) * scale)
    return image.resize((side, side), resample, box=box)


def random_box(
    width: int, height: int, crop: RandomResizedCrop, draws: np.ndarray
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the first of ten random boxes that fits in the image, else the
    largest centred box of a valid aspect ratio (as RandomResizedCrop of timm and torchvision)."""
    low, high = crop.aspect
    for area, aspect, x, y in draws.tolist():
        pixels = width * height * (crop.area[0] + area * (crop.area[1] - crop.area[0]))
        ratio = low * (high / low) ** aspect
        w, h = max(1, round(math.sqrt(pixels * ratio))), max(1, round(math.sqrt(pixels / ratio)))
        if w <= width and h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w = min(width, max(1, round(height * high)))
    h = min(height, max(1, round(width / low)))
    return (width - w) // 2, (height - h) // 2, w, h


def _whole(source: Source) -> Source:
    return _whole(source.source) if isinstance(source, Subset) else source


def is_large(source: Source, image_size: int) -> bool:
    """Whether the decoded images would take more than 4 GiB and should be streamed."""
    whole = _whole(source)
    if isinstance(whole, image_folder.Archive):
        return whole.path.stat().st_size > datasets.MEMORY_BYTES
    return len(source) * decode.eval_side(image_size) ** 2 * 3 > datasets.MEMORY_BYTES
