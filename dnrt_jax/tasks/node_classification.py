"""Node classification on a graph.

The inputs of a batch are a `models.graph.Graph`: the whole graph or a sampled subgraph, with the
labelled nodes to classify. The graph is replicated on all devices; it is not sharded.
"""

import copy
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dnrt_jax import models
from dnrt_jax.config import Config
from dnrt_jax.data import graphs
from dnrt_jax.data.datasets import local_dir
from dnrt_jax.data.order import epoch_order
from dnrt_jax.fields import FLAG, Field, choice, integers_from
from dnrt_jax.models.graph import Graph
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.sharding import replicated
from dnrt_jax.tasks.base import Task
from dnrt_jax.training import metrics
from dnrt_jax.training.step import Batch, eval_step


class NodeClassification(Task):
    """Node classification, full-batch or with neighbour sampling, see `Task`.

    Args:
      graph: by default it is read as the config says.

    Raises:
      UserError: if the data cannot be read.
    """

    FIELDS: ClassVar = {
        "data.features": Field(
            "raw",
            choice("raw", "rows", "zscore"),
            "node features: raw, rows normalised to sum 1, or columns standardised (zscore)",
        ),
        "data.self_loops": Field(False, FLAG, "add a self-loop to every node"),
        "data.fanout": Field(
            (),
            integers_from(1, "whole numbers from 1"),
            "neighbours sampled per layer, as (10, 10); empty for the full graph",
        ),
    }

    def __init__(self, config: Config, graph: graphs.GraphData | None = None):
        self._config, data = config, config.data
        read = lambda: _load(
            data.name, local_dir(data.name, data.dir), data.features, data.self_loops
        )
        self.graph = read() if graph is None else graph
        self.class_names = self.graph.class_names
        self.num_train = len(self.graph.splits["train"])
        self.batch_size = config.train.batch_size if data.fanout else self.num_train
        index = jax.ShapeDtypeStruct((1,), np.int32)
        features = jax.ShapeDtypeStruct((1, self.graph.features.shape[1]), np.float32)
        self.example = Graph(features, index, index, index)
        # Shared by the tasks that `like` makes: by mesh, and by model and mesh.
        self._copies: dict[Mesh, Graph] = {}
        self._evaluators: dict[tuple[int, Mesh], Callable[[Any], dict[str, Any]]] = {}

    @classmethod
    def check(cls, config: Config) -> None:
        name, fanout = config.model.name, config.data.fanout
        if "image_size" in models.fields(name):
            raise ConfigError(f"config.model.name={name!r}: takes images; see config.task")
        if config.train.dispatch == "scan":
            raise ConfigError("config.train.dispatch='scan': not for graphs")
        if config.train.accumulate > 1:
            raise ConfigError(f"config.train.accumulate={config.train.accumulate}: not for graphs")
        if fanout and name != "graphsage":
            raise ConfigError(f"config.data.fanout: {name} needs all of a node's neighbours")
        if fanout and len(fanout) != (config.model.get("depth") or 2):
            raise ConfigError(
                "config.data.fanout: needs a number for each of config.model.depth layers"
            )

    def like(self, config: Config) -> "NodeClassification":
        task = copy.copy(self)
        task._config = config
        return task

    @property
    def description(self) -> str:
        graph = self.graph
        counts = ", ".join(f"{len(nodes)} {name}" for name, nodes in graph.splits.items())
        return f"{len(graph.labels)} nodes ({counts}), {len(graph.senders)} edges"

    def check_mesh(self, mesh: Mesh) -> None:
        """Any will do: every device has the whole graph."""

    def train_batches(self, mesh: Mesh) -> Callable[[int], Iterator[Batch]]:
        place = partial(jax.device_put, device=replicated(mesh))
        if self._config.data.fanout:
            return lambda start: map(place, self._sampled(start))
        nodes = self.graph.splits["train"]
        batch = place(_batch(self._copy(mesh)._replace(nodes=nodes), self.graph.labels[nodes]))

        def same(start: int) -> Iterator[Batch]:
            while True:
                yield batch

        return same

    def _sampled(self, start: int) -> Iterator[Batch]:
        graph, config, batch_size = self.graph, self._config, self.batch_size
        starts, train = graphs.neighbour_starts(graph), graph.splits["train"]
        fanout, epoch_steps, step = tuple(config.data.fanout), -(-len(train) // batch_size), start
        while True:
            epoch, at = divmod(step, epoch_steps)
            order = epoch_order(config.seed, epoch, len(train))
            filled = np.resize(order, epoch_steps * batch_size)
            seeds = train[filled[at * batch_size :][:batch_size]]
            rng = np.random.default_rng((config.seed, step))
            nodes, senders, receivers = graphs.sample_neighbours(
                graph.senders, starts, seeds, fanout, rng
            )
            own = np.arange(batch_size, dtype=np.int32)
            inputs = Graph(graph.features[nodes], senders, receivers, own)
            mask = at * batch_size + own < len(train)  # padding of the last batch
            yield {"inputs": inputs, "label": graph.labels[seeds], "mask": mask}
            step += 1

    def _copy(self, mesh: Mesh) -> Graph:
        """The one copy of the graph in the memory of each device of `mesh`, without nodes."""
        if mesh not in self._copies:
            graph = self.graph
            graph = Graph(graph.features, graph.senders, graph.receivers, None)
            self._copies[mesh] = jax.device_put(graph, replicated(mesh))
        return self._copies[mesh]

    def evaluator(self, model: nn.Module, mesh: Mesh) -> Callable[[Any], dict[str, Any]]:
        """As `Task.evaluator`, for the validation and the test nodes; also reports the AUC."""
        key = id(model), mesh  # the evaluator keeps the model alive; its fields may have no hash
        if key not in self._evaluators:
            self._evaluators[key] = self._evaluator(model, mesh)
        return self._evaluators[key]

    def _evaluator(self, model: nn.Module, mesh: Mesh) -> Callable[[Any], dict[str, Any]]:
        graph, num_classes = self.graph, len(self.class_names)
        step = eval_step(model, self._config.arr, lambda x: x, num_classes, keep_logits=True)
        labels = {name: graph.labels[graph.splits[name]] for name in ("valid", "test")}
        all_of_it = self._copy(mesh)
        asked = {name: (graph.splits[name], labels[name]) for name in labels}
        asked = jax.device_put(asked, replicated(mesh))

        @jax.jit
        def both(state, graph, asked):
            """Both splits in one program, so that the forward pass is computed once."""
            return {
                name: step(state, _batch(graph._replace(nodes=nodes), labels))
                for name, (nodes, labels) in asked.items()
            }

        def evaluate(state: Any) -> dict[str, Any]:
            values: dict[str, Any] = {}
            for name, sums in jax.device_get(both(state, all_of_it, asked)).items():
                found = metrics.summary(sums, f"{name} nodes at step {int(state.step)}")
                found["auc"] = metrics.macro_roc_auc(sums["logits"], labels[name])
                values |= {f"{name}/{key}": value for key, value in found.items()}
                values["confusion"] = sums["confusion"].astype(np.int64)
            return values

        return evaluate

    def class_counts(self) -> np.ndarray:
        labels = self.graph.labels[self.graph.splits["train"]]
        return np.bincount(labels, minlength=len(self.class_names))

    def multiply_accumulates(self, model: nn.Module) -> None:
        return None


@cache
def _load(name: str, folder: Path, features: str, self_loops: bool) -> graphs.GraphData:
    return graphs.load(name, folder, features=features, self_loops=self_loops)


def _batch(graph: Graph, labels: Any) -> Batch:
    return {"inputs": graph, "label": labels, "mask": jnp.ones(labels.shape, bool)}
