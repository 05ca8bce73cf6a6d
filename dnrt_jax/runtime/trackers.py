"""Writes the records of a run to Weights & Biases or MLflow, if their package is installed."""

import hashlib
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


def open_tracker(config: Config, folder: AnyPath) -> Tracker | None:
    """The tracker `config.train.tracker`, or None; a resumed run, which is one in the same folder,
    goes on in its place.

    Raises:
      ConfigError: if its package is not installed.
    """
    name = config.train.tracker
    if name == "none":
        return None
    try:
        return {"wandb": Wandb, "mlflow": MLflow}[name](config, folder)
    except ImportError as error:
        raise ConfigError(
            f"config.train.tracker={name!r}: needs {error.name}; run: pip install {name}"
        ) from None


class Wandb:
    def __init__(self, config: Config, folder: AnyPath):
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=PROJECT,
            name=folder.name,
            id=_identity(folder),
            resume="allow",
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

        self._mlflow, identity = mlflow, _identity(folder)
        mlflow.set_experiment(PROJECT)
        found = mlflow.search_runs(filter_string=f"tags.run = '{identity}'", output_format="list")
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
        else:
            mlflow.start_run(run_name=folder.name, tags={"run": identity})
            mlflow.log_params(flatten(config))

    def log(self, record: dict[str, Any]) -> None:
        self._mlflow.log_metrics(_numbers(record), step=record["step"])

    def close(self) -> None:
        self._mlflow.end_run()


def _identity(folder: AnyPath) -> str:
    place = folder.absolute() if isinstance(folder, Path) else folder
    return hashlib.sha256(str(place).encode()).hexdigest()[:16]


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name != "step" and value is not None}
