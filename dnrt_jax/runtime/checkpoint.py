"""Verified checkpoints: Orbax writes the arrays, a manifest says what a whole checkpoint is.

    checkpoints/STEP/arrays/...      Orbax, written by all processes
    checkpoints/STEP/manifest.json   written last, atomically: SHA-256 of every file, the tree,
                                     the config, versions and what the loop must remember

Orbax neither notices a flipped bit nor looks for an older step. Here a step without a valid
manifest does not exist, and nothing is restored that does not match it byte for byte.
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

ARRAYS, MANIFEST = "arrays", "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model. The message is one line."""


class Restored(NamedTuple):
    state: Any
    step: int
    extra: dict[str, Any]  # what `save` was given
    config: str


def steps(folder: Path) -> list[int]:
    """The steps that have a manifest, oldest first; not verified."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{MANIFEST}"))


def save(folder: Path, state: Any, step: int, *, config: str, extra: dict[str, Any]) -> None:
    """Writes and verifies the checkpoint of `step`. All processes call it together.

    Raises:
      CheckpointError: if the files on disk are not what was written, as on a full disk.
      OSError: as the file system says.
    """
    target = folder / str(step)
    arrays = _flatten(state)
    if jax.process_index() == 0:
        shutil.rmtree(target, ignore_errors=True)  # the leftover of a killed save
        target.mkdir(parents=True)
    _barrier("made")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((target / ARRAYS).absolute(), arrays)
    _barrier("written")
    if jax.process_index() == 0:
        manifest = {
            "step": step,
            "tree": _describe(arrays),
            "files": _checksums(target / ARRAYS),
            "config": config,
            "extra": extra,
            "versions": {p: importlib.metadata.version(p) for p in ("jax", "flax", "optax")},
        }
        manifest["sha256"] = _digest(manifest)
        write_atomically(target / MANIFEST, json.dumps(manifest, indent=1))
        verify(folder, step)
    _barrier("verified")


def verify(folder: Path, step: int) -> dict[str, Any]:
    """The manifest of `step`, after checking every byte it vouches for.

    Raises:
      CheckpointError: naming the files that are damaged, missing or left over.
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
    """The state at `step`, or at the newest step that is whole; None if there is no checkpoint.

    Args:
      target: a tree of arrays or jax.ShapeDtypeStruct with shardings, as the state should be;
        None for all arrays by their path, as "params/head/kernel", on the first device.

    Raises:
      CheckpointError: for a step asked for that is damaged, for checkpoints that are all damaged,
        or for one whose tree, shapes or dtypes differ from `target`, listing the differences.
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
    leaves = [arrays[name] for name in _flatten(target)]  # Orbax returns them in another order
    state = jax.tree.unflatten(jax.tree.structure(target), leaves)
    return Restored(state, manifest["step"], manifest["extra"], manifest["config"])


def keep(folder: Path, newest: int, step: int, also: int | None = None) -> None:
    """Deletes all but the `newest` last checkpoints up to `step` and the one of step `also`.

    Leftovers of kills go too, and what lies beyond `step`, just saved: it was damaged, or else the
    run would have gone on from there.
    """
    if jax.process_index() == 0 and folder.exists():
        known = [known for known in steps(folder) if known <= step]
        kept = {str(kept) for kept in [*known[-newest:], also]}
        for path in folder.iterdir():
            if path.name not in kept:
                # Without its manifest it is a leftover, should the deletion be cut short.
                (path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)
    _barrier("swept")


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file `path` so that a reader, or a kill, sees the old or the new text."""
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _flatten(tree: Any) -> dict[str, Any]:
    """Arrays by path, in the order of the tree: a file format that no Python class is part of."""
    leaves = jax.tree.leaves_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _describe(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def _as_saved(tree: dict[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """The inverse of `_describe`, in shapes."""
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
