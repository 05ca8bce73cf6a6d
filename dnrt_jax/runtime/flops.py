"""Counts multiply-accumulates from the jaxpr; peak FLOP/s by device."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

# Dense bfloat16 FLOP/s per JAX device, by `device_kind`, from the vendors' data sheets. A device is
# one chip, except for TPU v2 and v3, where it is one of the two cores of a chip.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,  # float16
    "Tesla V100-SXM2-16GB": 125e12,  # float16
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


GROUPED = "grouped_convolution"  # of models/conv.py, in two forms


class MultiplyAccumulates(NamedTuple):
    """Numbers of multiply-accumulates.

    layers: in dense layers, convolutions and RAA's shifts, which is what the paper counts.
    products: in products of two activations, as in attention.
    """

    layers: int
    products: int

    @property
    def total(self) -> int:
        return self.layers + self.products


def multiply_accumulates(fn: Callable[..., Any], *args: Any) -> MultiplyAccumulates:
    """Counts those of fn(*args), with arrays or jax.ShapeDtypeStruct; `while` loops count once."""
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
        elif eqn.params.get("name") == GROUPED:
            layers += times * _size(eqn.outvars[0]) * _dims(eqn.invars[1], (0, 1, 2))
    return MultiplyAccumulates(layers, products)


def of_example(model: nn.Module, example: Any) -> MultiplyAccumulates:
    """Counts those of a forward pass on `example`, a pytree of jax.ShapeDtypeStruct.

    A training step takes about three times as many, for the gradients of weights and activations.
    """
    # The attention of a GPU is a kernel of cuDNN, of which the products do not show.
    model = model.clone(formulation="cpu") if hasattr(model, "formulation") else model
    variables = jax.eval_shape(model.init, jax.random.key(0), example)
    return multiply_accumulates(lambda v, x: model.apply(v, x, train=False), variables, example)


def of_image_model(model: Any, channels: int = 3) -> MultiplyAccumulates:
    """Counts those of a forward pass on one image f32[1, S, S, channels], S = model.image_size."""
    shape = (1, model.image_size, model.image_size, channels)
    return of_example(model, jax.ShapeDtypeStruct(shape, jnp.float32))


def utilization(macs: int, images_per_sec: float) -> float | None:
    """Model FLOP/s in training as a fraction of the peak of all devices; None if unknown."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return peak and 3 * 2 * macs * images_per_sec / (peak * jax.device_count())


def _equations(jaxpr: core.Jaxpr, times: int) -> Iterator[tuple[core.JaxprEqn, int]]:
    for eqn in jaxpr.eqns:
        yield eqn, times
        if eqn.params.get("name") == GROUPED:
            continue
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
