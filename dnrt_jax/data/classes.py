"""Checks which classes of a split have images."""

import logging
from functools import cache

import numpy as np

NAMED = 5


def absent(labels: np.ndarray, class_names: tuple[str, ...]) -> list[str]:
    """The names of the classes without labels."""
    present = set(np.unique(labels).tolist())
    return [name for label, name in enumerate(class_names) if label not in present]


def warn(labels: np.ndarray, class_names: tuple[str, ...], where: str, *, train: bool) -> None:
    """Warns once about unusual but valid classes of the split `where`."""
    if train and len(class_names) == 1:
        _warn_once(f"{where}: only one class: nothing to learn")
    if missing := absent(labels, class_names):
        names = ", ".join(map(repr, missing[:NAMED]))
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        _warn_once(
            f"{where}: no image of {len(missing)} of {len(class_names)} classes: {names}{more}"
        )


@cache  # a split is read more than once in a run
def _warn_once(message: str) -> None:
    logging.warning(message)
