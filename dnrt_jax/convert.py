"""PyTorch weights in and out, by rule: a child `blocks_0` is torch's `blocks.0`, a `kernel` its
transposed `weight`. Values keep their dtype; nothing is ever dropped or made up in silence.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dnrt_jax import models

StateDict = dict[str, np.ndarray]
Path = tuple[str, ...]

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "w": "shift_proj_weight",
    "b": "shift_proj_bias",
}


def _torch_name(path: Path, paths: Mapping[Path, Any]) -> str:
    *parents, leaf = path[1:]  # the first is the collection: params, batch_stats
    scalar_shift = leaf == "b" and (*path[:-1], "w") not in paths
    name = "shift" if scalar_shift else LEAVES.get(leaf, leaf)
    return ".".join([re.sub(r"_(?=\d+(_|$))", ".", p) for p in parents] + [name])


def _to_torch_layout(leaf: str, value: np.ndarray) -> np.ndarray:
    if leaf == "kernel":
        return value.T if value.ndim == 2 else value.transpose(3, 2, *range(value.ndim - 2))
    if leaf == "w":
        return value.T if value.ndim == 2 else value[None]
    return value[None] if leaf == "b" and value.ndim == 0 else value


def _from_torch_layout(leaf: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if leaf == "kernel" and value.ndim > 2:
        return value.transpose(*range(2, value.ndim), 1, 0)
    if leaf == "kernel" or (leaf == "w" and len(shape) == 2):
        return value.T
    return value.reshape(shape) if leaf in ("w", "b") else value


def shapes(model, channels: int = 3):
    """The variables of a model as a tree of shapes, without computing any."""
    image = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {k: v for k, v in variables.items() if k in ("params", "batch_stats")}


def from_torch(state_dict: StateDict, model_name: str, channels: int = 3, **model_kwargs) -> dict:
    """A torch state dict as Flax variables of `models.create(model_name, **model_kwargs)`.

    RAA parameters that the state dict lacks start at zero.

    Args:
      state_dict: {torch name: array}.
      channels: of the images.

    Returns:
      {"params": ..., "batch_stats": ...}, with the dtypes of the state dict.

    Raises:
      ValueError: listing every tensor that is missing, left over, or of another shape.
    """
    flat: dict[Path, Any] = traverse_util.flatten_dict(
        shapes(models.create(model_name, **model_kwargs), channels)
    )
    rest = {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    variables, problems = {}, []
    for path, target in flat.items():
        name = _torch_name(path, flat)
        if name not in rest:
            if path[-1] in ("w", "b"):
                variables[path] = np.zeros(target.shape, target.dtype)
            else:
                problems.append(f"missing {name}")
            continue
        value = _from_torch_layout(path[-1], rest.pop(name), target.shape)
        if value.shape != target.shape:
            problems.append(f"{name}: {value.shape}, the model has {target.shape}")
        variables[path] = value
    problems += [f"left over {name}" for name in rest]
    if problems:
        raise ValueError(f"weights do not fit {model_name}: {'; '.join(problems)}")
    return traverse_util.unflatten_dict(variables)


def to_torch(variables: Mapping) -> StateDict:
    """Flax variables as a torch state dict: the inverse of `from_torch`, bit for bit."""
    flat: dict[Path, Any] = traverse_util.flatten_dict(dict(variables))
    return {
        _torch_name(path, flat): _to_torch_layout(path[-1], np.asarray(value))
        for path, value in flat.items()
    }
