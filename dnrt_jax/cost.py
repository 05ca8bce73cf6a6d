"""What a function costs, read from its traced program: multiply-accumulates, without running it."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core


class MultiplyAccumulates(NamedTuple):
    """layers: of dense layers, convolutions and RAA's shifts, which is what the paper counts.
    products: of activations with activations, as attention's.
    """

    layers: int
    products: int

    @property
    def total(self) -> int:
        return self.layers + self.products


def multiply_accumulates(fn: Callable[..., Any], *args: Any) -> MultiplyAccumulates:
    """Those of fn(*args), arrays or jax.ShapeDtypeStruct; a loop of unknown length counts once."""
    layers = products = 0
    for eqn, times in _equations(jax.make_jaxpr(fn)(*args).jaxpr, 1):
        if eqn.primitive.name == "dot_general":
            (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
            count = times * _size(eqn.outvars[0]) * _dims(eqn.invars[0], contracted)
            layers += 0 if batch else count
            products += count if batch else 0
        elif eqn.primitive.name == "conv_general_dilated":
            # Kernel: (output channels, input channels of one group, window ...).
            kernel, numbers = eqn.invars[1], eqn.params["dimension_numbers"]
            layers += times * _size(eqn.outvars[0]) * _dims(kernel, numbers.rhs_spec[1:])
    return MultiplyAccumulates(layers, products)


def _equations(jaxpr: core.Jaxpr, times: int) -> Iterator[tuple[core.JaxprEqn, int]]:
    for eqn in jaxpr.eqns:
        yield eqn, times
        inner = times * eqn.params.get("length", 1)  # of a scan
        for value in jax.tree.leaves(list(eqn.params.values())):
            if isinstance(value, core.ClosedJaxpr):
                yield from _equations(value.jaxpr, inner)
            elif isinstance(value, core.Jaxpr):
                yield from _equations(value, inner)


def _size(var: Any) -> int:
    return math.prod(var.aval.shape)


def _dims(var: Any, axes: Any) -> int:
    return math.prod(var.aval.shape[axis] for axis in axes)
