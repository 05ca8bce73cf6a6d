"""Verified checkpoints: Orbax writes the arrays, a manifest holds their checksums.

    checkpoints/STEP/arrays/...      Orbax, written by all processes
    checkpoints/STEP/manifest.json   written last, atomically: SHA-256 of every file, the tree,
                                     the config, versions and the state of the training loop

Orbax does not detect corrupted files or fall back to an older step. Here, a step without a valid
manifest is ignored, and files are restored only if they match it exactly.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import dnrt_jax
from dnrt_jax.runtime.errors import CheckpointError

ARRAYS, MANIFEST = "arrays", "manifest.json"


class Restored(NamedTuple):
    state: Any
    step: int
    extra: dict[str, Any]  # as passed to `save`
    config: str


def steps(folder: Path) -> list[int]:
    """The steps that have a manifest, in increasing order; not verified."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{MANIFEST}"))


def save(folder: Path, state: Any, step: int, *, config: str, extra: dict[str, Any]) -> None:
    """Writes and verifies the checkpoint of `step`. All processes must call it together.

    Raises:
      CheckpointError: if the files on disk differ from what was written, as on a full disk.
      OSError: errors of the file system.
    """
    target = folder / str(step)
    arrays = _flatten(state)
    if jax.process_index() == 0:
        shutil.rmtree(target, ignore_errors=True)  # remains of an interrupted save
        target.mkdir(parents=True)
    _barrier("made")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((target / ARRAYS).absolute(), arrays)
    except (OSError, ValueError) as error:  # raised by Orbax on a full disk, among others
        raise CheckpointError(f"{target} could not be written: {error}") from error
    _barrier("written")
    if jax.process_index() == 0:
        manifest = {
            "step": step,
            "tree": _describe(arrays),
            "files": _checksums(target / ARRAYS),
            "config": config,
            "extra": extra,
            "versions": {p: importlib.metadata.version(p) for p in ("jax", "flax", "optax")}
            | {"dnrt_jax": dnrt_jax.__version__},
        }
        manifest["sha256"] = _digest(manifest)
        write_atomically(target / MANIFEST, json.dumps(manifest, indent=1))
        verify(folder, step)
    _barrier("verified")


def verify(folder: Path, step: int) -> dict[str, Any]:
    """Verifies the checksums of all files of `step` and returns the manifest.

    Raises:
      CheckpointError: naming the files that are damaged, missing or unexpected.
    """
    path = folder / str(step) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
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
    seen, wanted = _checksums(path.parent / ARRAYS), manifest["files"]
    bad = sorted(name for name in seen.keys() | wanted if seen.get(name) != wanted.get(name))
    if bad:
        raise CheckpointError(f"checkpoint of step {step} is damaged: {', '.join(bad)}")
    return manifest


def restore(folder: Path, target: Any, step: int | None = None) -> Restored | None:
    """Restores `step`, or the newest intact checkpoint; None if there is no checkpoint.

    Args:
      target: a tree of arrays or jax.ShapeDtypeStruct with shardings, to be matched; None to get a
        flat dict of all arrays by path, as "params/head/kernel", on the first device.

    Raises:
      CheckpointError: if `step` is given and damaged, if all checkpoints are damaged, or if the
        tree, shapes or dtypes differ from `target`, listing the differences.
    """
    candidates = [step] if step is not None else steps(folder)[::-1]
    for candidate in candidates:
        try:
            manifest = verify(folder, candidate)
        except CheckpointError as error:
            if candidate == candidates[-1]:
                raise
            logging.warning("%s; falling back to an older one", error)
            continue
        return _load(folder / str(candidate), target, manifest)
    return None


def newest_config(folder: Path) -> str | None:
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


def _load(path: Path, target: Any, manifest: dict[str, Any]) -> Restored:
    target = _as_saved(manifest["tree"]) if target is None else target
    wanted, saved = _describe(_flatten(target)), manifest["tree"]
    differences = [
        f"{name}: {saved.get(name, 'absent')}, the run has {wanted.get(name, 'nothing')}"
        for name in sorted(saved.keys() | wanted)
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        shown = "; ".join(differences[:5]) + (" ..." if len(differences) > 5 else "")
        raise CheckpointError(f"{path}: {len(differences)} arrays differ: {shown}")
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore((path / ARRAYS).absolute(), _flatten(target))
    leaves = [arrays[name] for name in _flatten(target)]  # Orbax changes the order
    state = jax.tree.unflatten(jax.tree.structure(target), leaves)
    return Restored(state, manifest["step"], manifest["extra"], manifest["config"])


def keep(folder: Path, newest: int, step: int, also: int | None = None) -> None:
    """Deletes all checkpoints but the `newest` last ones up to `step` and that of step `also`.

    Also deletes incomplete saves and checkpoints newer than `step`, the one just saved: they are
    damaged, or the run would have resumed from them.
    """
    if jax.process_index() == 0 and folder.exists():
        known = [known for known in steps(folder) if known <= step]
        kept = {str(kept) for kept in [*known[-newest:], also]}
        for path in folder.iterdir():
            if path.name not in kept:
                # The manifest first: an interrupted deletion then leaves an incomplete save.
                (path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)
    _barrier("swept")


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file `path` atomically: it holds either the old or the new text at any time."""
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _flatten(tree: Any) -> dict[str, Any]:
    """Arrays by path, in the order of the tree, so that files do not depend on Python classes."""
    leaves = jax.tree.leaves_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _describe(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def _as_saved(tree: dict[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """The inverse of `_describe`: a tree of jax.ShapeDtypeStruct."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    parts = {name: text.partition("[") for name, text in tree.items()}
    return {
        name: jax.ShapeDtypeStruct(tuple(json.loads(f"[{dims}")), jnp.dtype(dtype), sharding=device)
        for name, (dtype, _, dims) in parts.items()
    }


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.parent)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"checkpoint {name}")
