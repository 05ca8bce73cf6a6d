"""A training state with its small parameters, and all that mirrors them, as one vector each.

On TPU and GPU the optimiser then takes a few kernels a step, instead of some for each parameter.
An elementwise optimiser and clipping by the global norm do to a vector what they do to a tree; see
`optim.is_elementwise`. Large parameters stay as they are: to copy them into a vector and out of it
takes longer than a kernel of their own. So do those of another dtype than the first.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dnrt_jax.training.state import TrainState

LARGE = 2**18  # elements
Packed = tuple[Array, list[Array]]  # the vector, and what stays as it is


class Packing:
    """Packs and unpacks states like `shapes`, a TrainState of jax.ShapeDtypeStruct.

    Args:
      vectors_apart: puts scalars and vectors before all matrices, so that a GPU's kernel that needs
        a few numbers reads only these; a TPU takes 5% longer for a step of ViT-Tiny so.
    """

    def __init__(self, shapes: TrainState, vectors_apart: bool = False):
        self._shapes, self._structure = shapes, jax.tree.structure(shapes.params)
        leaves = list(enumerate(jax.tree.leaves(shapes.params)))
        dtype = leaves[0][1].dtype
        small = [(i, x) for i, x in leaves if x.size < LARGE and x.dtype == dtype]
        is_first = lambda x: vectors_apart and x.ndim <= 1
        first = [(i, x.size) for i, x in small if is_first(x)]
        rest = [(i, x.size) for i, x in small if not is_first(x)]
        self._order = [i for i, _ in [*first, *rest]]
        self._sizes = [[size for _, size in part] for part in (first, rest)]
        self._alone = [i for i, _ in leaves if i not in self._order]

    def around(self, run: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
        """Of run(numbers, packed state, ...) -> (packed state, values) the same for states that are
        not packed."""

        def unpacked(numbers, state, *args):
            state, values = run(numbers, self.pack(state), *args)
            return self.unpack(state), values

        return unpacked

    def pack(self, state: TrainState) -> TrainState:
        """The state with its parameters and all that mirrors them packed."""
        ravel = lambda tree: self._ravel(tree) if self._mirrors(tree) else tree
        return jax.tree.map(ravel, state, is_leaf=self._mirrors)

    def unpack(self, packed: TrainState) -> TrainState:
        unravel = lambda like, x: self.unravel(x) if self._mirrors(like) else x
        return jax.tree.map(unravel, self._shapes, packed, is_leaf=self._mirrors)

    def unravel(self, packed: Packed) -> Any:
        """The tree of parameters."""
        vector, alone = packed
        first, rest = jax.lax.split(vector, list(map(sum, self._sizes)))
        parts: list[Array] = []
        for x, sizes in zip((jax.lax.optimization_barrier(first), rest), self._sizes, strict=True):
            parts += jax.lax.split(x, sizes) if sizes else []
        of_leaf = dict(zip([*self._order, *self._alone], [*parts, *alone], strict=True))
        leaves = enumerate(jax.tree.leaves(self._shapes.params))
        return self._structure.unflatten([of_leaf[i].reshape(x.shape) for i, x in leaves])

    def _ravel(self, tree: Any) -> Packed:
        leaves = jax.tree.leaves(tree)
        parts = [leaves[i].ravel() for i in self._order] or [jnp.zeros(0)]
        return jnp.concatenate(parts), [leaves[i] for i in self._alone]

    def _mirrors(self, tree: Any) -> bool:
        return jax.tree.structure(tree) == self._structure
