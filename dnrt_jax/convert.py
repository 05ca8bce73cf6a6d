"""Converts weights between PyTorch and Flax.

Names map by rule: the submodule `blocks_0` is `blocks.0` in torch, a `kernel` is a transposed
`weight`. Dtypes are kept. Missing or unexpected tensors are errors; adapted ones are logged.

    python -m dnrt_jax.convert SRC OUT.safetensors --model NAME
    python -m dnrt_jax.convert SRC OUT.stablehlo --format=stablehlo
    python -m dnrt_jax.convert SRC --push=hf:USER/NAME

SRC is a .safetensors file, a torch checkpoint, the folder of a run, or hf:OWNER/NAME[@REVISION],
weights of the Hugging Face hub. `dnrt_jax.predict` reads OUT and the config.json written next to
it; see dnrt_jax/runtime/weight_files.py. SRC and OUT may be in a bucket, as gs://BUCKET/PATH.
"""

from dnrt_jax.runtime import train_extra  # noqa: F401

# isort: split

import argparse
import ast
import logging
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dnrt_jax import models
from dnrt_jax.data.decode import eval_side
from dnrt_jax.runtime import hub, model_card, storage, weight_files
from dnrt_jax.runtime.errors import WeightsError
from dnrt_jax.runtime.process import Parser, user_errors
from dnrt_jax.runtime.storage import AnyPath
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
    *parents, leaf = path[1:]  # path[0] is the collection: params, batch_stats
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


def load(
    source: "str | AnyPath", checkpoint: str = "latest"
) -> tuple[StateDict, Description | None]:
    """Loads weights and, if known, their description.

    Args:
      source: a file that `weight_files.read` reads, the folder of a run, or hf:OWNER/NAME.
      checkpoint: for a run: "latest", "best" or a step.

    Raises:
      UserError: if the weights or the run cannot be read.
    """
    source = hub.fetch(str(source)) if hub.is_name(source) else storage.path(source)
    if not storage.is_dir(source):
        return weight_files.read(source), weight_files.read_description(source)

    from dnrt_jax.config import model_kwargs
    from dnrt_jax.runtime import workdir

    config, variables, class_names = workdir.read_run(source, checkpoint)
    if "image_size" not in models.fields(config.model.name):
        raise WeightsError(
            f"{source}: a run of {config.model.name}, which takes no images; weights and "
            "predictions are of models of images; --eval_only evaluates it"
        )
    state_dict, data = to_torch(variables), config.data
    model = {"name": config.model.name, "act": config.model.act, "image_size": data.image_size}
    model |= model_kwargs(config)
    model["num_classes"] = count_classes(state_dict, model, len(data.mean))
    mean, std = tuple(data.mean), tuple(data.std)
    return state_dict, Description(model, mean, std, data.eval_resize, class_names)


def count_classes(state_dict: StateDict, model: Mapping[str, Any], channels: int = 3) -> int:
    """The number of classes of the head in a state dict.

    Args:
      model: arguments of `models.create`, with or without num_classes.

    Raises:
      WeightsError: if the state dict has no head.
    """
    example = models.create(**{**model, "num_classes": 1})
    names = sorted(_torch_name(path, {}) for path in _head(example, channels))
    sizes = [len(state_dict[name]) for name in names if name in state_dict]
    if not sizes:
        raise WeightsError(f"no head of {model['name']} in the weights: {', '.join(names)} missing")
    return sizes[0]


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(format="%(message)s")
    with user_errors():
        args, fields = _parse(argv)
        state_dict, known = load(args.source, args.checkpoint)
        state_dict, description = _convert(state_dict, known, args, fields)
        if args.out:
            _write(args, state_dict, description)
        place = _push(args, state_dict, description) if args.push else args.out
    model = description.model
    print(
        f"{place}: {model['name']} ({model['act']}), {model['num_classes']} classes, "
        f"{model['image_size']} pixels, mean {description.mean}, std {description.std}"
    )


def _write(args: argparse.Namespace, state_dict: StateDict, description: Description) -> None:
    if args.format == "safetensors":
        weight_files.write(args.out, state_dict, description)
        return
    from dnrt_jax import inference, stablehlo

    run, variables = inference.classifier(state_dict, description)
    stablehlo.write(args.out, partial(run, variables), description)


def _push(args: argparse.Namespace, state_dict: StateDict, description: Description) -> str:
    """Uploads the weights with a model card; returns the URL of the commit."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / hub.WEIGHTS
        weight_files.write(weights, state_dict, description)
        run = None if hub.is_name(args.source) else storage.path(args.source)
        run = run if run and storage.is_dir(run) else None
        card = model_card.text(args.push, description, run, args.checkpoint)
        weights.with_name("README.md").write_text(card)
        return hub.push(args.push, Path(folder))


def _convert(
    state_dict: StateDict,
    known: Description | None,
    args: argparse.Namespace,
    fields: dict[str, Any],
) -> tuple[StateDict, Description]:
    """Applies the options of the command line to weights and their description."""
    if known is None and args.model is None:
        raise WeightsError(f"{args.source}: does not say its model; give --model=NAME")
    mean, std = (known.mean, known.std) if known else IMAGENET
    same = known and args.model in (None, known.model["name"])
    model = {**(known.model if known and same else {"name": args.model}), **fields}
    mean = tuple(args.mean or mean)
    if "num_classes" not in model:
        model["num_classes"] = count_classes(state_dict, model, len(mean))
    created: Any = models.create(**model)
    state_dict = to_torch(fit(state_dict, created, len(mean)))

    model |= {"act": created.act, "image_size": created.image_size}
    resize, class_names = eval_side(created.image_size), None
    if known and known.model["image_size"] == model["image_size"]:
        resize = known.eval_resize
    if args.class_names:
        class_names = tuple(args.class_names.read_text().splitlines())
    elif known and known.model["num_classes"] == model["num_classes"]:
        class_names = known.class_names
    std, resize = tuple(args.std or std), args.eval_resize or resize
    return state_dict, Description(model, mean, std, resize, class_names)


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The parsed arguments, and those among them that are fields of the model."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--model")
    name = first.parse_known_args(argv)[0].model
    fields = _fields(name) if name else {"num_classes": int, "image_size": int, "act": str}

    parser = Parser(
        prog="python -m dnrt_jax.convert",
        description="Converts weights of PyTorch or of a run to .safetensors and a config.json.",
        epilog="With --model=NAME, any field of that model can be set; add --help to list them.",
    )
    parser.add_argument(
        "source", metavar="SRC", help="a .safetensors or .pth file, a run, or hf:OWNER/NAME"
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=storage.path,
        nargs="?",
        help="DIR/NAME.safetensors or .stablehlo",
    )
    parser.add_argument(
        "--format",
        choices=("safetensors", "stablehlo"),
        default="safetensors",
        help="stablehlo: a program for CPU, GPU and TPU, with weights and preprocessing in it",
    )
    parser.add_argument(
        "--push",
        metavar="hf:USER/NAME",
        help="upload to the Hugging Face hub, with a model card",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="name of the model, if SRC does not tell it"
    )
    parser.add_argument(
        "--checkpoint", default="latest", help="if SRC is a run: latest, best or a step"
    )
    number = {"type": float, "nargs": "+", "metavar": "X"}
    parser.add_argument("--mean", **number, help="mean per channel, in 0 .. 1; default: ImageNet")
    parser.add_argument("--std", **number)
    parser.add_argument("--eval_resize", type=int, help="default: image_size / 0.875")
    parser.add_argument(
        "--class_names", type=Path, metavar="FILE", help="class names, one per line"
    )
    for field, kind in fields.items():
        parser.add_argument(f"--{field}", type=kind, default=argparse.SUPPRESS)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        hint = "" if name else "; fields of a model need --model=NAME"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if not (args.out or args.push):
        parser.error("give OUT, or --push=hf:USER/NAME")
    if args.out and args.out.suffix != f".{args.format}":
        parser.error(f"{args.out}: with --format={args.format} its name must end in .{args.format}")
    return args, {field: getattr(args, field) for field in fields if field in args}


def _fields(model_name: str) -> dict[str, Callable[[str], Any]]:
    """The fields of a model that can be set on the command line, with the parser of each."""
    example = models.create(model_name, num_classes=1)
    defaults = {field: getattr(example, field) for field in models.fields(model_name)}
    for field in ("dtype", "formulation", "remat"):  # do not describe the weights
        defaults.pop(field, None)
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
