"""The nodes of a graph as batches of a training step, and their evaluation.

A batch's `image` is a `models.graph.Graph`: the whole graph or a sampled part, asked about labelled
nodes. It lies on every device alike: what several devices divide are images, not a graph.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dnrt_jax.config import Config
from dnrt_jax.data import graphs
from dnrt_jax.data.order import epoch_order
from dnrt_jax.models.graph import Graph
from dnrt_jax.runtime import sharding as parallel
from dnrt_jax.training import metrics
from dnrt_jax.training import step as steps

Draw = Callable[[int], Iterator[steps.Batch]]


def example(graph: graphs.GraphData) -> Graph:
    """The shapes that decide a model's parameters."""
    index = jax.ShapeDtypeStruct((1,), np.int32)
    features = jax.ShapeDtypeStruct((1, graph.features.shape[1]), np.float32)
    return Graph(features, index, index, index)


def _batch(graph: Graph, labels: Any) -> steps.Batch:
    return {"image": graph, "label": labels, "mask": jnp.ones(labels.shape, bool)}


def batches(graph: graphs.GraphData, config: Config, mesh: Mesh) -> Draw:
    """Makes draw(start) -> the batches from step `start` on: a function of (seed, step)."""
    place = partial(jax.device_put, device=parallel.replicated(mesh))
    if not config.data.fanout:
        nodes = graph.splits["train"]
        everything = Graph(graph.features, graph.senders, graph.receivers, nodes)
        batch = place(_batch(everything, graph.labels[nodes]))

        def same(start: int) -> Iterator[steps.Batch]:
            while True:
                yield batch

        return same

    starts, train = graphs.neighbour_starts(graph), graph.splits["train"]
    batch_size, fanout = config.train.batch_size, tuple(config.data.fanout)
    epoch_steps = -(-len(train) // batch_size)

    def sampled(start: int) -> Iterator[steps.Batch]:
        step = start
        while True:
            epoch, at = divmod(step, epoch_steps)
            order = epoch_order(config.seed, epoch, len(train))
            seeds = train[
                np.resize(order, epoch_steps * batch_size)[at * batch_size :][:batch_size]
            ]
            rng = np.random.default_rng((config.seed, step))
            nodes, senders, receivers = graphs.sample_neighbours(
                graph.senders, starts, seeds, fanout, rng
            )
            own = np.arange(batch_size, dtype=np.int32)
            image = Graph(graph.features[nodes], senders, receivers, own)
            mask = at * batch_size + own < len(train)  # the last batch is filled up
            yield place({"image": image, "label": graph.labels[seeds], "mask": mask})
            step += 1

    return sampled


def evaluator(
    model: nn.Module, config: Config, graph: graphs.GraphData, mesh: Mesh
) -> Callable[[Any], dict[str, Any]]:
    """Makes evaluate(state) -> {"valid/acc", "valid/auc", ..., "test/acc", ..., "confusion"}."""
    num_classes = len(graph.class_names)
    step = steps.eval_step(model, config.arr, lambda x: x, num_classes, keep_logits=True)
    labels = {name: graph.labels[graph.splits[name]] for name in ("valid", "test")}
    place = partial(jax.device_put, device=parallel.replicated(mesh))
    all_of_it = place(Graph(graph.features, graph.senders, graph.receivers, None))
    asked = place({name: (graph.splits[name], labels[name]) for name in labels})

    @jax.jit
    def both(state, graph, asked):
        """In one program, so that the compiler sees that the layers are the same for both."""
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
