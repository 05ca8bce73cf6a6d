"""What the programs share: mistakes answered in one line; compiled programs and memory kept."""

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

# glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX. Nothing freed goes back.
KEEP_FREED = {-4: 0, -1: 2**31 - 1, -8: 1}


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


def keep_programs() -> None:
    """Keeps what XLA compiles for later runs, in ~/.cache/dnrt_jax or $JAX_COMPILATION_CACHE_DIR.

    A folder for each version of JAX and each host: XLA:CPU compiles for the very processor.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = user / "dnrt_jax" / f"jax-{jax.__version__}-{platform.node()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default only what takes a second to compile is kept: a start is many small programs.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def keep_memory() -> None:
    """Where JAX will find CPUs only, lets glibc keep what is freed. To be called before JAX starts
    its threads.

    XLA:CPU allocates a step's buffers at every step. Getting their pages from the system each time
    takes a fifth of a ViT-Tiny step.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    accelerators = entry_points(group="jax_plugins") or find_spec("libtpu")
    if sys.platform != "linux" or (platforms != "cpu" if platforms else accelerators):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        for parameter, value in KEEP_FREED.items():
            libc.mallopt(parameter, value)
