"""Mistakes of the user: each is one line that names the thing, its value and the remedy.

The programs print a `UserError` as that line and end with status 1. Any other exception is a
defect of this project and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What the user can mend. The message is one line."""


class ConfigError(UserError, ValueError):
    """A config, or a command line, that cannot run."""


class ModelError(UserError, ValueError):
    """An unknown model or activation, or fields of a model that do not go together."""


class DataError(UserError, ValueError):
    """Data that are damaged, or not what they should be."""


class DataNotFoundError(DataError, FileNotFoundError):
    """Data that are not there."""


class DownloadError(DataError, ConnectionError):
    """A download that broke off."""


class WeightsError(UserError, ValueError):
    """A file of weights that cannot be read, or weights that do not fit a model."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing, damaged, or of another model."""


class WorkdirError(UserError, RuntimeError):
    """A folder that cannot serve this run."""


class NonFiniteError(UserError, RuntimeError):
    """A loss, a gradient or a logit that is not finite."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'NAME'?" for the nearest of `known`, or else "; known: ..."."""
    known = sorted(known)
    if near := difflib.get_close_matches(name, known, 1):
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}"
