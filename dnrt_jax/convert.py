"""PyTorch weights in and out, by rule: a child `blocks_0` is torch's `blocks.0`, a `kernel` its
transposed `weight`. Values keep their dtype; nothing is ever dropped or made up in silence.

    python -m dnrt_jax.convert SRC OUT.safetensors --model NAME

SRC is a .safetensors file, a torch checkpoint or the folder of a run. OUT and the config.json that
is written beside it are all that `dnrt_jax.predict` needs; see dnrt_jax/runtime/weight_files.py.
"""

import argparse
import ast
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dnrt_jax import models
from dnrt_jax.data import decode as images
from dnrt_jax.runtime import weight_files as weights
from dnrt_jax.runtime.process import one_line_errors
from dnrt_jax.runtime.weight_files import Description, StateDict

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
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std


def _torch_name(path: FlaxPath, paths: Mapping[FlaxPath, Any]) -> str:
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
    if leaf in RAA_LEAVES and value.shape == (1, *shape):
        return value[0]
    return value


def shapes(model: Any, channels: int = 3) -> dict[str, Any]:
    """The variables of a model as a tree of shapes, without computing any."""
    size = model.image_size
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {k: v for k, v in variables.items() if k in ("params", "batch_stats")}


def from_torch(state_dict: StateDict, model_name: str, channels: int = 3, **model_kwargs) -> dict:
    """A torch state dict as Flax variables of `models.create(model_name, **model_kwargs)`.

    Arguments, result and errors as for `fit`.
    """
    return fit(state_dict, models.create(model_name, **model_kwargs), channels)


def fit(
    state_dict: StateDict, model: nn.Module, channels: int = 3, *, adapt: bool = True
) -> dict[str, Any]:
    """A torch state dict as Flax variables of `model`.

    RAA parameters, of which the state dict has none, are zero. With `adapt`, the head of another
    number of classes becomes zero as well (Kolesnikov et al., BiT, 2020), and the position
    embedding of another image size is resampled, as timm does. Each of these is logged.

    Args:
      state_dict: {torch name: array}.
      channels: of the images.

    Returns:
      {"params": ..., "batch_stats": ...}, with the dtypes of the state dict.

    Raises:
      ValueError: listing every tensor that is missing, left over, or of another shape.
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
        "left over": list(rest),
        "of another shape": [
            f"{names[path]} {list(state_dict[names[path]].shape)}, "
            f"not {list(_to_torch_layout(path[-1], np.broadcast_to(0.0, wanted[path])).shape)}"
            for path in _misfits(values, wanted)
        ],
    }
    if any(problems.values()):
        listed = (f"{len(p)} {kind}: {', '.join(p)}" for kind, p in problems.items() if p)
        raise ValueError(f"weights do not fit {type(model).__name__}: {'; '.join(listed)}")
    if notes:
        logging.warning("weights for %s: %s", type(model).__name__, "; ".join(notes))
    return traverse_util.unflatten_dict(values)


def _adapt(values: Arrays, wanted: Shapes, model: nn.Module, channels: int) -> list[str]:
    """Puts resampled positions and a zero head into `values` where they do not fit; says which."""
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
    """The parameters whose shape follows the number of classes."""
    one, two = (_flat_shapes(model.clone(num_classes=k), channels) for k in (1, 2))
    return [path for path in one if one[path] != two[path]]


def resample_positions(positions: np.ndarray, length: int) -> np.ndarray:
    """Position embeddings [1, N, D] for another square grid of tokens: [1, length, D].

    Bicubic, antialiased and in float32, as timm does. What `length` has beyond a square are tokens
    before the grid, which stay. Without such a grid in `positions`, they are returned as they are.
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
    """Flax variables as a torch state dict: the inverse of `from_torch`, bit for bit."""
    flat: dict[FlaxPath, Any] = traverse_util.flatten_dict(dict(variables))
    return {
        _torch_name(path, flat): _to_torch_layout(path[-1], np.asarray(value))
        for path, value in flat.items()
    }


def load(source: Path, checkpoint: str = "latest") -> tuple[StateDict, Description | None]:
    """Weights and, where it is known, what they are.

    Args:
      source: a file that `weights.read` reads, or the folder of a run.
      checkpoint: of a run: "latest", "best" or a step.

    Raises:
      ValueError, OSError, RuntimeError: one line on what cannot be read.
    """
    if not source.is_dir():
        return weights.read(source), weights.read_description(source)

    from dnrt_jax import config as schema
    from dnrt_jax.runtime import workdir

    config, variables, class_names = workdir.read_run(source, checkpoint)
    if schema.takes_graph(config):
        raise ValueError(
            f"{source}: a run of {config.model.name}, which takes a graph; weights and predictions "
            "are of models of images; --eval_only evaluates it"
        )
    state_dict, data = to_torch(variables), config.data
    model = {"name": config.model.name, "act": config.model.act, "image_size": data.image_size}
    model |= schema.model_kwargs(config)
    model["num_classes"] = count_classes(state_dict, model, len(data.mean))
    mean, std = tuple(data.mean), tuple(data.std)
    return state_dict, Description(model, mean, std, data.eval_resize, class_names)


def count_classes(state_dict: StateDict, model: Mapping[str, Any], channels: int = 3) -> int:
    """The number of classes that the head in a state dict has.

    Args:
      model: arguments of `models.create`; num_classes may be absent.

    Raises:
      ValueError: if there is no head.
    """
    example = models.create(**{**model, "num_classes": 1})
    names = sorted(_torch_name(path, {}) for path in _head(example, channels))
    sizes = [len(state_dict[name]) for name in names if name in state_dict]
    if not sizes:
        raise ValueError(f"no head of {model['name']} in the weights: {', '.join(names)} missing")
    return sizes[0]


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(format="%(message)s")
    with one_line_errors():
        args, fields = _parse(argv)
        state_dict, known = load(args.source, args.checkpoint)
        state_dict, description = _convert(state_dict, known, args, fields)
        weights.write(args.out, state_dict, description)
    model = description.model
    print(
        f"{args.out}: {model['name']} ({model['act']}), {model['num_classes']} classes, "
        f"{model['image_size']} pixels, mean {description.mean}, std {description.std}"
    )


def _convert(
    state_dict: StateDict,
    known: Description | None,
    args: argparse.Namespace,
    fields: dict[str, Any],
) -> tuple[StateDict, Description]:
    """What the command line makes of weights and of what is known of them."""
    if known is None or args.model not in (None, known.model["name"]):
        if args.model is None:
            raise ValueError(f"{args.source}: does not say its model; give --model=NAME")
        model, mean, std, known = {"name": args.model}, *IMAGENET, None
    else:
        model, mean, std = known.model, known.mean, known.std
    model, mean = {**model, **fields}, tuple(args.mean or mean)
    if "num_classes" not in model:
        model["num_classes"] = count_classes(state_dict, model, len(mean))
    created: Any = models.create(**model)
    state_dict = to_torch(fit(state_dict, created, len(mean)))

    model |= {"act": created.act, "image_size": created.image_size}
    resize, class_names = images.eval_side(created.image_size), None
    if known and known.model["image_size"] == model["image_size"]:
        resize = known.eval_resize
    if args.class_names:
        class_names = tuple(args.class_names.read_text().splitlines())
    elif known and known.model["num_classes"] == model["num_classes"]:
        class_names = known.class_names
    std, resize = tuple(args.std or std), args.eval_resize or resize
    return state_dict, Description(model, mean, std, resize, class_names)


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The arguments, and those of them that are fields of the model."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--model")
    name = first.parse_known_args(argv)[0].model
    fields = _fields(name) if name else {"num_classes": int, "image_size": int, "act": str}

    parser = argparse.ArgumentParser(
        prog="python -m dnrt_jax.convert",
        description="Weights of PyTorch or of a run as .safetensors, with a config.json beside it.",
        epilog="With --model=NAME, any field of that model can be set: add --help to see them.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", type=Path, help=".safetensors, .pth or a run")
    parser.add_argument("out", metavar="OUT", type=Path, help="DIR/NAME.safetensors")
    parser.add_argument("--model", metavar="NAME", help="needed where SRC does not say it")
    parser.add_argument("--checkpoint", default="latest", help="of a run: latest, best or a step")
    number = {"type": float, "nargs": "+", "metavar": "X"}
    parser.add_argument("--mean", **number, help="of each channel, in 0 .. 1; default: ImageNet's")
    parser.add_argument("--std", **number)
    parser.add_argument("--eval_resize", type=int, help="default: image_size / 0.875")
    parser.add_argument("--class_names", type=Path, metavar="FILE", help="one a line")
    for field, kind in fields.items():
        parser.add_argument(f"--{field}", type=kind, default=argparse.SUPPRESS)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        hint = "" if name else "; fields of a model need --model=NAME"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return args, {field: getattr(args, field) for field in fields if field in args}


def _fields(model_name: str) -> dict[str, Callable[[str], Any]]:
    """The fields of a model that a command line can set, and what reads their text."""
    example = models.create(model_name, num_classes=1)
    defaults = {field: getattr(example, field) for field in models.fields(model_name)}
    del defaults["dtype"]  # a matter of the computation
    as_is: Any = {kind: kind for kind in (int, float, str)}
    kinds = as_is | dict.fromkeys((bool, tuple, type(None)), _literal)
    return {field: kinds[type(x)] for field, x in defaults.items() if type(x) in kinds}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no value as True, 0.1 or (4,6)") from None


if __name__ == "__main__":
    main()
