"""Arrays kept beside the archive that they were decoded from, so that a second start is quick.

A cache belongs to the archive as it is, by size and time of change. Of an archive that was replaced
the old one is removed when the new one is written.
"""

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

FOLDER = ".cache"


def path_for(archive: Path, split: str, image_size: int) -> Path:
    """Where the arrays of `archive` as it is now belong; another archive gets another name."""
    stat = archive.stat()
    version = f"{stat.st_size:x}-{stat.st_mtime_ns:x}-{image_size}"
    return archive.parent / FOLDER / f"{archive.name}-{split}-{version}.npz"


def read(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None:
    """Images, labels and class names, or None if they are missing or damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"], tuple(map(str, arrays["class_names"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(path: Path, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
    """Writes beside and renames, then removes what was kept of the same split and image size while
    the archive was another; where the folder cannot be written, there is no cache."""
    part = None
    try:
        if not path.parent.parent.stat().st_mode & 0o222:
            return  # read-only is respected by root too, whom the system lets write
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
    """The name less the archive's size and time: (ARCHIVE-SPLIT, IMAGE_SIZE.npz)."""
    name, *_, image_size = path.name.rsplit("-", 3)
    return name, image_size
