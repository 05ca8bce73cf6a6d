"""The arrays of a checkpoint: files of Orbax in a folder, in a bucket one object with all of them.

Orbax gets one vector for each dtype, as each array costs it 0.4 ms of a processor. One process
writes, from copies in host memory. In a bucket each request has its price and its delay: the files
go there as one tar archive, whose transfer is repeated and verified as that of other objects.
"""

import io
import json
import math
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from dnrt_jax.runtime import storage
from dnrt_jax.runtime.errors import CheckpointError
from dnrt_jax.runtime.storage import AnyPath

Arrays = dict[str, np.ndarray]  # by path in the tree of the state
FOLDER, ARCHIVE = "arrays", "arrays.tar"  # on a disk, in a bucket
CHUNK = 8 * 2**20  # bytes that are compressed and written by one thread


def describe(arrays: Arrays | dict[str, jax.Array]) -> dict[str, str]:
    """The dtypes and shapes by name, as "float32[64, 10]"."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def write(folder: AnyPath, arrays: Arrays) -> dict[str, str]:
    """Writes arrays into the folder of a checkpoint; returns the SHA-256 of their files by name.

    Raises:
      CheckpointError: if Orbax cannot write them, as on a full disk.
      StorageError: if the bucket cannot be written.
      WorkdirError: if another run has written the archive meanwhile.
    """
    if isinstance(folder, Path):
        _save(folder / FOLDER, arrays)
        return storage.checksums(folder)
    with tempfile.TemporaryDirectory() as place, io.BytesIO() as archive:
        _save(Path(place) / FOLDER, arrays)
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(Path(place) / FOLDER, FOLDER)
        data = archive.getvalue()
    storage.write(folder / ARCHIVE, data, new=True)
    return {ARCHIVE: storage.sha256(data)}


def _save(folder: Path, arrays: Arrays) -> None:
    vectors = _join(arrays)
    chunks = dict.fromkeys(vectors, ocp.SaveArgs(chunk_byte_size=CHUNK))
    args = ocp.args.PyTreeSave(vectors, save_args=chunks)
    try:
        _checkpointer().save(folder.absolute(), args=args)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error


@contextmanager
def local_copy(folder: AnyPath) -> Iterator[Path]:
    """The folder of a checkpoint, or for one in a bucket a temporary copy of it."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        for name in storage.files(folder):
            (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(place) / name).write_bytes(storage.read(folder / name))
        yield Path(place)


def read(folder: Path, described: dict[str, str]) -> Arrays:
    """The arrays in the folder of a checkpoint, `described` as by `describe`."""
    if (archive := folder / ARCHIVE).exists():  # of a bucket
        with tempfile.TemporaryDirectory() as place:
            with tarfile.open(archive) as tar:
                # The filter against paths that lead elsewhere is new in Python 3.11.4.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(place)
            return read(Path(place), described)
    shapes = {name: _parse(text) for name, text in described.items()}
    dtypes = list(dict.fromkeys(dtype for dtype, _ in shapes.values()))
    as_numpy = dict.fromkeys(dtypes, ocp.RestoreArgs(restore_type=np.ndarray))
    like = dict.fromkeys(dtypes, np.zeros(0))
    args = ocp.args.PyTreeRestore(like, restore_args=as_numpy)
    vectors = _checkpointer().restore((folder / FOLDER).absolute(), args=args)
    arrays, used = {}, dict.fromkeys(dtypes, 0)
    for name, (dtype, shape) in shapes.items():
        start, used[dtype] = used[dtype], used[dtype] + math.prod(shape)
        arrays[name] = vectors[dtype][start : used[dtype]].reshape(shape)
    return arrays


def _join(arrays: Arrays) -> Arrays:
    """All arrays of a dtype as one vector, by dtype; longer than a chunk, filled up to whole ones:
    Orbax's chunks divide a vector, so one of prime length would be cut into single numbers."""
    parts: dict[str, list[np.ndarray]] = {}
    for x in arrays.values():
        parts.setdefault(str(x.dtype), []).append(x.ravel())
    for found in parts.values():
        size, chunk = sum(x.size for x in found), CHUNK // found[0].itemsize
        if size > chunk:
            found.append(np.zeros(-size % chunk, found[0].dtype))
    return {dtype: np.concatenate(found) for dtype, found in parts.items()}


def _parse(described: str) -> tuple[str, list[int]]:
    """("float32", [64, 10]) of "float32[64, 10]"."""
    dtype, _, shape = described.partition("[")
    return dtype, json.loads(f"[{shape}")


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer of this process alone: the others need not call it as well."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
