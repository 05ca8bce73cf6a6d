"""The streaming loader against a torch DataLoader with Pillow: JPEG files to 224-pixel crops.

The DataLoader also flips and normalises images in its workers, as with torchvision's transforms.
Our loader returns uint8 images; flip and normalisation run on the device, see `benchmark augment`.
"""

import argparse
import itertools
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnrt_jax.benchmark.timing import Result, compare, interleaved
from dnrt_jax.data import datasets
from dnrt_jax.data.stream import RandomResizedCrop, Stream
from dnrt_jax.runtime.errors import ConfigError

SIZE = (500, 375)  # the most frequent size in ImageNet
SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Images per worker that are read before timing: the loader prefetches up to 200 per worker,
# which the workers of the other side refill at the same time.
LEAD = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    workers = os.cpu_count() or 1
    parser.add_argument(
        "--workers", type=int, default=workers, help="decoder processes; 0 uses a thread"
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--files", type=int, default=256, help="JPEG files, generated")
    parser.add_argument("--batches", type=int, default=16, help="batches per round and side")


def run(args: argparse.Namespace) -> Iterator[Result]:
    if args.workers < 0 or args.files < args.batch_size:
        raise ConfigError("loader: needs --workers from 0 and --files at least --batch_size")
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "photos" / "train", args.files)
        source = datasets.find("photos", Path(folder), "train")
        assert source is not None
        yield from measure(source, args.workers, args.batch_size, args.batches, args.rounds)


def write_photos(root: Path, count: int) -> None:
    """Two classes of JPEG files of about 100 kB: smooth patterns with noise."""
    rng = np.random.default_rng(0)
    x, y = (grid / max(SIZE) for grid in np.meshgrid(*map(np.arange, SIZE)))
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
    for i in range(count):
        waves = np.sin(np.multiply.outer(x, rng.uniform(1, 9, 3)) + rng.uniform(0, 6, 3))
        waves *= np.cos(np.multiply.outer(y, rng.uniform(1, 9, 3)) + rng.uniform(0, 6, 3))
        pixels = 128 + 90 * waves + rng.normal(0, 18, waves.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(root / "ab"[i % 2] / f"{i:05}.jpg", quality=90)


def measure(
    source: datasets.Source, workers: int, batch_size: int, batches: int, rounds: int
) -> Iterator[Result]:
    """Rows: images per second, per worker and, where it can be read, per second of CPU time."""
    stream = Stream(
        source,
        batch_size=batch_size,
        side=SIDE,
        crop=RandomResizedCrop(interpolation="bilinear"),
        shuffle=True,
        workers=workers,
    )
    lead = math.ceil(LEAD * max(workers, 1) / batch_size)
    with closing(stream):
        sides = {"ours": timed_batches(stream, lead, batches)}
        if find_spec("torch"):
            sides["other"] = timed_batches(
                torch_batches(source, workers, batch_size), lead, batches
            )
        else:
            print(
                "torch is not installed, so only our loader is measured: pip install torch",
                file=sys.stderr,
            )
        measured = interleaved(sides, rounds)
    rates = {name: batches * batch_size / values for name, values in measured.items()}
    units = ["images/s", "images/CPU s"] if sys.platform == "linux" else ["images/s"]
    for column, unit in enumerate(units):
        yield compare(f"{workers} workers", unit, *(rate[:, column] for rate in rates.values()))
    each = (rate[:, 0] / max(workers, 1) for rate in rates.values())
    yield compare(f"{workers} workers", "images/s/worker", *each)


def timed_batches(stream: Iterator[Any], lead: int, batches: int) -> Callable[[], list[float]]:
    """A side that returns wall time in seconds and, on Linux, CPU time of all its processes.

    The first `lead` batches are not timed, see LEAD.
    """

    def advance(count):
        for _ in itertools.islice(stream, count):
            pass

    def side():
        advance(lead)
        start = _clocks()
        advance(batches)
        return [now - then for now, then in zip(_clocks(), start, strict=True)]

    return side


def _clocks() -> list[float]:
    if sys.platform != "linux":
        return [time.perf_counter()]
    # The clock id of another process's CPU time on Linux, as from clock_getcpuclockid(3).
    workers = (~child.pid << 3 | 2 for child in multiprocessing.active_children() if child.pid)
    return [time.perf_counter(), time.process_time() + sum(map(time.clock_gettime, workers))]


class Photos:
    """A torch data set with Pillow, equivalent to torchvision's RandomResizedCrop,
    RandomHorizontalFlip, ToTensor and Normalize."""

    def __init__(self, source: datasets.Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch  # pyright: ignore[reportMissingImports]

        path, _, label = self.source[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        left, top, width, height = _random_box(*image.size)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        pixels = pixels.to(torch.float32).div(255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return pixels.sub_(mean).div_(std), label


def _random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop's box: 8 to 100% of the area, width / height from 3/4 to 4/3."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def torch_batches(source: datasets.Source, workers: int, batch_size: int) -> Iterator[Any]:
    """Infinite batches of a DataLoader; each a tensor f32[B, 3, 224, 224] and labels i64[B]."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)  # as in its workers; spinning idle threads would count as CPU time
    options = {}
    if workers:  # forking after JAX has started threads may deadlock
        options = {"multiprocessing_context": "spawn", "persistent_workers": True}
    batches: Any = DataLoader(
        Photos(source),  # pyright: ignore[reportArgumentType] - a data set by its methods
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        **options,
    )
    while True:
        yield from batches
