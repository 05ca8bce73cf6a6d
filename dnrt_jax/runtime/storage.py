"""Files on a local disk, or in a bucket of Google Cloud Storage: what differs between the two.

A path is a pathlib.Path, or for gs://BUCKET/PATH an etils.epath.Path with the same operators;
`path` makes either. No client of buckets is imported for local paths.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dnrt_jax.runtime import bucket
from dnrt_jax.runtime.errors import StorageError, WorkdirError

if TYPE_CHECKING:
    from etils import epath

AnyPath: TypeAlias = "Path | epath.Path"
SCHEME = "gs://"


def path(text: "str | AnyPath") -> AnyPath:
    """The path of a text; a leading ~ is expanded.

    Raises:
      StorageError: for a URL other than gs://BUCKET/PATH.
    """
    text = os.fspath(text)
    if "://" not in text:
        return Path(text).expanduser()
    if not text.startswith(SCHEME) or not text.removeprefix(SCHEME).strip("/"):
        raise StorageError(f"{text}: give a local path or gs://BUCKET/PATH")
    from etils import epath

    return epath.Path(text)


def is_remote(path: AnyPath) -> bool:
    """Whether the path is in a bucket."""
    return not isinstance(path, Path)


def is_dir(path: AnyPath) -> bool:
    """Whether the path is a folder; in a bucket, whether any object is below it."""
    if isinstance(path, Path):
        return path.is_dir()
    return any(True for _ in bucket.listing(*_folder(path), at_most=1))


def is_file(path: AnyPath) -> bool:
    if isinstance(path, Path):
        return path.is_file()
    try:
        bucket.info(*split(path))
    except FileNotFoundError:
        return False
    return True


def read(path: AnyPath) -> bytes:
    """The content of a file.

    Raises:
      FileNotFoundError: if there is none.
      OSError: if it cannot be read.
    """
    return path.read_bytes() if isinstance(path, Path) else bucket.read(*split(path))


def write(path: AnyPath, data: bytes, *, new: bool = False) -> None:
    """Replaces a file as a whole: it holds the old or the new content at any time. Its folder must
    exist. One that must be `new` in a bucket replaces none.

    Raises:
      OSError: if it cannot be written.
      WorkdirError: if another run has written what must be new.
    """
    if not new or isinstance(path, Path):
        write_all({path: data})
        return
    try:
        bucket.write(*split(path), data, "0")
    except FileExistsError:  # or it is ours, and the answer was lost
        if bucket.info(*split(path)).crc32c != bucket.crc32c(data):
            raise WorkdirError(
                f"{path}: another run has written it; choose another --workdir"
            ) from None


def write_all(contents: "Mapping[AnyPath, bytes]") -> None:
    """Replaces files of one folder, each as a whole; on a disk none of them if one fails.

    Raises:
      OSError: if one cannot be written.
    """
    besides: list[tuple[Path, Path]] = []
    try:
        for path, data in contents.items():
            if not isinstance(path, Path):
                bucket.write(*split(path), data)
                continue
            besides.append((path.with_name(f"{path.name}.tmp"), path))
            with besides[-1][0].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for beside, path in besides:
            beside.replace(path)
    finally:
        for beside, _ in besides:
            beside.unlink(missing_ok=True)


def make_folder(path: AnyPath) -> None:
    """Makes a folder with its parents, if need be; a bucket has none."""
    if isinstance(path, Path):
        path.mkdir(parents=True, exist_ok=True)


def file_in_the_way(folder: AnyPath) -> Path | None:
    """The file because of which `folder` cannot be made, at its path or above; None if it can."""
    places = [folder, *folder.parents] if isinstance(folder, Path) else []
    return next((place for place in places if place.is_file()), None)


def files(folder: AnyPath) -> list[str]:
    """The names of all files below a folder, relative to it, sorted; none if it does not exist."""
    if isinstance(folder, Path):
        found = (path for path in folder.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(folder)) for path in found)
    return sorted(crc32c(folder))


def crc32c(folder: AnyPath) -> dict[str, str]:
    """The CRC32C that a bucket has of the files below a folder, by their relative names."""
    name, prefix = _folder(folder)
    return {
        key.removeprefix(prefix): info.crc32c
        for key, info in bucket.listing(name, prefix)
        if not key.endswith("/")  # a folder made in the console
    }


def checksums(folder: AnyPath) -> dict[str, str]:
    """The SHA-256 of all files below a folder, which are read, by their relative names."""
    return {name: sha256(read(folder / name)) for name in files(folder)}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def remove_file(path: AnyPath) -> None:
    """Deletes a file, if it exists."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    else:
        bucket.delete(*split(path))


def remove_folder(path: AnyPath) -> None:
    """Deletes a folder with all below it, if it exists."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    name, prefix = _folder(path)
    for key, _ in bucket.listing(name, prefix):
        bucket.delete(name, key)


def split(path: AnyPath) -> tuple[str, str]:
    """(bucket, key) of an object."""
    name, _, key = os.fspath(path).removeprefix(SCHEME).partition("/")
    return name, key


def _folder(path: AnyPath) -> tuple[str, str]:
    """(bucket, prefix) of a folder."""
    name, key = split(path)
    return name, f"{key}/" if key else ""
