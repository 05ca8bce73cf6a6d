"""Converts errors of reading files to DataErrors that name the file."""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dnrt_jax.runtime.errors import DataError, UserError

# Exceptions of the archive modules, other than OSError, for damaged or encrypted files.
DAMAGED_ARCHIVE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,
)


@contextmanager
def reading(path: Path | str, damaged: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Context manager for a block that reads `path`, or files below it.

    Args:
      damaged: exceptions that the block raises for invalid content.

    Raises:
      DataError: for an OSError, such as a missing permission, and for exceptions in `damaged`.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, *damaged) as error:
        if isinstance(error, OSError) and error.strerror:
            where = error.filename or path
            raise DataError(f"{where} cannot be read ({error.strerror})") from None
        raise DataError(
            f"{path} cannot be read ({one_line(error)}); where it is damaged, fetch it again"
        ) from None


def one_line(error: Exception) -> str:
    """The message of an exception of another library, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
