"""Names and layouts of weights in PyTorch and in Flax.

Names map by rule: the submodule `blocks_0` is `blocks.0` in torch, a `kernel` is a transposed
`weight`. Dtypes are kept. Missing or unexpected tensors are errors; adapted ones are logged.
"""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dnrt_jax import models
from dnrt_jax.runtime.errors import WeightsError
from dnrt_jax.runtime.weight_files import StateDict

FlaxPath = tuple[str, ...]
Arrays = dict[FlaxPath, np.ndarray]
Shapes = dict[FlaxPath, tuple[int, ...]]

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "w": "shift_proj_weight",
    "b": "shift_proj_bias",
}
RAA_LEAVES = ("w", "b")


def _torch_name(path: FlaxPath, paths: Mapping[FlaxPath, Any]) -> str:
    *parents, leaf = path[1:]  # path[0] is the collection: params, batch_stats
    scalar_shift = leaf == "b" and (*path[:-1], "w") not in paths
    name = "shift" if scalar_shift else LEAVES.get(leaf, leaf)
    return ".".join([re.sub(r"_(?=\d+(_|$))", ".", p) for p in parents] + [name])


def _to_torch_layout(leaf: str, value: np.ndarray) -> np.ndarray:
    if leaf == "kernel":
        return value.transpose(-1, -2, *range(value.ndim - 2)) if value.ndim > 1 else value
    if leaf == "w":
        return value.T if value.ndim == 2 else value[None]
    return value[None] if leaf == "b" and value.ndim == 0 else value


def _from_torch_layout(leaf: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if leaf == "kernel" and value.ndim > 2:
        return value.transpose(*range(2, value.ndim), 1, 0)
    if leaf == "kernel" or (leaf == "w" and len(shape) == 2):
        return value.T
    if leaf in RAA_LEAVES and value.shape == (1, *shape):
        return value[0]
    return value


def shapes(model: Any, channels: int = 3) -> dict[str, Any]:
    """The variables of a model as a tree of jax.ShapeDtypeStruct."""
    size = model.image_size
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {k: v for k, v in variables.items() if k in ("params", "batch_stats")}


def from_torch(state_dict: StateDict, model_name: str, channels: int = 3, **model_kwargs) -> dict:
    """Converts a torch state dict to the variables of `models.create(model_name, **model_kwargs)`.

    Arguments, result and errors as for `fit`.
    """
    return fit(state_dict, models.create(model_name, **model_kwargs), channels)


def fit(
    state_dict: StateDict, model: nn.Module, channels: int = 3, *, adapt: bool = True
) -> dict[str, Any]:
    """Converts a torch state dict to the Flax variables of `model`.

    If the state dict has no RAA parameters, they are set to zero. With `adapt`, a head for another
    number of classes is set to zero (Kolesnikov et al., BiT, 2020), and the position embedding of
    another image size is resampled, as in timm. Each of these is logged.

    Args:
      state_dict: {torch name: array}.
      channels: number of image channels.

    Returns:
      {"params": ..., "batch_stats": ...}, with the dtypes of the state dict.

    Raises:
      WeightsError: listing all tensors that are missing, unexpected, or of another shape.
    """
    wanted = _flat_shapes(model, channels)
    names = {path: _torch_name(path, wanted) for path in wanted}
    rest = {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    values = {
        path: _from_torch_layout(path[-1], rest.pop(name), wanted[path])
        for path, name in names.items()
        if name in rest
    }
    notes = []
    raa = [path for path in wanted if path[-1] in RAA_LEAVES]
    if raa and not any(path in values for path in raa):
        values |= {path: np.zeros(wanted[path], np.float32) for path in raa}
        notes.append("no RAA parameters, they start at zero (raa as GELU, raa_relu as ReLU)")
    if adapt:
        notes += _adapt(values, wanted, model, channels)

    problems = {
        "missing": [name for path, name in names.items() if path not in values],
        "unexpected": list(rest),
        "of another shape": [
            f"{names[path]} {list(state_dict[names[path]].shape)}, "
            f"not {list(_to_torch_layout(path[-1], np.broadcast_to(0.0, wanted[path])).shape)}"
            for path in _misfits(values, wanted)
        ],
    }
    if any(problems.values()):
        listed = (f"{len(p)} {kind}: {', '.join(p)}" for kind, p in problems.items() if p)
        raise WeightsError(f"weights do not fit {type(model).__name__}: {'; '.join(listed)}")
    if notes:
        logging.warning("weights for %s: %s", type(model).__name__, "; ".join(notes))
    return traverse_util.unflatten_dict(values)


def _adapt(values: Arrays, wanted: Shapes, model: nn.Module, channels: int) -> list[str]:
    """Adapts position embeddings and head in `values`, in place; returns notes for the log."""
    notes = []
    if misfits := _misfits(values, wanted):
        head = _head(model, channels)
        for path in misfits:
            name, old, new = _torch_name(path, wanted), values[path].shape, wanted[path]
            if path[-1].startswith(("pos_embed", "patch_pos")) and old[::2] == new[::2]:
                values[path] = resample_positions(values[path], new[1])
                notes.append(f"{name} resampled from {old[1]} to {new[1]} tokens")
            elif path in head and old[:-1] == new[:-1]:
                values[path] = np.zeros(new, values[path].dtype)
                notes.append(f"{name} zero, for {new[-1]} classes instead of {old[-1]}")
    return notes


def _misfits(values: Arrays, wanted: Shapes) -> list[FlaxPath]:
    return [path for path in wanted if path in values and values[path].shape != wanted[path]]


def _flat_shapes(model: nn.Module, channels: int) -> Shapes:
    flat: dict[FlaxPath, Any] = traverse_util.flatten_dict(shapes(model, channels))
    return {path: array.shape for path, array in flat.items()}


def _head(model: nn.Module, channels: int) -> list[FlaxPath]:
    """The parameters whose shape depends on the number of classes."""
    one, two = (_flat_shapes(model.clone(num_classes=k), channels) for k in (1, 2))
    return [path for path in one if one[path] != two[path]]


def resample_positions(positions: np.ndarray, length: int) -> np.ndarray:
    """Resamples position embeddings [1, N, D] to another square grid of tokens: [1, length, D].

    Bicubic with antialiasing in float32, as in timm. `length` minus the largest square in it is the
    number of prefix tokens, whose embeddings are kept. If `positions` has no square grid after as
    many prefix tokens, it is returned unchanged.
    """
    n, d = positions.shape[1:]
    prefix = length - math.isqrt(length) ** 2
    side = math.isqrt(max(n - prefix, 0))
    if n != prefix + side * side:
        return positions
    grid = positions[:, prefix:].reshape(side, side, d).astype(np.float32)
    new = math.isqrt(length)
    grid = np.asarray(jax.image.resize(grid, (new, new, d), "cubic")).reshape(1, -1, d)
    return np.concatenate([positions[:, :prefix], grid.astype(positions.dtype)], axis=1)


def to_torch(variables: Mapping) -> StateDict:
    """Converts Flax variables to a torch state dict: the exact inverse of `from_torch`."""
    flat: dict[FlaxPath, Any] = traverse_util.flatten_dict(dict(variables))
    return {
        _torch_name(path, flat): _to_torch_layout(path[-1], np.asarray(value))
        for path, value in flat.items()
    }


def count_classes(state_dict: StateDict, model: Mapping[str, Any], channels: int = 3) -> int:
    """The number of classes of the head in a state dict.

    Args:
      model: arguments of `models.create`, with or without num_classes.

    Raises:
      WeightsError: if the state dict has no head.
    """
    example = models.create(**{**model, "num_classes": 1})
    names = sorted(_torch_name(path, {}) for path in _head(example, channels))
    sizes = [len(state_dict[name]) for name in names if np.ndim(state_dict.get(name, 0))]
    if not sizes:
        raise WeightsError(f"no head of {model['name']} in the weights: {', '.join(names)} missing")
    return sizes[0]
