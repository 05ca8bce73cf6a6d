"""Errors that the user can fix. The message is one line with the cause and the remedy.

The programs print a `UserError` as one line and exit with status 1. Any other exception is a bug of
this package and is shown with its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base class of all errors that the user can fix. The message is one line."""


class ConfigError(UserError, ValueError):
    """An invalid config or command line."""


class ModelError(UserError, ValueError):
    """An unknown model or activation, or incompatible fields of a model."""


class DataError(UserError, ValueError):
    """Data that are damaged or in an unexpected format."""


class DataNotFoundError(DataError, FileNotFoundError):
    """Data that were not found."""


class DownloadError(DataError, ConnectionError):
    """A download that failed."""


class WeightsError(UserError, ValueError):
    """A weight file that cannot be read, or weights that do not fit the model."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class WorkdirError(UserError, RuntimeError):
    """A run folder that cannot be used."""


class StorageError(UserError, OSError):
    """A bucket that cannot be reached, read or written."""


class NonFiniteError(UserError, RuntimeError):
    """A loss, gradient or logit that is NaN or infinite."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'NAME'?" if a known name is similar in any case, else "; known: ..."."""
    known = sorted(known)
    lower = {other.lower(): other for other in known}
    if near := difflib.get_close_matches(name.lower(), lower, 1):
        return f"; did you mean {lower[near[0]]!r}?"
    return f"; known: {', '.join(known)}"
