"""Classifies images: prints the five most probable classes of each.

    python -m dnrt_jax.predict --workdir=runs/digits IMAGE...
    python -m dnrt_jax.predict --weights=DIR/NAME.safetensors --json IMAGE...
    python -m dnrt_jax.predict --weights=DIR/NAME.stablehlo IMAGE...

An IMAGE is a file, a folder (all images below it) or - (file names on standard input, one per
line). `python -m dnrt_jax.convert` makes the weights. For an image that cannot be read, one line is
printed, and the exit status is 1.
"""

from dnrt_jax.runtime import train_extra  # noqa: F401

# isort: split

import argparse
import io
import json
import logging
import os.path
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dnrt_jax import convert, inference, stablehlo
from dnrt_jax.data import decode
from dnrt_jax.runtime import storage, weight_files
from dnrt_jax.runtime.errors import WeightsError, WorkdirError
from dnrt_jax.runtime.process import Parser, keep_programs, user_errors
from dnrt_jax.runtime.weight_files import Description

TOP = 5
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class Classifier:
    """Maps images u8[B, eval_resize, eval_resize, C] to probabilities f32[B, K].

    `run` is that function, on one device.

    Raises:
      WeightsError: on calls, if the result is NaN.
    """

    def __init__(self, run: Callable[[Any], jax.Array], description: Description):
        self._run = run
        self.description = description
        self.channels = len(description.mean)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        probs = np.asarray(self._run(batch))
        if not np.isfinite(probs).all():
            raise WeightsError("the weights give probabilities that are NaN")
        return probs

    def read(self, name: str) -> np.ndarray:
        """Reads the image file `name`: its centre square as u8[eval_resize, eval_resize, C].

        Raises:
          BrokenImage: if the file cannot be read.
        """
        if os.path.isdir(name):  # Path.is_dir raises for a name that is too long
            raise decode.BrokenImage(f"{name}: no images below it ({', '.join(SUFFIXES)})")
        try:
            data = Path(name).read_bytes()
        except OSError as error:
            raise decode.BrokenImage(f"{name}: {error.strerror}") from None
        except ValueError as error:  # a name that no file can have
            raise decode.BrokenImage(f"{name!r}: {error}") from None
        with decode.opened(data, name) as image:
            image = decode.to_rgb(image).convert("L" if self.channels == 1 else "RGB")
            square = np.asarray(decode.fit(image, self.description.eval_resize))
        return square.reshape(*square.shape[:2], self.channels)

    def predict(self, names: Iterable[str], batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields a dict for each name, in order; the most probable class comes first:
        {"image", "predictions": [{"class", "index", "probability"}]}, or {"image", "error"}.
        """
        names, rows = iter(names), 0
        while chunk := list(islice(names, batch_size)):
            rows = rows or len(chunk)  # the last batch is padded, to avoid another compilation
            side = self.description.eval_resize
            batch = np.zeros((rows, side, side, self.channels), np.uint8)
            errors: dict[int, str] = {}
            for i, name in enumerate(chunk):
                try:
                    batch[i] = self.read(name)
                except decode.BrokenImage as error:
                    errors[i] = str(error)
            probs = self(batch)
            for i, name in enumerate(chunk):
                if i in errors:
                    yield {"image": name, "error": errors[i]}
                else:
                    yield {"image": name, "predictions": self._top(probs[i])}

    def _top(self, probs: np.ndarray) -> list[dict[str, Any]]:
        names = self.description.class_names or [f"class {k}" for k in range(len(probs))]
        return [
            {"class": names[k], "index": int(k), "probability": float(probs[k])}
            for k in np.argsort(-probs, kind="stable")[:TOP]
        ]


def expand(arguments: Iterable[str]) -> Iterator[str]:
    """Expands folders and "-" (standard input) to file names; an empty folder stays as it is."""
    for argument in arguments:
        if argument == "-":
            lines = (line.rstrip("\n") for line in sys.stdin)
            yield from expand(line for line in lines if line not in ("", "-"))
        elif os.path.isdir(argument):
            below = (p for p in Path(argument).rglob("*") if p.suffix.lower() in SUFFIXES)
            yield from [str(p) for p in sorted(below) if p.is_file()] or [argument]
        else:
            yield argument


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    keep_programs()
    with user_errors():
        args = _parse(argv)
        if args.workdir and not storage.is_dir(args.workdir):
            raise WorkdirError(f"--workdir={args.workdir}: no such folder")
        classifier, status = _load(args), 0
        for result in classifier.predict(expand(args.images), args.batch_size):
            error = result.get("error")
            status = 1 if error else status
            if args.json:
                print(json.dumps(result), flush=True)
            elif error:
                print(f"error: {error}", file=sys.stderr)
            else:
                top = (f"{p['class']} {p['probability']:.1%}" for p in result["predictions"])
                print(f"{result['image']}: {', '.join(top)}", flush=True)
    return status


def _load(args: argparse.Namespace) -> Classifier:
    if args.weights and args.weights.endswith(stablehlo.SUFFIX):
        path = storage.path(args.weights)
        run, description = stablehlo.read(path), weight_files.read_description(path)
        return Classifier(run, _known(description, path))
    source = args.workdir or args.weights
    state_dict, described = convert.load(source, args.checkpoint)
    description = _known(described, source)
    function, variables = inference.classifier(state_dict, description)
    return Classifier(partial(jax.jit(function), variables), description)


def _known(description: Description | None, source: Any) -> Description:
    if description is None:
        raise WeightsError(
            f"{source}: no config.json beside it that says what it is; make both with "
            "python -m dnrt_jax.convert"
        )
    return description


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m dnrt_jax.predict",
        description="Prints the five most probable classes of each image.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--workdir", type=storage.path, metavar="DIR", help="of a run; may be gs://BUCKET/PATH"
    )
    source.add_argument(
        "--weights", metavar="FILE", help="made by dnrt_jax.convert, or hf:OWNER/NAME"
    )
    parser.add_argument("--checkpoint", default="latest", help="for a run: latest, best or a step")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--batch_size", type=int, default=32, help="images per batch; default: 32")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="file, folder, or - to read file names from standard input",
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch_size={args.batch_size}: must be 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(main())
