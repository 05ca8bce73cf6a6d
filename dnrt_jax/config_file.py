"""Reads a config file and sets the fields that the command line names."""

import importlib.util
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from dnrt_jax.config import Config, fields_of, flatten, nearest
from dnrt_jax.runtime.errors import ConfigError


def load(spec: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Loads a config file, "PATH.py" or "PATH.py:ARGUMENT", and applies the `overrides`.

    The file must define `get_config()`, which is passed the argument, if any. It is Python code:
    load only files you trust. It may import files of its folder as `from FOLDER import NAME`.

    Raises:
      ConfigError: naming the file or the field.
    """
    found = re.fullmatch(r"(.*?\.py)(?::(.*))?", spec)
    if not found:
        raise ConfigError(f"--config={spec}: give a Python file, as configs/digits.py")
    path, arguments = Path(found[1]).expanduser(), [] if found[2] is None else [found[2]]
    if not path.is_file():
        raise ConfigError(f"--config={spec}: {path} does not exist")
    module_spec = importlib.util.spec_from_file_location(f"config {path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    with _importable(path.resolve().parent.parent), _errors_of(path, spec):
        module_spec.loader.exec_module(module)
        _check_argument(module.get_config, arguments, path.name)
        config = module.get_config(*arguments)
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={spec}: get_config() gives no ml_collections.ConfigDict")
    return override(config, overrides or {})


@contextmanager
def _importable(folder: Path):
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _errors_of(path: Path, spec: str):
    """Turns any exception of a config file into a ConfigError with the line number."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        at = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"--config={spec}{at}: {error or type(error).__name__}") from error


def _check_argument(get_config: Callable, arguments: list[str], file: str) -> None:
    """Raises a ValueError for an argument that is one too many, or missing."""
    parameters = inspect.signature(get_config).parameters
    if arguments and not parameters:
        raise ValueError(f"{file} takes no argument after the colon")
    needed = [name for name, about in parameters.items() if about.default is about.empty]
    if needed and not arguments:
        raise ValueError(f"{file} needs an argument, as {file}:{needed[0].upper()}")


def override(config: Config, overrides: Mapping[str, str]) -> Config:
    """Sets fields of `config`, by dotted name, to values given as text.

    A change of the task or the model removes the fields that the new one does not have, with a
    warning. "none" resets a field to its default, unless "none" is one of its values.

    Raises:
      ConfigError: for an unknown field, or text that is not a valid value of the field.
    """
    for name in ("task", "model.name"):
        if name in overrides:
            text = overrides[name]
            is_reset = text.lower() == "none"
            _switch(config, name, fields_of(config)[name].default if is_reset else text)
    fields = fields_of(config)
    for name, text in overrides.items():
        if name not in fields:
            raise ConfigError(f"config.{name}: no such field{nearest(name, fields)}")
        section, _, key = name.rpartition(".")
        rule, place = fields[name].rule, config[section] if section else config
        if text.lower() == "none" and "none" not in rule.options:
            value = fields[name].default
        else:
            try:
                value = rule.read(text)
            except (ValueError, SyntaxError, OverflowError, TypeError):
                raise ConfigError(f"config.{name}={text!r}: must be {rule.expected}") from None
        with place.ignore_type():
            place[key] = value
    return config


def _switch(config: Config, name: str, value: str) -> None:
    """Sets the task or the model and removes the fields that the new one does not have."""
    section, _, key = name.rpartition(".")
    before = fields_of(config)
    (config[section] if section else config)[key] = value
    after = fields_of(config)
    flat = flatten(config)
    dropped = [field for field in flat if field in before and field not in after]
    for field in dropped:
        section, _, key = field.rpartition(".")
        del config[section][key]
    if dropped:
        listed = ", ".join(f"{field}={flat[field]}" for field in dropped)
        logging.warning("config: %s has no %s; left out", value, listed)
    for field in after.keys() - flat.keys():
        if not field.startswith("model."):
            section, _, key = field.rpartition(".")
            config[section][key] = after[field].default
