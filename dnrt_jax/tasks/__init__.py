"""Tasks: what a model is trained on. A task is one file with one class, and one line in `TASKS`.

A task outside the package is given as MODULE:CLASS in `config.task`; `base.py` has the interface.
"""

import importlib

from dnrt_jax.runtime.errors import ConfigError, did_you_mean
from dnrt_jax.tasks.base import Task

TASKS = {
    "image_classification": "dnrt_jax.tasks.image_classification:ImageClassification",
    "node_classification": "dnrt_jax.tasks.node_classification:NodeClassification",
}


def find(name: str) -> type[Task]:
    """The class of the task `name`, a name in `TASKS` or MODULE:CLASS.

    Raises:
      ConfigError: for an unknown task.
    """
    module, _, attribute = TASKS.get(name, name).partition(":")
    if not attribute:
        raise ConfigError(f"config.task={name!r}: no such task{did_you_mean(name, TASKS)}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        if name in TASKS:
            raise
        raise ConfigError(f"config.task={name!r}: {error}") from None
    if not hasattr(found, "FIELDS"):
        raise ConfigError(f"config.task={name!r}: no task, it has no FIELDS; see tasks/base.py")
    return found
