"""Helpers of the programs: error messages, overrides, compilation cache, memory allocator."""

import argparse
import ctypes
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from dnrt_jax.runtime.errors import ConfigError, UserError

# glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX. Freed memory stays in the process.
KEEP_FREED = {-4: 0, -1: 2**31 - 1, -8: 1}
# Of TPUs up to v4 and from v5e on; of NVIDIA's driver, and of the same in WSL; of AMD's driver.
DEVICE_FILES = {
    "libtpu": ("/dev/accel*", "/dev/vfio/[0-9]*"),
    "cuda": ("/dev/nvidia*", "/dev/dxg"),
    "rocm": ("/dev/kfd",),
}
DEFECT = (
    "This is a bug of dnrt_jax. Please report it where you got dnrt_jax from, with the lines above "
    "and the command."
)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with one-line errors and without abbreviations.

    prog: "python -m dnrt_jax.NAME"; a program started by `dnrt` shows "dnrt NAME" in its place.
    """

    def __init__(self, prog: str, **kwargs):
        formatter = argparse.RawDescriptionHelpFormatter
        if sys.argv[0].startswith("dnrt "):
            prog = re.sub(r"python -m dnrt_jax\.\w+", sys.argv[0], prog)
        super().__init__(prog, **{"formatter_class": formatter, "allow_abbrev": False} | kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


@contextmanager
def user_errors() -> Iterator[None]:
    """Reports errors that the user can fix in one line and exits with status 1: a `UserError`, an
    error of the file system, or out of device memory.

    Other exceptions are printed with their traceback and a request to report them. If the
    environment variable DNRT_TRACEBACK is set, every exception is raised unchanged.
    """
    try:
        yield
    except KeyboardInterrupt:  # before or after the training, which saves a checkpoint first
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if os.environ.get("DNRT_TRACEBACK"):
            raise
        if (said := _said(error)) is None:
            logging.exception("an unexpected error")
            print(DEFECT, file=sys.stderr)
            sys.exit(1)
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        sys.exit(1)


def _said(error: Exception) -> str | None:
    """The message for an error that the user can fix; None for any other."""
    if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno):
        return str(error)
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"the device is out of memory ({str(error).splitlines()[0]}); lower "
            "config.train.batch_size, or set config.train.accumulate or config.parallel.fsdp; data "
            "in device memory leave it with config.train.dispatch=single"
        )
    return None


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Splits arguments into those other than --config.FIELD=VALUE and {FIELD: VALUE}.

    Raises:
      ConfigError: for a field without a value.
    """
    rest, overrides, words = [], {}, iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix("--config.").partition("=")
        value = value if equals else next(words, "--")
        if not equals and value.startswith("--"):
            raise ConfigError(f"--config.{name}: give it a value, as --config.{name}=VALUE")
        overrides[name] = value
    return rest, overrides


def keep_programs() -> None:
    """Turns on JAX's compilation cache, in ~/.cache/dnrt_jax or $JAX_COMPILATION_CACHE_DIR.

    There is one folder per JAX version and host, as XLA:CPU compiles for the processor at hand.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = user / "dnrt_jax" / f"jax-{jax.__version__}-{platform.node()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # The default minimum is one second, but a start compiles many small programs.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def may_have_accelerator() -> bool:
    """Whether JAX may find more than CPUs on this Linux machine.

    What lets JAX use an accelerator may be installed where there is none, to compile for it: then
    the accelerator's device files are missing.
    """
    plugins = {plugin.name for plugin in entry_points(group="jax_plugins")}
    plugins |= {"libtpu"} if find_spec("libtpu") else set()
    files = {plugin: _device_files(plugin) for plugin in plugins}
    return any(found is None or any(map(glob, found)) for found in files.values())


def _device_files(plugin: str) -> Sequence[str] | None:
    """Patterns of the files that show a device of a plug-in to be there; None if not known."""
    return next((files for name, files in DEVICE_FILES.items() if name in plugin), None)


def keep_memory() -> None:
    """On CPU, makes glibc's malloc keep freed memory. Call it before JAX starts its threads.

    XLA:CPU allocates its buffers at every step; getting the pages from the operating system each
    time takes a fifth of a ViT-Tiny step.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if sys.platform != "linux" or (platforms != "cpu" if platforms else may_have_accelerator()):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        for parameter, value in KEEP_FREED.items():
            libc.mallopt(parameter, value)
