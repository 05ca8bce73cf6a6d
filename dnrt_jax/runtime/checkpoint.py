"""Verified checkpoints, on a disk or in a bucket, written by the first process of a run.

    checkpoints/STEP/arrays/...      files of Orbax with all arrays; in a bucket arrays.tar of them
    checkpoints/STEP/manifest.json   written last, as a whole: checksums of the files, the arrays'
                                     paths (params/head/kernel), dtypes and shapes, the config,
                                     versions, state of the training loop

Orbax does not detect corrupted files or fall back to an older step. Here, a step without a valid
manifest is ignored, and arrays are restored only if their files match it exactly. In a bucket the
manifest also holds the CRC32C that the store computes of what it has, so that a checkpoint is
verified without reading it back.
"""

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import dnrt_jax
from dnrt_jax.runtime import array_files, storage
from dnrt_jax.runtime.array_files import Arrays, describe
from dnrt_jax.runtime.errors import CheckpointError
from dnrt_jax.runtime.storage import AnyPath

MANIFEST = "manifest.json"
FORMAT = 2  # of what `array_files` writes; 1 had each array by itself


class Restored(NamedTuple):
    state: Any
    step: int
    extra: dict[str, Any]  # as passed to `save`
    config: str


def steps(folder: AnyPath) -> list[int]:
    """The steps that have a manifest, in increasing order; not verified."""
    return _steps(storage.files(folder))


def _steps(names: list[str]) -> list[int]:
    found = (name.split("/") for name in names)
    return sorted(int(parts[0]) for parts in found if parts[1:] == [MANIFEST])


def to_host(state: Any) -> Arrays:
    """A copy of all arrays; empty in processes other than the first. All must call it together."""
    arrays = {}
    for name, x in _flatten(state).items():
        if not (x.is_fully_addressable or x.is_fully_replicated):
            x = _gather(NamedSharding(x.sharding.mesh, PartitionSpec()))(x)
        if jax.process_index() == 0:
            x = x if x.is_fully_addressable else x.addressable_data(0)
            arrays[name] = np.array(x, order="C")  # a copy: np.asarray may be the buffer itself
    return arrays


def _gather(whole: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=whole)


def save(folder: AnyPath, state: Any, step: int, *, config: str, extra: dict[str, Any]) -> None:
    """Saves and verifies the checkpoint of `step`. All processes must call it together.

    Raises: as `write`.
    """
    arrays = to_host(state)
    if jax.process_index() == 0:
        write(folder, arrays, step, config=config, extra=extra)


def write(
    folder: AnyPath,
    arrays: Arrays,
    step: int,
    *,
    config: str,
    extra: dict[str, Any],
    before: Callable[[], None] = lambda: None,
) -> None:
    """Writes and verifies the checkpoint of `step`; `before` is called before its manifest.

    Raises:
      CheckpointError: if Orbax cannot write, or what is stored differs from what was written.
      WorkdirError: in a bucket, if another run has taken the folder over and saves the same step.
      OSError: errors of the file system or the bucket.
    """
    target = folder / str(step)
    storage.remove_folder(target)  # remains of an interrupted save
    storage.make_folder(target)
    files = array_files.write(target, arrays)
    manifest = {
        "format": FORMAT,
        "step": step,
        "tree": describe(arrays),
        "files": files,
        "config": config,
        "extra": extra,
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "flax", "optax")}
        | {"dnrt_jax": dnrt_jax.__version__},
    }
    if storage.is_remote(folder):
        manifest["crc32c"] = storage.crc32c(target)
    manifest["sha256"] = _digest(manifest)
    before()
    storage.write(target / MANIFEST, json.dumps(manifest, indent=1).encode(), new=True)
    verify(folder, step)


def verify(folder: AnyPath, step: int) -> dict[str, Any]:
    """Verifies all files of `step` and returns the manifest.

    In a bucket, compares the checksums that the store has of the files; elsewhere reads them.

    Raises:
      CheckpointError: naming the files that are damaged, missing or unexpected.
    """
    manifest, place = _manifest(folder, step), folder / str(step)
    if storage.is_remote(folder) and "crc32c" in manifest:
        seen, wanted = storage.crc32c(place), manifest["crc32c"]
    else:
        seen, wanted = storage.checksums(place), manifest["files"]
    _compare(seen, wanted, place)
    return manifest


def restore(folder: AnyPath, target: Any, step: int | None = None) -> Restored | None:
    """Restores `step`, or the newest intact checkpoint; None if there is no checkpoint.

    Args:
      target: a tree of arrays or jax.ShapeDtypeStruct with shardings, to be matched; None to get a
        flat dict of numpy arrays by path, as "params/head/kernel".

    Raises:
      CheckpointError: if `step` is given and damaged, if all checkpoints are damaged, or if the
        tree, shapes or dtypes differ from `target`, listing the differences.
    """
    candidates = [step] if step is not None else steps(folder)[::-1]
    for candidate in candidates:
        try:
            manifest = _manifest(folder, candidate)
            arrays = _arrays(folder / str(candidate), manifest)
        except CheckpointError as error:
            if candidate == candidates[-1]:
                raise
            logging.warning("%s; falling back to an older one", error)
            continue
        state = arrays if target is None else _placed(arrays, target, folder / str(candidate))
        return Restored(state, manifest["step"], manifest["extra"], manifest["config"])
    return None


def newest_config(folder: AnyPath) -> str | None:
    """The config of the newest intact checkpoint; None if there is no checkpoint.

    Raises:
      CheckpointError: if all are damaged.
    """
    for step in (candidates := steps(folder)[::-1]):
        try:
            return verify(folder, step)["config"]
        except CheckpointError:
            if step == candidates[-1]:
                raise
    return None


def keep(folder: AnyPath, newest: int, step: int, also: int | None = None) -> None:
    """Deletes all checkpoints but the `newest` last ones up to `step` and that of step `also`.

    Also deletes incomplete saves and checkpoints newer than `step`, the one just saved: they are
    damaged, or the run would have resumed from them.
    """
    names = storage.files(folder)
    known = [known for known in _steps(names) if known <= step]
    kept = {str(kept) for kept in [*known[-newest:], also]}
    for name in {name.split("/")[0] for name in names if "/" in name} - kept:
        # The manifest first: an interrupted deletion then leaves an incomplete save.
        storage.remove_file(folder / name / MANIFEST)
        storage.remove_folder(folder / name)


def _manifest(folder: AnyPath, step: int) -> dict[str, Any]:
    path = folder / str(step) / MANIFEST
    try:
        manifest = json.loads(storage.read(path))
        valid = manifest.pop("sha256") == _digest(manifest)
    except FileNotFoundError:
        known = ", ".join(map(str, steps(folder))) or "none"
        raise CheckpointError(
            f"{folder}: no checkpoint of step {step}; there are: {known}"
        ) from None
    except (ValueError, KeyError, AttributeError):
        valid, manifest = False, {}
    if not valid:
        raise CheckpointError(f"checkpoint of step {step} is damaged: {path}")
    if (found := manifest.get("format", 1)) != FORMAT:
        raise CheckpointError(
            f"{path}: its format is {found}, this dnrt_jax has {FORMAT}; start the run anew, or go "
            f"on with the dnrt_jax that wrote it ({manifest['versions']['dnrt_jax']})"
        )
    return manifest


def _arrays(place: AnyPath, manifest: dict[str, Any]) -> Arrays:
    """The arrays of a checkpoint, verified."""
    with array_files.local_copy(place) as folder:
        _compare(storage.checksums(folder), manifest["files"], place)
        return array_files.read(folder, manifest["tree"])


def _compare(seen: dict[str, str], wanted: dict[str, str], place: AnyPath) -> None:
    names = (seen.keys() | wanted.keys()) - {MANIFEST}
    bad = sorted(name for name in names if seen.get(name) != wanted.get(name))
    if bad:
        raise CheckpointError(
            f"checkpoint of step {place.name} is damaged: {', '.join(bad)} in {place}"
        )


def _placed(arrays: Arrays, target: Any, place: AnyPath) -> Any:
    """The tree `target` with the values of `arrays`."""
    wanted, saved = describe(_flatten(target)), describe(arrays)
    differences = [
        f"{name}: {saved.get(name, 'absent')}, the run has {wanted.get(name, 'nothing')}"
        for name in sorted(saved.keys() | wanted)
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        shown = "; ".join(differences[:5]) + (" ..." if len(differences) > 5 else "")
        raise CheckpointError(f"{place}: {len(differences)} arrays differ: {shown}")
    leaves = [
        jax.make_array_from_callback(like.shape, like.sharding, arrays[name].__getitem__)
        for name, like in _flatten(target).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _flatten(tree: Any) -> dict[str, Any]:
    """Arrays by path, in the order of the tree, so that files do not depend on Python classes."""
    leaves = jax.tree.leaves_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
