"""The command line of `dnrt_jax.main`: its flags, the config and the folder that it names."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnrt_jax.runtime.errors import ConfigError, WorkdirError
from dnrt_jax.runtime.process import Parser


def parse(words: Sequence[str], about: str | None) -> argparse.Namespace:
    """Reads the flags of a command; a mistake ends the program with one line."""
    reader = parser(about)
    args = reader.parse_args(words)
    if args.profile < 0:
        reader.error(f"--profile={args.profile}: must be 0 or more")
    if args.workdir == "":
        reader.error(
            "--workdir= is empty, as from an unset variable; name a folder or leave it out"
        )
    if args.checkpoint != "latest" and not args.eval_only:
        reader.error(f"--checkpoint={args.checkpoint}: needs --eval_only")
    return args


def parser(about: str | None = None) -> Parser:
    """The flags; `about` is the head of the help."""
    parser = Parser(prog="python -m dnrt_jax.main", description=about)
    parser.add_argument("--config", help="config file: configs/NAME.py, or FILE.py:ARGUMENT")
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="folder of the run, or gs://BUCKET/PATH; default: runs/NAME for configs/NAME.py",
    )
    parser.add_argument(
        "--seeds",
        metavar="N,N",
        help="a set of runs that differ in the seed, in folders seedN of --workdir",
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FIELD=X,Y",
        help="a set of runs that differ in a number of the config, as optim.lr=1e-3,3e-4; "
        "repeatable, and with --seeds: all combinations",
    )
    parser.add_argument(
        "--eval_only", action="store_true", help="evaluate a checkpoint of the run and exit"
    )
    parser.add_argument(
        "--checkpoint", default="latest", help="with --eval_only: latest, best or a step"
    )
    parser.add_argument(
        "--allow_change",
        action="append",
        default=[],
        metavar="FIELD",
        help="config field, as optim.lr, that may differ from the run being resumed; repeatable",
    )
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="trace N steps, for TensorBoard or XProf, into the folder profile of the run",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0, for a run of several processes",
    )
    parser.add_argument("--processes", type=int, help="with --coordinator: number of processes")
    parser.add_argument(
        "--process", type=int, help="with --coordinator: index of this process, from 0"
    )
    return parser


def config_of(args: argparse.Namespace, overrides: dict[str, str]) -> Any:
    """The config of the command line, or that of the folder, with the overrides.

    The folder of a set also completes `args.seeds` and `args.sweep`; the fields in
    `args.allow_change` lose the prefix "config.".

    Raises:
      UserError: if there is neither, the config is not valid, or has no field that may change.
    """
    from dnrt_jax.config import fields_of, nearest, validate
    from dnrt_jax.config_file import load, override
    from dnrt_jax.runtime import storage
    from dnrt_jax.runtime.set_folder import read_members
    from dnrt_jax.runtime.workdir import read_config

    if args.config:
        config = load(args.config, overrides)
    elif not args.workdir:
        raise ConfigError("give --config=configs/NAME.py, as configs/digits.py")
    elif not storage.is_dir(storage.path(args.workdir)):
        raise WorkdirError(
            f"--workdir={args.workdir}: no such folder; to start a run give --config"
        )
    else:
        folder = storage.path(args.workdir)
        if command := read_members(folder):
            args.seeds, args.sweep = args.seeds or command["seeds"], args.sweep or command["sweep"]
            members = [folder / name for names in command["settings"].values() for name in names]
            begun = (member for member in members if storage.is_file(member / "config.json"))
            folder = next(begun, members[0])
        config = override(read_config(folder), overrides)
    validate(config)
    fields = fields_of(config)
    args.allow_change = [name.removeprefix("config.") for name in args.allow_change]
    for name in args.allow_change:
        if name not in fields:
            raise ConfigError(f"--allow_change={name}: no such field{nearest(name, fields)}")
    return config


def folder_of(args: argparse.Namespace) -> Any:
    """The folder of the run or of the set."""
    from dnrt_jax.runtime import storage

    return storage.path(args.workdir or Path("runs") / Path(args.config.partition(":")[0]).stem)
