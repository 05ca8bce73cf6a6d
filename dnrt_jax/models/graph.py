"""Shared by the graph models: their input, the sum over neighbours, the stack of layers."""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dnrt_jax import activations
from dnrt_jax.raa import promote
from dnrt_jax.record import record


class Graph(NamedTuple):
    """A graph, or a sampled subgraph, and the nodes to classify.

    features: f32[N, F].
    senders, receivers: i32[E], the edges, sorted by receiver. Entries with receiver N are padding.
    nodes: i32[B].
    """

    features: Any
    senders: Any
    receivers: Any
    nodes: Any


def sum_neighbours(graph: Graph, x: Array) -> Array:
    """The sum over the senders of each receiver: [N, D] -> [N, D]."""
    # Takes E x D memory: callers choose a small D.
    return _sum_edges(graph, x[graph.senders])


def degrees(graph: Graph) -> Array:
    """The number of neighbours of each node, f32[N]."""
    return _sum_edges(graph, jnp.ones(graph.receivers.shape, jnp.float32))


def _sum_edges(graph: Graph, x: Array) -> Array:
    # In bfloat16 a sum of ones ends at 256.
    num_nodes, dtype = graph.features.shape[0], x.dtype
    total = jax.ops.segment_sum(promote(x), graph.receivers, num_nodes, indices_are_sorted=True)
    return total.astype(dtype)


class GraphNetwork(nn.Module):
    """Graph -> logits f32[B, num_classes] of `graph.nodes`, by `depth` layers.

    RAA sites: every hidden layer. ARR sites: every hidden layer's output at `nodes`, after its
    activation (J = depth - 1). The paper gives neither sites nor sizes for its graph models.
    """

    layer: ClassVar[Any]  # (features, dtype, name) -> module on (graph, [N, C])

    num_classes: int
    act: str = "raa"
    embed_dim: int = 128
    depth: int = 2
    drop_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, graph: Graph, train: bool = False) -> Array:
        x = graph.features
        for i in range(self.depth - 1):
            x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
            x = self.layer(self.embed_dim, dtype=self.dtype, name=f"layers_{i}")(graph, x)
            x = activations.create(self.act, f"act_{i}")(x)
            record(self, x[graph.nodes], f"response_{i}")
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        logits = self.layer(self.num_classes, dtype=None, name="head")(graph, x)[graph.nodes]
        return promote(logits)
