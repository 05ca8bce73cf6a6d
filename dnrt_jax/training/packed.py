"""A training state with its parameters, and all that mirrors them, as one vector each.

On TPU and GPU the optimiser then takes a few kernels a step, instead of some for each parameter.
An elementwise optimiser and clipping by the global norm do to a vector what they do to a tree; see
`optim.is_elementwise`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dnrt_jax.training.state import TrainState


class Packing:
    """Packs and unpacks states like `shapes`, a TrainState of jax.ShapeDtypeStruct."""

    def __init__(self, shapes: TrainState):
        self._shapes, self._structure = shapes, jax.tree.structure(shapes.params)
        leaves = jax.tree.leaves(shapes.params)
        # Scalars and vectors first: a kernel that needs a few of them reads only these.
        self._order = sorted(range(len(leaves)), key=lambda i: leaves[i].ndim > 1)
        self._few = sum(leaf.size for leaf in leaves if leaf.ndim <= 1)

    def pack(self, state: TrainState) -> TrainState:
        """The state with vectors f32[P] for its parameters and all that mirrors them."""
        ravel = lambda tree: self._ravel(tree) if self._mirrors(tree) else tree
        return jax.tree.map(ravel, state, is_leaf=self._mirrors)

    def unpack(self, packed: TrainState) -> TrainState:
        unravel = lambda like, x: self.unravel(x) if self._mirrors(like) else x
        return jax.tree.map(unravel, self._shapes, packed, is_leaf=self._mirrors)

    def unravel(self, vector: Array) -> Any:
        """The tree of parameters in f32[P]."""
        shapes = jax.tree.leaves(self._shapes.params)
        few, rest = jax.lax.split(vector, [self._few, vector.size - self._few])
        few = jax.lax.optimization_barrier(few)
        leaves, start = list(shapes), 0
        for i in self._order:
            source, offset = (few, start) if start < self._few else (rest, start - self._few)
            stop = offset + shapes[i].size
            leaves[i] = source[offset:stop].reshape(shapes[i].shape)
            start += shapes[i].size
        return self._structure.unflatten(leaves)

    def _ravel(self, tree: Any) -> Array:
        leaves = jax.tree.leaves(tree)
        return jnp.concatenate([leaves[i].ravel() for i in self._order])

    def _mirrors(self, tree: Any) -> bool:
        return jax.tree.structure(tree) == self._structure
