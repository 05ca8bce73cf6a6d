"""A training state with its parameters, and all that mirrors them, as one vector each.

On TPU and GPU the optimiser then takes a few kernels a step, instead of some for each parameter.
An elementwise optimiser and clipping by the global norm do to a vector what they do to a tree; see
`optim.is_elementwise`.
"""

from typing import Any

import jax
from jax import Array
from jax.flatten_util import ravel_pytree

from dnrt_jax.training.state import TrainState


class Packing:
    """Packs and unpacks states like `shapes`, a TrainState of jax.ShapeDtypeStruct."""

    def __init__(self, shapes: TrainState):
        self._shapes, self._structure = shapes, jax.tree.structure(shapes.params)

    def pack(self, state: TrainState) -> TrainState:
        """The state with vectors f32[P] for its parameters and all that mirrors them."""
        ravel = lambda tree: ravel_pytree(tree)[0] if self._mirrors(tree) else tree
        return jax.tree.map(ravel, state, is_leaf=self._mirrors)

    def unpack(self, packed: TrainState) -> TrainState:
        unravel = lambda like, x: self.unravel(x) if self._mirrors(like) else x
        return jax.tree.map(unravel, self._shapes, packed, is_leaf=self._mirrors)

    def unravel(self, vector: Array) -> Any:
        """The tree of parameters in f32[P]."""
        leaves = jax.tree.leaves(self._shapes.params)
        parts = jax.lax.split(vector, [leaf.size for leaf in leaves])
        parts = (part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True))
        return self._structure.unflatten(parts)

    def _mirrors(self, tree: Any) -> bool:
        return jax.tree.structure(tree) == self._structure
