"""Writes the records of a run to Weights & Biases or MLflow, if their package is installed."""

import hashlib
import importlib
from pathlib import Path
from typing import Any, Protocol

from dnrt_jax.config import Config, flatten
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.storage import AnyPath

PROJECT = "dnrt_jax"


class Tracker(Protocol):
    def log(self, record: dict[str, Any]) -> None:
        """Writes a record, which has a `step`."""

    def close(self) -> None: ...


def check(config: Config) -> None:
    """Raises a ConfigError if the package of `config.train.tracker` cannot be imported."""
    name = config.train.tracker
    try:
        if name != "none":
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"config.train.tracker={name!r}: needs {error.name}; run: pip install {name}"
        ) from None


def open_tracker(config: Config, folder: AnyPath) -> Tracker | None:
    """The tracker `config.train.tracker`, or None; a resumed run, which is one in the same folder,
    goes on in its place.

    Raises:
      ConfigError: if its package is not installed.
    """
    check(config)
    kind = {"none": None, "wandb": Wandb, "mlflow": MLflow}[config.train.tracker]
    return kind and kind(config, folder)


class Wandb:
    def __init__(self, config: Config, folder: AnyPath):
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=PROJECT,
            name=folder.name,
            id=_identity(folder),
            resume="allow",
            reinit="create_new",  # members of a set are open side by side
            config=config.to_dict(),
            dir=str(folder) if isinstance(folder, Path) else None,
        )

    def log(self, record: dict[str, Any]) -> None:
        self._run.log(_numbers(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


class MLflow:
    def __init__(self, config: Config, folder: AnyPath):
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow, self._client = mlflow, mlflow.MlflowClient()
        tags, place = {"run": _identity(folder)}, mlflow.set_experiment(PROJECT).experiment_id
        found = self._client.search_runs([place], f"tags.run = '{tags['run']}'")
        # By its number, and not as the active run, of which there is only one in a process.
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            made = self._client.create_run(place, run_name=folder.name, tags=tags)
            self._run = made.info.run_id
            mlflow.log_params(flatten(config), run_id=self._run)

    def log(self, record: dict[str, Any]) -> None:
        self._mlflow.log_metrics(_numbers(record), step=record["step"], run_id=self._run)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _identity(folder: AnyPath) -> str:
    place = folder.absolute() if isinstance(folder, Path) else folder
    return hashlib.sha256(str(place).encode()).hexdigest()[:16]


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name != "step" and value is not None}
