"""GCN: graph convolutional network (Kipf & Welling, ICLR 2017), full-batch."""

from typing import Any

import flax.linen as nn
import jax
from jax import Array

from dnrt_jax.models.graph import Graph, GraphNetwork, degrees, sum_neighbours


class GraphConv(nn.Module):
    """D^-1/2 (A + I) D^-1/2 x W + b on [N, C], with D the degree matrix of A + I."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, graph: Graph, x: Array) -> Array:
        init = nn.initializers.glorot_uniform()
        dense = nn.Dense(self.features, use_bias=False, dtype=self.dtype, kernel_init=init)
        # The layer is linear, so the sum over edges can be taken at the smaller of the two widths.
        narrows = self.features < x.shape[-1]
        x = dense(x) if narrows else x
        scale = jax.lax.rsqrt(degrees(graph) + 1)[:, None].astype(x.dtype)
        x = scale * (sum_neighbours(graph, scale * x) + scale * x)
        x = x if narrows else dense(x)
        return x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)


class GCN(GraphNetwork):
    layer = GraphConv


MODELS = {"gcn": GCN}
