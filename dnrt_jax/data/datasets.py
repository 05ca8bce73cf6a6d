"""Data sets by name, decoded once into uint8 arrays that fit in memory.

digits               scikit-learn's 1,797 images of 8 x 8 x 1, every fifth of a class for test
cifar10, cifar100    a prepared tensorflow-datasets folder or the original archive in DATA_DIR,
                     else downloaded; an image folder of that name serves as well
tfds:NAME            any prepared image classification set of tensorflow-datasets
anything else        DATA_DIR/NAME/{train,val|test}/CLASS/IMAGE, or one archive of that content
"""

import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnrt_jax.data import cache, cifar
from dnrt_jax.data import decode as images
from dnrt_jax.data import image_folder as folder
from dnrt_jax.data import tfds as prepared

SPLITS = ("train", "test")
SKIPPED_AT_MOST = 0.01


class Dataset(NamedTuple):
    images: np.ndarray  # uint8[N, H, W, C]
    labels: np.ndarray  # int32[N], in 0 .. K-1
    class_names: tuple[str, ...]  # K


Source = folder.ImageFolder | folder.Archive | prepared.Prepared


def names() -> tuple[str, ...]:
    """The data sets known by name, beside `tfds:NAME` and whatever lies in DATA_DIR."""
    return ("digits", *cifar.FORMS)


def data_dir(text: str) -> Path:
    """The folder of all data sets: `text` (the field data.dir), else $DATA_DIR, else ./data."""
    return Path(text or os.environ.get("DATA_DIR", "data")).expanduser()


def load(
    name: str,
    data_dir: str | Path,
    split: str = "train",
    *,
    image_size: int,
    imbalance: float = 0,
    on_error: str = "stop",
) -> Dataset:
    """One split in memory. Sizes are kept where all images have the same; images of several sizes
    become squares, ready for the evaluation crop: see `images.fit`, `images.eval_side`.

    Args:
      image_size: what the model will see; used for images of several sizes only.
      imbalance: largest training class by smallest, see `long_tailed`; 0 for the set as it is.
      on_error: "stop" at a broken image, or "skip" up to 1% of the split with one warning.

    Raises:
      FileNotFoundError: no such data set or split, naming the folder and the ways to provide it.
      ConnectionError: a download broke off.
      ValueError: bad arguments, or files that are not what they should be.
    """
    _check("split", split, SPLITS)
    _check("on_error", on_error, ("stop", "skip"))
    dataset = _load(name, Path(data_dir).expanduser(), split, image_size, on_error)
    validate(dataset, f"{name} ({split})")
    return long_tailed(dataset, imbalance) if imbalance and split == "train" else dataset


def _load(name: str, data_dir: Path, split: str, image_size: int, on_error: str) -> Dataset:
    if name == "digits":
        return digits(split)
    if name in cifar.FORMS and (found := cifar.find(name, data_dir)):
        return Dataset(*cifar.load(name, *found, split))
    if (source := find(name, data_dir, split)) is not None:
        where = f"{name} ({split})"
        if not isinstance(source, folder.Archive):
            return decode(source, where, image_size=image_size, on_error=on_error)
        path = cache.path_for(source.path, split, image_size)
        if (cached := cache.read(path)) is not None:
            return Dataset(*cached)
        dataset = decode(source, where, image_size=image_size, on_error=on_error)
        if len(dataset.labels) == len(source):  # nothing skipped, so nothing to warn of next time
            cache.write(path, *dataset)
        return dataset
    if name in cifar.FORMS and cifar.reachable():
        return Dataset(*cifar.load(name, *cifar.download(name, data_dir), split))
    raise FileNotFoundError(_not_found(name, data_dir))


def find(name: str, data_dir: Path, split: str) -> Source | None:
    """The examples of a prepared, image-folder or archived data set, or None where nothing lies.

    Raises:
      FileNotFoundError, ValueError: what lies there cannot be used.
    """
    if not name.removeprefix("tfds:"):
        raise ValueError("the data set's name is empty")
    if (path := prepared.find(name.removeprefix("tfds:"), data_dir)) is not None:
        return prepared.Prepared(path, split)
    if name.startswith("tfds:"):
        return None
    if folder.is_image_folder(data_dir / name):
        return folder.ImageFolder(data_dir / name, split)
    if (path := folder.find_archive(name, data_dir)) is not None:
        return folder.Archive(path, split)
    return None


def digits(split: str) -> Dataset:
    """uint8[N, 8, 8, 1] (0 .. 16 scaled to 0 .. 255); the fifth, tenth, ... of a class is test."""
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    labels = np.asarray(target, np.int32)
    rank = (np.cumsum(np.eye(10, dtype=int)[labels], 0) - 1)[np.arange(labels.size), labels]
    chosen = (rank % 5 == 4) == (split == "test")
    pixels = np.round(np.reshape(pixels, (-1, 8, 8, 1)) * (255 / 16)).astype(np.uint8)
    return Dataset(pixels[chosen], labels[chosen], tuple("0123456789"))


def decode(source: Source, where: str, *, image_size: int, on_error: str) -> Dataset:
    """All examples of `source`, in order.

    Raises:
      ValueError: no images, a broken one, or more than 1% of them with on_error="skip".
    """
    try:
        return _decode(source, where, None, on_error)
    except _SeveralSizes:
        return _decode(source, where, images.eval_side(image_size), on_error)


class _SeveralSizes(Exception):
    pass


def _decode(source: Source, where: str, side: int | None, on_error: str) -> Dataset:
    pixels, labels, broken = None, [], []
    for index in range(len(source)):
        example = source[index]
        try:
            image = images.decode(example.data, example.name, side)
        except images.BrokenImage as error:
            broken.append(str(error))
            check_broken(broken, len(source), where, on_error)
            continue
        if pixels is None:
            pixels = np.empty((len(source), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            raise _SeveralSizes
        pixels[len(labels)] = image
        labels.append(example.label)
    if broken:
        logging.warning("%s: skipped %d broken images, first %s", where, len(broken), broken[0])
    if pixels is None:
        raise ValueError(f"{where}: no images")
    return Dataset(pixels[: len(labels)], np.array(labels, np.int32), source.class_names)


def check_broken(broken: Sequence[str], total: int, where: str, on_error: str) -> None:
    """Raises ValueError unless broken images may be skipped and are few (1%)."""
    if on_error == "stop":
        raise ValueError(f"{broken[-1]}; replace or remove it, or set data.on_error=skip")
    if len(broken) > SKIPPED_AT_MOST * total:
        raise ValueError(
            f"{where}: {len(broken)} of {total} images are broken, more than"
            f" {SKIPPED_AT_MOST:.0%}: first {broken[0]}"
        )


def long_tailed(dataset: Dataset, imbalance: float) -> Dataset:
    """Class i of K keeps its first int(n * imbalance^(-i / (K-1))) images, n the largest class.

    The exponential profile of long-tailed CIFAR (Cui et al., 2019): 20,431, 13,996 and 12,406
    images of CIFAR-10 for 10, 50 and 100.

    Raises:
      ValueError: imbalance below 1, one class only, or a class that would keep nothing.
    """
    classes = len(dataset.class_names)
    if imbalance < 1 or classes < 2:
        raise ValueError(
            f"data.imbalance={imbalance}: needs a ratio from 1 and two classes or more"
        )
    largest = np.bincount(dataset.labels).max()
    kept = []
    for label in range(classes):
        count = int(largest * imbalance ** (-label / (classes - 1)))
        if count == 0:
            raise ValueError(
                f"data.imbalance={imbalance} leaves class {dataset.class_names[label]!r} no image"
                f" of at most {largest}; choose a smaller ratio"
            )
        kept.append(np.flatnonzero(dataset.labels == label)[:count])
    order = np.sort(np.concatenate(kept))
    return Dataset(dataset.images[order], dataset.labels[order], dataset.class_names)


def validate(dataset: Dataset, where: str) -> None:
    """Checks what every source must deliver.

    Raises:
      ValueError: naming `where` and what is wrong: dtypes, shapes, class names, a label outside
        0 .. K-1, no images, a class without images.
    """
    pixels, labels, class_names = dataset
    classes = len(class_names)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        given = f"{pixels.dtype}{list(pixels.shape)}"
        raise ValueError(f"{where}: images are {given} instead of uint8[N, H, W, 1 or 3]")
    if labels.dtype != np.int32 or labels.shape != pixels.shape[:1]:
        given = f"{labels.dtype}{list(labels.shape)}"
        raise ValueError(f"{where}: labels are {given} instead of int32[{len(pixels)}]")
    if repeated := [name for name in class_names if not name or class_names.count(name) > 1]:
        raise ValueError(f"{where}: class name {repeated[0]!r} is empty or not unique")
    if not labels.size:
        raise ValueError(f"{where}: no images")
    if (outside := labels[(labels < 0) | (labels >= classes)]).size:
        raise ValueError(f"{where}: label {outside[0]} outside 0..{classes - 1}")
    if (empty := np.flatnonzero(np.bincount(labels, minlength=classes) == 0)).size:
        raise ValueError(f"{where}: class {class_names[empty[0]]!r} has no image; add some")


def _not_found(name: str, data_dir: Path) -> str:
    nothing = f"data.name={name}: nothing found in {data_dir.absolute()}"
    if not data_dir.is_dir():
        nothing += " (no such folder)"
    if name in cifar.FORMS:
        archives = " or ".join(form.archive for form in cifar.FORMS[name])
        return (
            f"{nothing}, and {cifar.HOST} cannot be reached. Provide one of: a network, to download"
            f" it; a folder {name}/VERSION prepared by tensorflow-datasets; the archive {archives}"
        )
    if name.startswith("tfds:"):
        name = name.removeprefix("tfds:")
        return (
            f"{nothing}: no prepared {name}/VERSION. Prepare it, this once with TensorFlow:"
            " pip install tensorflow importlib_resources && python -c"
            f" \"import tensorflow_datasets as t; t.builder('{name}', file_format='array_record',"
            f" data_dir='{data_dir.absolute()}').download_and_prepare()\""
        )
    there = [path.name for path in data_dir.iterdir()] if data_dir.is_dir() else []
    known = {*names(), *(entry.split(".tar")[0].removesuffix(".zip") for entry in there)}
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; known by name: {', '.join(names())}"
    return (
        f"{nothing}: expected {name}/{{train,val}}/CLASS/IMAGE, an archive of that content"
        f" ({name}{f', {name}'.join(folder.ARCHIVES)}) or a prepared {name}/VERSION{hint}"
    )


def _check(field: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{field}={value!r}: must be one of {', '.join(options)}")
