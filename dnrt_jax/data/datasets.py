"""Data sets by name, decoded into uint8 arrays in memory.

digits               scikit-learn's 1,797 images of 8 x 8 x 1; every fifth image of a class is test
cifar10, cifar100    a prepared tensorflow-datasets folder, the original archive or an image folder
                     in DATA_DIR, else downloaded
tfds:NAME            any prepared image classification set of tensorflow-datasets
anything else        DATA_DIR/NAME/{train,val|test}/CLASS/IMAGE, or one archive of that content
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dnrt_jax.data import cache, cifar, classes, decode, image_folder, local_copy, tfds
from dnrt_jax.data.in_memory import Dataset, long_tailed, validate
from dnrt_jax.data.reading import reading
from dnrt_jax.data.source import Source
from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import DataError, DataNotFoundError, did_you_mean
from dnrt_jax.runtime.storage import AnyPath

SPLITS = ("train", "test")
SKIPPED_AT_MOST = 0.01
MEMORY_BYTES = 4 * 2**30  # of images in memory; more are streamed or made smaller


def names() -> tuple[str, ...]:
    """The built-in data sets, in addition to `tfds:NAME` and those in DATA_DIR."""
    return ("digits", *cifar.FORMS)


def data_dir(text: str) -> AnyPath:
    """The folder of the data sets: `text` (the field data.dir), else $DATA_DIR, else ./data. It may
    be in a bucket, gs://BUCKET/PATH."""
    return storage.path(text or os.environ.get("DATA_DIR", "data"))


def local_dir(name: str, text: str) -> Path:
    """As `data_dir`; if that is in a bucket, a local folder with a copy of the data set `name`.

    Raises:
      DataNotFoundError: if the bucket has no such data set.
      DataError: if the copy does not fit on the disk.
      StorageError: if the bucket cannot be read.
    """
    folder = data_dir(text)
    if isinstance(folder, Path) or name == "digits":
        return Path(folder)
    base = name.removeprefix("tfds:").replace(":", "/")
    archives = [f"{base}{suffix}" for suffix in (*image_folder.ARCHIVES, ".npz")]
    originals = [
        place for form in cifar.FORMS.get(name, ()) for place in (form.folder, form.archive)
    ]
    if (copy := local_copy.of(folder, (base, *archives, *originals))) is None:
        raise DataNotFoundError(
            f"data.name={name}: nothing found in {folder}: expected "
            f"{base}/{{train,val}}/CLASS/IMAGE, an archive of that content, a prepared "
            f"{base}/VERSION or {base}.npz"
        )
    return copy


def load(
    name: str,
    data_dir: str | Path,
    split: str = "train",
    *,
    image_size: int,
    imbalance: float = 0,
    on_error: str = "stop",
) -> Dataset:
    """One split in memory. If all images have the same size, it is kept, unless they then take more
    than 4 GiB. Otherwise images become their centre squares, as for the evaluation crop, with a
    warning: see `decode.fit`, `decode.eval_side`. Warns of classes without test images, too.

    Args:
      image_size: input size of the model; used only for images of different sizes.
      imbalance: largest / smallest training class, see `long_tailed`; 0 for the full split.
      on_error: "stop" at an unreadable image, or "skip" up to 1% of the split (at least one).

    Raises:
      DataNotFoundError: if there is no such data set or split, with the ways to provide it.
      DownloadError: if the download failed.
      DataError: if files cannot be read or have unexpected content.
      ValueError: for invalid arguments.
    """
    _check("split", split, SPLITS)
    _check("on_error", on_error, ("stop", "skip"))
    where, train, data_dir = f"{name} ({split})", split == "train", Path(data_dir).expanduser()
    with reading(data_dir):
        dataset = _load(name, data_dir, split, image_size, on_error)
    validate(dataset, where, every_class=train)
    classes.warn(dataset.labels, dataset.class_names, where, train=train)
    return long_tailed(dataset, imbalance) if imbalance and train else dataset


def _load(name: str, data_dir: Path, split: str, image_size: int, on_error: str) -> Dataset:
    if name == "digits":
        return digits(split)
    if name in cifar.FORMS and (found := cifar.find(name, data_dir)):
        return Dataset(*cifar.load(name, *found, split))
    if (source := find(name, data_dir, split)) is not None:
        where = f"{name} ({split})"
        if not isinstance(source, image_folder.Archive):
            return decode_all(source, where, image_size, on_error)
        path = cache.path_for(source.path, split, image_size)
        if (cached := cache.read(path)) is not None:
            return Dataset(*cached)
        dataset = decode_all(source, where, image_size, on_error)
        if len(dataset) == len(source):  # nothing skipped, so nothing to warn of next time
            cache.write(path, dataset.images, dataset.labels, dataset.class_names)
        return dataset
    if name in cifar.FORMS and cifar.reachable():
        return Dataset(*cifar.load(name, *cifar.download(name, data_dir), split))
    raise DataNotFoundError(_not_found(name, data_dir))


def find(name: str, data_dir: Path, split: str) -> Source | None:
    """Opens a tensorflow-datasets folder, image folder or archive; None if there is none.

    Raises:
      DataError: if it cannot be used; DataNotFoundError if it does not have the split.
    """
    if not name.removeprefix("tfds:"):
        raise DataError("the data set's name is empty")
    with reading(data_dir / name):
        if (path := tfds.find(name.removeprefix("tfds:"), data_dir)) is not None:
            return tfds.Prepared(path, split)
        if name.startswith("tfds:"):
            return None
        if image_folder.is_image_folder(data_dir / name):
            return image_folder.ImageFolder(data_dir / name, split)
        if (path := image_folder.find_archive(name, data_dir)) is not None:
            return image_folder.Archive(path, split)
    return None


def digits(split: str) -> Dataset:
    """Images uint8[N, 8, 8, 1], with 0 .. 16 scaled to 0 .. 255; each fifth of a class is test."""
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    labels = np.asarray(target, np.int32)
    rank = (np.cumsum(np.eye(10, dtype=int)[labels], 0) - 1)[np.arange(labels.size), labels]
    chosen = (rank % 5 == 4) == (split == "test")
    pixels = np.round(np.reshape(pixels, (-1, 8, 8, 1)) * (255 / 16)).astype(np.uint8)
    return Dataset(pixels[chosen], labels[chosen], tuple("0123456789"))


def decode_all(source: Source, where: str, image_size: int, on_error: str) -> Dataset:
    """All examples of `source`, in order; arguments as of `load`.

    Raises:
      DataError: if there are no images, or unreadable ones (with on_error="skip", too many).
    """
    side = decode.eval_side(image_size)
    try:
        return _decode(source, where, None, side, on_error)
    except _Squares as reason:
        logging.warning(
            "%s: %s, so each becomes its centre square of %d pixels; data.loader=stream takes "
            "random crops of whole images",
            where,
            reason,
            side,
        )
        return _decode(source, where, side, side, on_error)


class _Squares(Exception):
    """Why images have to become squares."""


def _decode(source: Source, where: str, side: int | None, smallest: int, on_error: str) -> Dataset:
    """Images as squares of `side`, or as they are, if they have one size and can be kept."""
    pixels, labels, broken = None, [], []
    for index in range(len(source)):
        try:
            example = source[index]
            image = decode.decode(example.data, example.name, side)
        except decode.BrokenImage as error:
            broken.append(str(error))
            check_broken(broken, len(source), where, on_error)
            continue
        if pixels is None:
            if image.nbytes * len(source) > MEMORY_BYTES and min(image.shape[:2]) > smallest:
                raise _Squares(f"the images would take more than {MEMORY_BYTES / 2**30:.2g} GiB")
            pixels = np.empty((len(source), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            raise _Squares("the images have several sizes")
        pixels[len(labels)] = image
        labels.append(example.label)
    if broken:
        logging.warning("%s: skipped %d broken images, first %s", where, len(broken), broken[0])
    if pixels is None:
        raise DataError(f"{where}: no images")
    return Dataset(pixels[: len(labels)], np.array(labels, np.int32), source.class_names)


def check_broken(broken: Sequence[str], total: int, where: str, on_error: str) -> None:
    """Raises DataError unless `on_error` is "skip" and at most 1% of the images are broken."""
    if on_error == "stop":
        raise DataError(f"{broken[-1]}; replace or remove it, or set data.on_error=skip")
    if len(broken) > max(1, SKIPPED_AT_MOST * total) or len(broken) == total:
        raise DataError(
            f"{where}: {len(broken)} of {total} images are broken, more than"
            f" {SKIPPED_AT_MOST:.0%}: first {broken[0]}"
        )


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
    if (data_dir / name).is_dir():
        holds = sorted(path.name for path in (data_dir / name).iterdir() if path.name[0] != ".")
        listed = ", ".join(holds[:3]) + (", ..." if len(holds) > 3 else "")
        return (
            f"data.name={name}: {(data_dir / name).absolute()} has no train/CLASS/IMAGE and no "
            f"val/CLASS/IMAGE; it holds {listed or 'nothing'}"
        )
    there = [path.name for path in data_dir.iterdir()] if data_dir.is_dir() else []
    sets = [entry.split(".tar")[0].removesuffix(".zip") for entry in there if entry[0] != "."]
    hint = did_you_mean(name, {*names(), *sets})
    return (
        f"{nothing}: expected {name}/{{train,val}}/CLASS/IMAGE, an archive of that content"
        f" ({name}{f', {name}'.join(image_folder.ARCHIVES)}) or a prepared {name}/VERSION{hint}"
    )


def _check(field: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{field}={value!r}: must be one of {', '.join(options)}")
