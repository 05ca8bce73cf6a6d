"""What goes wrong while a file of the user is read, as one line that names the file."""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dnrt_jax.runtime.errors import DataError, UserError

# What the archive modules raise, beside OSError, for damaged or encrypted files.
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
    """A block that reads `path`, or files below it.

    Args:
      damaged: what the block's parser raises for content that it cannot read.

    Raises:
      DataError: for an OSError, such as a permission that is missing, and for one of `damaged`.
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
    """The text of an error of another library."""
    return " ".join(str(error).split()) or type(error).__name__
