"""A classifier as one StableHLO program for CPU, GPU and TPU, without this package and Flax.

The program maps images u8[B, eval_resize, eval_resize, C], for any B, to probabilities f32[B, K];
the preprocessing and the weights are in it. `dnrt_jax.predict` runs it, and so does jax alone:

    program = jax.export.deserialize(bytearray(Path("digits.stablehlo").read_bytes()))
    probabilities = program.call(images)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax import export

from dnrt_jax.runtime import storage, weight_files
from dnrt_jax.runtime.errors import WeightsError
from dnrt_jax.runtime.storage import AnyPath
from dnrt_jax.runtime.weight_files import Description

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: AnyPath, run: Callable[[jax.Array], jax.Array], description: Description) -> None:
    """Writes a function from images to probabilities, for any batch size and all `PLATFORMS`.

    Raises:
      WeightsError: if flatbuffers is not installed, or config.json belongs to something else.
      OSError: errors of the file system.
    """
    (batch,) = export.symbolic_shape("batch")
    side, channels = description.eval_resize, len(description.mean)
    images = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.uint8)
    with _one_line_if_missing(path):
        content = export.export(jax.jit(run), platforms=PLATFORMS)(images).serialize()
    weight_files.write_bytes(path, bytes(content), description)


def read(path: AnyPath) -> Callable[[jax.Array], jax.Array]:
    """Reads a program that `write` has made, as a function from images to probabilities.

    Raises:
      WeightsError: if the file cannot be read.
    """
    if not storage.is_file(path):
        raise WeightsError(f"{path}: no such file")
    content = storage.read(path)
    try:
        with _one_line_if_missing(path):
            return jax.jit(export.deserialize(bytearray(content)).call)
    except WeightsError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path}: not a whole .stablehlo file ({reason})") from None


@contextmanager
def _one_line_if_missing(path: AnyPath) -> Iterator[None]:
    try:
        yield
    except ImportError:  # flatbuffers
        raise WeightsError(f"{path}: needs pip install 'dnrt_jax[export]'") from None
