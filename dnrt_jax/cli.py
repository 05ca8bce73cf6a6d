"""The command `dnrt`: `dnrt convert ...` is `python -m dnrt_jax.convert ...`, and so on."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from dnrt_jax import __version__
from dnrt_jax.runtime import train_extra
from dnrt_jax.runtime.process import Parser

PROGRAMS = {  # command: (module of dnrt_jax, what it does)
    "train": ("main", "train, resume or evaluate"),
    "convert": ("convert", "convert weights of PyTorch or of a run"),
    "predict": ("predict", "print the most probable classes of images"),
    "preview": ("preview", "draw the augmented images of a config"),
    "report": ("report.__main__", "compare runs on one HTML page"),
    "benchmark": ("benchmark.__main__", "measure the cost of RAA and ARR"),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs the program that the first argument names; returns its exit status."""
    listed = "\n".join(f"  {name:10} {about}" for name, (_, about) in PROGRAMS.items())
    parser = Parser(prog="dnrt", description=f"Dynamic Neural Response Tuning.\n\n{listed}")
    parser.add_argument("--version", action="version", version=f"dnrt_jax {__version__}")
    parser.add_argument("program", choices=PROGRAMS, metavar="PROGRAM", help="one of the above")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="see dnrt PROGRAM --help"
    )
    args = parser.parse_args(argv)
    train_extra.require()
    sys.argv = [f"dnrt {args.program}", *args.arguments]  # the name is used by `Parser`
    module, _ = PROGRAMS[args.program]
    return importlib.import_module(f"dnrt_jax.{module}").main()
