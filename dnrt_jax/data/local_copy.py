"""Copies of data sets in a bucket on the local disk, shared by the processes of a host.

    ~/.cache/dnrt_jax/data/ID/...    the files of a data set, with their names in the bucket
    ~/.cache/dnrt_jax/data/ID.lock   locked by the processes that use it

Small objects read one by one would starve an accelerator, so a data set is copied before training.
Each file is verified by the CRC32C of the store; an interrupted copy goes on where it was. Before a
tenth of the disk is left, the data sets that were not used for longest are deleted.
"""

import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

from dnrt_jax.runtime import bucket, storage
from dnrt_jax.runtime.bucket import Info
from dnrt_jax.runtime.errors import DataError
from dnrt_jax.runtime.storage import AnyPath

INDEX = ".index.jsonl"  # [name, CRC32C] of the files that are complete
THREADS = 16
KEPT_FREE = 0.1  # of the disk

_in_use: list[IO[str]] = []  # locks that this process holds until it ends


@functools.cache
def of(source: AnyPath, names: tuple[str, ...]) -> Path | None:
    """A local folder with the files and folders `names` of a folder in a bucket, as far as they
    exist there; None if none does. Other processes of this host wait for the copy and share it.

    Raises:
      DataError: if they do not fit on the disk.
      StorageError: if the bucket cannot be read.
    """
    wanted = _wanted(source, names)
    if not wanted:
        return None
    folder = _root() / hashlib.sha256("\n".join([str(source), *names]).encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    use = _lock_of(folder).open("a")
    fcntl.flock(use, fcntl.LOCK_SH)
    _in_use.append(use)
    folder.mkdir(exist_ok=True)
    with (folder / INDEX).open("a+") as index:
        fcntl.flock(index, fcntl.LOCK_EX)
        _copy(source, wanted, folder, index)
    os.utime(folder)
    return folder


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dnrt_jax" / "data"


def _wanted(source: AnyPath, names: tuple[str, ...]) -> dict[str, Info]:
    """What the bucket has, by path relative to `source`."""
    name, prefix = storage.split(source / "_")
    prefix, found = prefix[:-1], {}
    for wanted in names:
        for key, info in bucket.listing(name, prefix + wanted):
            relative = key.removeprefix(prefix)
            if not key.endswith("/") and (relative == wanted or relative.startswith(f"{wanted}/")):
                found[relative] = info
    return found


def _copy(source: AnyPath, wanted: dict[str, Info], folder: Path, index: IO[str]) -> None:
    """Makes the files below `folder` those that are wanted."""
    index.seek(0)
    lines = [line for line in index if line.endswith("\n")]  # the last one may be cut
    index.truncate(sum(len(line.encode()) for line in lines))
    known = dict(map(json.loads, lines))
    for path in folder.rglob("*"):
        if str(path.relative_to(folder)) in known.keys() - wanted.keys():
            path.unlink()
    missing = {
        name: info
        for name, info in wanted.items()
        if known.get(name) != info.crc32c or not (folder / name).is_file()
    }
    size = sum(info.size for info in missing.values())
    if not missing:
        return
    _make_room(size, folder, source)
    logging.info("copying %d files, %.3g GB, of %s to %s", len(missing), size / 1e9, source, folder)

    def copy(name: str) -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        bucket.download(*storage.split(source / name), folder / name, missing[name])
        return name

    with ThreadPoolExecutor(THREADS) as pool:
        for name in pool.map(copy, missing):
            index.write(json.dumps([name, missing[name].crc32c]) + "\n")
            index.flush()


def _make_room(size: int, folder: Path, source: AnyPath) -> None:
    """Deletes the data sets that were not used for longest until `size` bytes fit."""
    others = sorted(
        (path for path in folder.parent.iterdir() if path.is_dir() and path != folder),
        key=lambda path: path.stat().st_mtime,
    )
    while (free := _free(folder)) < size:
        if not others:
            raise DataError(
                f"{source}: {size / 1e9:.3g} GB do not fit in {folder.parent}, where "
                f"{free / 1e9:.3g} GB may be used; set XDG_CACHE_HOME to a folder on a larger disk"
            )
        with _lock_of(others[0]).open("a") as use, suppress(BlockingIOError):
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not while it is in use
            shutil.rmtree(others[0], ignore_errors=True)
        del others[0]


def _free(folder: Path) -> int:
    disk = shutil.disk_usage(folder)
    return disk.free - int(KEPT_FREE * disk.total)
