"""GraphSAGE with the mean aggregator (Hamilton, Ying & Leskovec, NeurIPS 2017).

Full-batch, or on sampled neighbourhoods.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from dnrt_jax.models.graph import Graph, GraphNetwork, degrees, sum_neighbours
from dnrt_jax.models.layers import uniform_fan_in


class SageConv(nn.Module):
    """x W_own + mean(x of the neighbours) W_neighbours + b on [N, C]; an empty mean is 0."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, graph: Graph, x: Array) -> Array:
        dense = lambda bias, name: nn.Dense(
            self.features, bias, dtype=self.dtype, kernel_init=uniform_fan_in, name=name
        )
        own, neighbours = dense(True, "own")(x), dense(False, "neighbours")
        # The layer is linear, so the sum over edges can be taken at the smaller of the two widths.
        narrows = self.features < x.shape[-1]
        x = neighbours(x) if narrows else x
        mean = sum_neighbours(graph, x) / jnp.maximum(degrees(graph), 1)[:, None].astype(x.dtype)
        return own + (mean if narrows else neighbours(mean))


class GraphSAGE(GraphNetwork):
    layer = SageConv


MODELS = {"graphsage": GraphSAGE}
