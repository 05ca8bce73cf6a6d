"""The interface of a task: data as batches for the training step, and an evaluation.

A batch is a dict: inputs, a pytree of arrays with the samples on the first axis; label i32[B]; mask
bool[B], False for rows that are padding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import flax.linen as nn
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dnrt_jax.config import Config
from dnrt_jax.fields import Field
from dnrt_jax.runtime import flops
from dnrt_jax.runtime.sharding import check_batch
from dnrt_jax.training.state import TrainState
from dnrt_jax.training.step import Batch, Mix


class OnDevice(NamedTuple):
    """A training split in device memory, replicated, and the rows of each step.

    data: {"inputs": [N, ...], "label": i32[N]}.
    rows: (start, count) -> indices i32[count, B], mask bool[count, B] of the steps from `start` on.
    shape: of one sample of the inputs, if they lie flat in `data`, [N, size].
    """

    data: dict[str, Array]
    rows: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
    shape: tuple[int, ...] | None = None


class Task(Protocol):
    """A data set and a learning problem on it. The unit of extension: see `dnrt_jax.tasks`.

    FIELDS: its config fields, as "data.flip"; `check` answers those that do not go together.
    class_names: one a class.
    num_train: training samples, in one epoch.
    batch_size: samples a training step.
    example: the shape of one model input with a first axis of 1, as a pytree of ShapeDtypeStruct.
    mixing: ways to mix the samples of a batch, as mixup; each batch takes one.
    """

    FIELDS: ClassVar[dict[str, Field]] = {}

    class_names: tuple[str, ...]
    num_train: int
    batch_size: int
    example: Any
    mixing: Sequence[Mix] = ()

    @classmethod
    def check(cls, config: Config) -> None:
        """Raises a ConfigError for incompatible fields; reads no data."""

    def __init__(self, config: Config):
        """Reads the data. Raises a UserError if they are missing or invalid."""

    def like(self, config: Config) -> "Task":
        """The task of a config that differs in numbers alone (`Field.number`), as the seed; one
        that can shares the data, in memory and on the devices, and the compiled evaluation."""
        return type(self)(config)

    def shares_samples(self, other: "Task") -> bool:
        """Whether `on_device` of both gives the same data, if in another order."""
        return False

    @property
    def description(self) -> str:
        """The data in words, for the log."""
        return f"{self.num_train} training samples"

    def check_mesh(self, mesh: Mesh) -> None:
        """Raises a ConfigError if the batches cannot be split over the devices."""
        check_batch("train.batch_size", self.batch_size, mesh.size)

    def preprocess(self, keys: Array, inputs: Any) -> Any:
        """Maps batch inputs to model inputs within the training step; keys [B], one per sample."""
        return inputs

    def train_batches(self, mesh: Mesh) -> Callable[[int], Iterator[Batch]]:
        """Returns draw(start), which yields the batches of the steps from `start` on, on devices.

        Batch i must be a function of (seed, i) alone.
        """
        ...

    def on_device(self, mesh: Mesh) -> OnDevice | None:
        """The training split in device memory, which allows many steps per dispatch; or None."""
        return None

    def evaluator(self, model: nn.Module, mesh: Mesh) -> Callable[[TrainState], dict[str, Any]]:
        """Returns evaluate(state) -> {"test/acc": float, ..., "confusion": i64[K, K]}.

        `evaluate` raises a NonFiniteError if a logit is NaN or infinite.
        """
        ...

    def class_counts(self) -> np.ndarray | None:
        """Number of training samples per class, i64[K], for Balanced Softmax; None if not known."""
        return None

    def samples(self, split: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]] | None:
        """Random batches of images u8[b, H, W, C] and labels i32[b] of "train" or "test", for
        figures and reports; None if the samples are not images."""
        return None

    def eval_preprocess(self, inputs: Any) -> Any:
        """Maps batch inputs to model inputs in evaluation."""
        return inputs

    def multiply_accumulates(self, model: nn.Module) -> int | None:
        """Multiply-accumulates of the forward pass per sample; None if not defined."""
        return flops.of_example(model, self.example).total
