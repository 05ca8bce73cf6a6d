"""Draws the inputs of the model: augmented training images and evaluation images of each class.

python -m dnrt_jax.preview --config=configs/X.py --out=grid.png [--config.data.flip=0.5 ...]
"""

from dnrt_jax.runtime import train_extra  # noqa: F401

# isort: split

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from dnrt_jax import tasks
from dnrt_jax.config import Config, validate
from dnrt_jax.config_file import load
from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.process import Parser, split_overrides, user_errors

CLASSES_AT_MOST = 100
ROWS_AT_MOST = 20
CELL = 0.8  # inches
GAP = 0.15  # between training and evaluation, in cells
NAME_AT_MOST = 24  # letters

Batches = Iterator[tuple[np.ndarray, np.ndarray]]  # images u8[B, H, W, C], labels i32[B]


class Row(NamedTuple):
    """Model inputs of one class, denormalised to f32[n, S, S, C] in 0 .. 1.

    If fewer than n images of the class were found, black images fill the row.
    """

    name: str
    training: np.ndarray
    evaluation: np.ndarray


def rows(config: Config) -> list[Row]:
    """Random images of each class, chosen and augmented with `config.seed`.

    Of more than a hundred classes, a hundred are shown.

    Raises:
      UserError: if the data cannot be read or the task has no images.
    """
    task, data = tasks.find(config.task)(config), config.data
    train, test = (task.samples(split, config.seed) for split in ("train", "test"))
    if train is None or test is None:
        raise ConfigError(f"config.task={config.task!r}: has no images to show")
    names = task.class_names
    shown = np.linspace(0, len(names) - 1, min(len(names), CLASSES_AT_MOST)).round().astype(int)
    n_train, n_test = (6, 3) if len(names) <= ROWS_AT_MOST else (2, 1)

    keys = jax.random.split(jax.random.key(config.seed), len(shown) * n_train)
    training = task.preprocess(keys, _collect(train, shown, n_train))
    evaluation = task.eval_preprocess(_collect(test, shown, n_test))
    pixels = (
        np.clip(np.asarray(images) * np.float32(data.std) + np.float32(data.mean), 0, 1)
        for images in (training, evaluation)
    )
    by_class = (np.split(images, len(shown)) for images in pixels)
    return [Row(names[label], *images) for label, *images in zip(shown, *by_class, strict=True)]


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
    """Writes the rows to an image file, in columns of at most ROWS_AT_MOST classes."""
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
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s")
    with user_errors():
        words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        parser = Parser(prog="python -m dnrt_jax.preview", description=__doc__)
        parser.add_argument("--config", required=True, help="the experiment: configs/NAME.py")
        parser.add_argument(
            "--out", type=Path, default=Path("preview.png"), help="output file: .png, .pdf or .svg"
        )
        args = parser.parse_args(words)
        if args.out.suffix.lower() not in (".png", ".pdf", ".svg"):
            parser.error(f"--out={args.out}: its name must end in .png, .pdf or .svg")
        if file := storage.file_in_the_way(args.out.parent):
            parser.error(f"--out={args.out}: {file} is a file, not a folder")
        config = load(args.config, overrides)
        validate(config)
        grid = rows(config)
        draw(grid, _title(config), args.out)
    print(f"{args.out}: {len(grid)} classes")
    return 0


def _title(config: Config) -> str:
    data = config.data
    steps = [f"crop {data.crop}", f"flip {data.flip:g}", data.rand_augment, f"erase {data.erase:g}"]
    return f"{data.name}, {data.image_size} pixels: " + ", ".join(filter(None, steps))


if __name__ == "__main__":
    sys.exit(main())
