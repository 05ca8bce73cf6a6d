"""The arrays of a checkpoint as files of Orbax, on a disk or in a bucket.

One process writes them all, from copies in host memory. For a bucket they are files of a temporary
folder before and after, so that every transfer is repeated and verified as those of other objects.
"""

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


def write(folder: AnyPath, arrays: Arrays) -> None:
    """Writes arrays into a folder that does not exist.

    Raises:
      CheckpointError: if Orbax cannot write them, as on a full disk.
      StorageError: if the bucket cannot be written.
    """
    if isinstance(folder, Path):
        try:
            _checkpointer().save(folder.absolute(), args=ocp.args.PyTreeSave(arrays))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} could not be written: {error}") from error
        return
    with tempfile.TemporaryDirectory() as place:
        local = Path(place) / folder.name
        write(local, arrays)
        for name in storage.files(local):
            storage.write(folder / name, storage.read(local / name))


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


def read(folder: Path, names: list[str]) -> Arrays:
    """The arrays in a folder that `write` has written; `names` gives the order."""
    as_numpy = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
    like = dict.fromkeys(names, np.zeros(0))
    args = ocp.args.PyTreeRestore(like, restore_args=as_numpy)
    arrays = _checkpointer().restore(folder.absolute(), args=args)
    return {name: arrays[name] for name in names}  # Orbax changes the order


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer of this process alone: the others need not call it as well."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
