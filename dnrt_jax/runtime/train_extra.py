"""The packages that `pip install 'dnrt_jax[train]'` adds to jax and flax.

Every program imports this file before anything else: a program started without these packages then
prints one line that says what to install. Imported as a library, nothing is checked.
"""

import sys
from importlib.util import find_spec

PACKAGES = (
    "absl",
    "array_record",
    "clu",
    "grain",
    "matplotlib",
    "ml_collections",
    "optax",
    "orbax",
    "PIL",
    "safetensors",
    "sklearn",
    "tensorboardX",
    "tensorflow_datasets",
    "tqdm",
)


def missing() -> list[str]:
    """The import names of the packages that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def require() -> None:
    """Ends the program if a package is not installed."""
    if absent := missing():
        sys.exit(f"error: not installed: {', '.join(absent)}; run: pip install 'dnrt_jax[train]'")


_program = getattr(sys.modules["__main__"], "__spec__", None)  # set by `python -m`
if _program and _program.name.startswith("dnrt_jax."):
    require()
