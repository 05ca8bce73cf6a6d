"""Converts weights between PyTorch and Flax; dnrt_jax/torch_weights.py has the rules.

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
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dnrt_jax import models
from dnrt_jax.data.decode import eval_side
from dnrt_jax.runtime import hub, model_card, storage, weight_files
from dnrt_jax.runtime.errors import WeightsError
from dnrt_jax.runtime.process import Parser, user_errors
from dnrt_jax.runtime.weight_files import Description, StateDict
from dnrt_jax.torch_weights import count_classes
from dnrt_jax.torch_weights import fit as fit
from dnrt_jax.torch_weights import from_torch as from_torch
from dnrt_jax.torch_weights import shapes as shapes
from dnrt_jax.torch_weights import to_torch as to_torch

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std


def load(
    source: "storage.AnyPath | str", checkpoint: str = "latest"
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
    from dnrt_jax.runtime import set_folder, workdir

    if weights := weight_files.described_in(source):
        raise WeightsError(f"{source}: a folder of weights; give {source / weights}")
    if about := set_folder.read_members(source):
        first, *_ = next(iter(about["settings"].values()))
        raise WeightsError(f"{source}: a set of runs; give one of them, as {source / first}")
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
    if "image_size" not in models.fields(model["name"]):
        raise WeightsError(f"--model={model['name']}: takes no images")
    for field in {"num_classes", "image_size"} & model.keys():
        if model[field] < 1:
            raise WeightsError(f"--{field}={model[field]}: must be 1 or more")
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
        try:
            class_names = tuple(args.class_names.read_text("utf-8").splitlines())
        except UnicodeDecodeError as error:
            raise WeightsError(f"{args.class_names}: not UTF-8 ({error})") from None
    elif known and known.model["num_classes"] == model["num_classes"]:
        class_names = known.class_names
    std = tuple(args.std or std)
    resize = resize if args.eval_resize is None else args.eval_resize
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
