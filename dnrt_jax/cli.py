"""What the programs share: a user's mistake is answered in one line on standard error."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with status 1 at a ValueError, OSError or RuntimeError.

    With $DNRT_TRACEBACK set the error goes on as it is.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read the output, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("DNRT_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
