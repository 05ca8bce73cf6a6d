"""A split as arrays in memory, its validation, and long-tailed subsets."""

import logging
from dataclasses import dataclass

import numpy as np

from dnrt_jax.data import classes
from dnrt_jax.runtime.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split; `len()` is the number of images."""

    images: np.ndarray  # u8[N, H, W, C]
    labels: np.ndarray  # i32[N], in 0 .. K-1
    class_names: tuple[str, ...]  # K

    @property
    def channels(self) -> int:
        return self.images.shape[-1]

    def subset(self, indices: np.ndarray) -> "Dataset":
        """The images at `indices` i32[n], in that order."""
        return Dataset(self.images[indices], self.labels[indices], self.class_names)

    def __len__(self) -> int:
        return len(self.images)


def long_tailed(dataset: Dataset, imbalance: float) -> Dataset:
    """Keeps the first int(n * imbalance^(-i / (K-1))) images of class i, n the largest class.

    The exponential profile of long-tailed CIFAR (Cui et al., 2019): 20,431, 13,996 and 12,406
    images of CIFAR-10 for 10, 50 and 100.

    Raises:
      DataError: for an imbalance below 1, a single class, or a class that would be empty.
    """
    count = len(dataset.class_names)
    if imbalance < 1 or count < 2:
        raise DataError(f"data.imbalance={imbalance}: needs a ratio from 1 and two classes or more")
    largest = np.bincount(dataset.labels).max()
    kept = []
    for label in range(count):
        size = int(largest * imbalance ** (-label / (count - 1)))
        if size == 0:
            raise DataError(
                f"data.imbalance={imbalance} leaves class {dataset.class_names[label]!r} no image"
                f" of at most {largest}; choose a smaller ratio"
            )
        kept.append(np.flatnonzero(dataset.labels == label)[:size])
        if len(kept[-1]) < size:
            logging.warning(
                "data.imbalance=%g: class %r has only %d of the %d images that the profile wants",
                imbalance,
                dataset.class_names[label],
                len(kept[-1]),
                size,
            )
    return dataset.subset(np.sort(np.concatenate(kept)))


def validate(dataset: Dataset, where: str, *, every_class: bool = True) -> None:
    """Validates a data set from any source.

    Args:
      where: names the split in messages.
      every_class: whether each class must have an image, as for training.

    Raises:
      DataError: for wrong dtypes, shapes or class names, a label outside 0 .. K-1, no images, or
        a class without images.
    """
    pixels, labels, class_names = dataset.images, dataset.labels, dataset.class_names
    count = len(class_names)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        given = f"{pixels.dtype}{list(pixels.shape)}"
        raise DataError(f"{where}: images are {given} instead of uint8[N, H, W, 1 or 3]")
    if labels.dtype != np.int32 or labels.shape != pixels.shape[:1]:
        given = f"{labels.dtype}{list(labels.shape)}"
        raise DataError(f"{where}: labels are {given} instead of int32[{len(pixels)}]")
    if repeated := [name for name in class_names if not name or class_names.count(name) > 1]:
        raise DataError(f"{where}: class name {repeated[0]!r} is empty or not unique")
    if not labels.size:
        raise DataError(f"{where}: no images")
    if (outside := labels[(labels < 0) | (labels >= count)]).size:
        raise DataError(f"{where}: label {outside[0]} outside 0..{count - 1}")
    if every_class and (absent := classes.absent(labels, class_names)):
        raise DataError(
            f"{where}: class {absent[0]!r} has no image ({len(absent)} such); give it images, or"
            " remove the class"
        )
