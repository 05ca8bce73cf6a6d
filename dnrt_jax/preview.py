"""A picture of what the model sees: each class by its name, training and evaluation side by side.

python -m dnrt_jax.preview --config=configs/X.py --out=grid.png [--config.data.flip=0.5 ...]
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from ml_collections import config_flags

from dnrt_jax import config as schema
from dnrt_jax.config import Config
from dnrt_jax.data import augment, datasets
from dnrt_jax.data import stream as loader
from dnrt_jax.runtime import process as cli

CLASSES_AT_MOST = 100
ROWS_AT_MOST = 20
CELL = 0.8  # inches
GAP = 0.15  # cells between training and evaluation
NAME_AT_MOST = 24  # letters

Batches = Iterator[tuple[np.ndarray, np.ndarray]]  # images u8[B, H, W, C], labels i32[B]


class Row(NamedTuple):
    """Images of one class as the model gets them, scaled back to f32[n, S, S, C] in 0 .. 1.

    A class with less than n images, as far as the preview looked, has black ones in their place.
    """

    name: str
    training: np.ndarray
    evaluation: np.ndarray


def rows(config: Config) -> list[Row]:
    """Images of each class in random order, chosen and augmented by `config.seed`.

    Of many classes a hundred, evenly spaced. Raises DataError as `datasets.load` does, and
    ValueError as the transforms do.
    """
    data = config.data
    train, names, cropped = _batches(config, "train")
    test, _, _ = _batches(config, "test")
    shown = np.linspace(0, len(names) - 1, min(len(names), CLASSES_AT_MOST)).round().astype(int)
    n_train, n_test = (6, 3) if len(names) <= ROWS_AT_MOST else (2, 1)

    augmented = _create(augment.train_transform, data, **({"crop": "none"} if cropped else {}))
    keys = jax.random.split(jax.random.key(config.seed), len(shown) * n_train)
    training = augmented(keys, _collect(train, shown, n_train))
    evaluation = _create(augment.eval_transform, data)(_collect(test, shown, n_test))
    pixels = (
        np.clip(np.asarray(images) * np.float32(data.std) + np.float32(data.mean), 0, 1)
        for images in (training, evaluation)
    )
    by_class = (np.split(images, len(shown)) for images in pixels)
    return [Row(names[label], *images) for label, *images in zip(shown, *by_class, strict=True)]


def _create(transform: Callable[..., Any], data: Config, **changed: Any) -> Any:
    fields = inspect.signature(transform).parameters
    return transform(**{field: data[field] for field in fields} | changed)


def _batches(config: Config, split: str) -> tuple[Batches, tuple[str, ...], bool]:
    """One epoch in random order, class names, whether the loader has cropped the images already."""
    data = config.data
    folder = datasets.data_dir(data.dir)
    source = datasets.find(data.name, folder, split)
    if source is not None and loader.is_large(source, data.image_size):
        cropped = split == "train" and data.crop == "random_resized"
        crop = loader.RandomResizedCrop(data.crop_area, data.crop_aspect, data.interpolation)
        stream = loader.Stream(
            source,
            batch_size=min(loader.CHUNK, len(source)),
            side=data.image_size if split == "train" else data.eval_resize,
            crop=crop if cropped else None,
            shuffle=True,
            seed=config.seed,
            on_error=data.on_error,
        )
        batches = ((b["image"][b["mask"]], b["label"][b["mask"]]) for b in stream.epoch())
        return batches, source.class_names, cropped
    memory = datasets.load(
        data.name,
        folder,
        split,
        image_size=data.image_size,
        imbalance=data.imbalance,
        on_error=data.on_error,
    )
    order = np.random.default_rng(config.seed).permutation(len(memory))
    batches = ((memory.images[[i]], memory.labels[[i]]) for i in order)
    return batches, memory.class_names, False


def _collect(batches: Batches, shown: np.ndarray, each: int) -> np.ndarray:
    """u8[len(shown) * each, H, W, C]: the first `each` images of every class in `shown`."""
    found: dict[int, list[np.ndarray]] = {label: [] for label in shown}
    image = np.zeros(0)
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            if len(found.get(label, range(each))) < each:
                found[label].append(image)
        if all(len(images) == each for images in found.values()):
            break
    black = [np.zeros_like(image)] * each
    return np.stack([image for images in found.values() for image in (images + black)[:each]])


def draw(grid: list[Row], title: str, out: str | Path) -> None:
    """Writes the rows as an image file, in columns of at most ROWS_AT_MOST classes."""
    names = [n if len(n) <= NAME_AT_MOST else n[: NAME_AT_MOST - 1] + "…" for n, _, _ in grid]
    margin = 0.12 * max(max(map(len, names)), 4) + 0.3
    n_train, n_test = len(grid[0].training), len(grid[0].evaluation)
    width = margin + n_train + GAP + n_test
    columns = math.ceil(len(grid) / ROWS_AT_MOST)
    height = math.ceil(len(grid) / columns)

    size = (columns * width + 0.2, height + 1.1)
    figure = Figure(figsize=(CELL * size[0], CELL * size[1]), dpi=120)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(height + 0.1, -1))
    axes.axis("off")
    axes.text(0.1, -0.65, title, va="center", fontsize=11, weight="bold")
    for k, (name, row) in enumerate(zip(names, grid, strict=True)):
        left, top = k // height * width + margin, k % height
        if top == 0:
            axes.text(left, -0.18, "training", va="center", style="italic")
            axes.text(left + n_train + GAP, -0.18, "evaluation", va="center", style="italic")
        axes.text(left - 0.12, top + 0.5, name, ha="right", va="center")
        places = np.arange(n_train + n_test) + GAP * (np.arange(n_train + n_test) >= n_train)
        for place, image in zip(places, (*row.training, *row.evaluation), strict=True):
            x, rgb = left + place, np.broadcast_to(image, (*image.shape[:2], 3))
            extent = (x + 0.02, x + 0.98, top + 0.98, top + 0.02)
            axes.imshow(rgb, extent=extent, aspect="auto")
    axes.set(xlim=(0, size[0]), ylim=(height + 0.1, -1))
    figure.savefig(out)


def main(argv: list[str]) -> None:
    logging.getLogger("jax").setLevel(logging.WARNING)
    with cli.one_line_errors():
        config = CONFIG.value
        if len(argv) > 1 or config is None:
            raise app.UsageError("give --config=configs/NAME.py, as configs/digits.py")
        schema.validate(config)
        if schema.takes_graph(config):
            raise ValueError(f"config.model.name={config.model.name!r}: takes a graph, not images")
        grid = rows(config)
        draw(grid, _title(config), OUT.value)
    print(f"{OUT.value}: {len(grid)} classes")


def _title(config: Config) -> str:
    data = config.data
    steps = [f"crop {data.crop}", f"flip {data.flip:g}", data.rand_augment, f"erase {data.erase:g}"]
    return f"{data.name}, {data.image_size} pixels: " + ", ".join(filter(None, steps))


def _parse(argv: list[str]) -> list[str]:
    with cli.one_line_errors():
        try:
            return flags.FLAGS(argv)
        except AttributeError as error:
            raise ValueError(f"--config: no such field: {error}") from error
        except Exception as error:  # a config file is code: it may raise anything
            raise ValueError(str(error)) from error


if __name__ == "__main__":  # flags are global: defined above they would collide with main.py's
    CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment: configs/NAME.py")
    OUT = flags.DEFINE_string("out", "preview.png", "the picture: .png, .pdf, .svg ...")
    app.run(main, flags_parser=_parse)
