"""The arrays of a checkpoint as files of Orbax, on a disk or in a bucket.

Orbax gets one vector for each dtype, as each array costs it 0.4 ms of a processor. One process
writes, from copies in host memory. For a bucket the files lie in a temporary folder before
and after, so that every transfer is repeated and verified as those of other objects.
"""

import json
import math
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
CHUNK = 8 * 2**20  # bytes that are compressed and written by one thread


def describe(arrays: Arrays | dict[str, jax.Array]) -> dict[str, str]:
    """The dtypes and shapes by name, as "float32[64, 10]"."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def write(folder: AnyPath, arrays: Arrays) -> dict[str, str]:
    """Writes arrays into a folder that does not exist; returns the SHA-256 of its files by name.

    Raises:
      CheckpointError: if Orbax cannot write them, as on a full disk.
      StorageError: if the bucket cannot be written.
    """
    if isinstance(folder, Path):
        try:
            vectors = _join(arrays)
            chunks = dict.fromkeys(vectors, ocp.SaveArgs(chunk_byte_size=CHUNK))
            args = ocp.args.PyTreeSave(vectors, save_args=chunks)
            _checkpointer().save(folder.absolute(), args=args)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} could not be written: {error}") from error
        return storage.checksums(folder)
    with tempfile.TemporaryDirectory() as place:
        local = Path(place) / folder.name
        found = write(local, arrays)
        for name in found:
            storage.write(folder / name, storage.read(local / name))
    return found


@contextmanager
def local_copy(folder: AnyPath) -> Iterator[Path]:
    """The folder, or for one in a bucket a temporary copy of it."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        local = Path(place) / folder.name
        for name in storage.files(folder):
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).write_bytes(storage.read(folder / name))
        yield local


def read(folder: Path, described: dict[str, str]) -> Arrays:
    """The arrays in a folder that `write` has written, `described` as by `describe`."""
    shapes = {name: _parse(text) for name, text in described.items()}
    dtypes = list(dict.fromkeys(dtype for dtype, _ in shapes.values()))
    as_numpy = dict.fromkeys(dtypes, ocp.RestoreArgs(restore_type=np.ndarray))
    like = dict.fromkeys(dtypes, np.zeros(0))
    args = ocp.args.PyTreeRestore(like, restore_args=as_numpy)
    vectors = _checkpointer().restore(folder.absolute(), args=args)
    arrays, used = {}, dict.fromkeys(dtypes, 0)
    for name, (dtype, shape) in shapes.items():
        start, used[dtype] = used[dtype], used[dtype] + math.prod(shape)
        arrays[name] = vectors[dtype][start : used[dtype]].reshape(shape)
    return arrays


def _join(arrays: Arrays) -> Arrays:
    """All arrays of a dtype as one vector, by dtype."""
    parts: dict[str, list[np.ndarray]] = {}
    for x in arrays.values():
        parts.setdefault(str(x.dtype), []).append(x.ravel())
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
