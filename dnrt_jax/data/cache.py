"""Caches the decoded images of an archive in a file next to it, to speed up later starts.

A cache is valid for the size and modification time of its archive. When the archive was replaced,
the old cache is deleted as the new one is written.
"""

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

FOLDER = ".cache"


def path_for(archive: Path, split: str, image_size: int) -> Path:
    """The path of the cache for the current version of `archive`."""
    stat = archive.stat()
    version = f"{stat.st_size:x}-{stat.st_mtime_ns:x}-{image_size}"
    return archive.parent / FOLDER / f"{archive.name}-{split}-{version}.npz"


def read(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None:
    """Reads images, labels and class names; None if the cache is missing or damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"], tuple(map(str, arrays["class_names"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(path: Path, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
    """Writes the cache atomically, then deletes those of older versions of the archive. Does
    nothing if the folder is not writable."""
    part = None
    try:
        if not path.parent.parent.stat().st_mode & 0o222:
            return  # respect read-only folders as root, too
        path.parent.mkdir(exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, images=images, labels=labels, class_names=np.array(class_names))
        os.replace(part, path)
        for other in path.parent.iterdir():
            if other != path and _without_version(other) == _without_version(path):
                other.unlink(missing_ok=True)
    except OSError:
        if part is not None:
            Path(part).unlink(missing_ok=True)


def _without_version(path: Path) -> tuple[str, ...]:
    """The file name without the archive's size and time: (ARCHIVE-SPLIT, IMAGE_SIZE.npz)."""
    name, *_, image_size = path.name.rsplit("-", 3)
    return name, image_size
