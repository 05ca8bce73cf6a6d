"""Layers shared by the CNNs: convolutions with torch's padding, batch norm, pooling."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array

from dnrt_jax.models.formulation import Formulation
from dnrt_jax.models.layers import check_multiple, uniform_fan_in
from dnrt_jax.models.norm_raa import norm_raa
from dnrt_jax.raa import RAA, promote
from dnrt_jax.runtime.errors import ModelError

kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
pad_1: Any = ((1, 1), (1, 1))  # Any: the annotation of nn.max_pool is too narrow


class Conv(nn.Module):
    """A convolution [B, H, W, C] -> [B, H/stride, W/stride, features], padded by kernel_size // 2.

    H/stride and W/stride round up. Parameters are those of nn.Conv. Pointwise convolutions are
    matrix products, on a CPU those of groups one by one, and depthwise ones sums of shifted
    products, since XLA:CPU is slow at their gradients: MobileNets train in two fifths of the time.
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Any = uniform_fan_in
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, c = self.kernel_size, x.shape[-1]
        check_multiple(channels=c, groups=self.groups)
        check_multiple(features=self.features, groups=self.groups)
        kernel = self.param("kernel", self.kernel_init, (k, k, c // self.groups, self.features))
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.groups > 1:
            x = grouped_convolution(x, kernel, self.stride, self.groups)
        elif k == 1:
            x = _pointwise(x[:, :: self.stride, :: self.stride], kernel[0, 0], 1)
        else:
            x = _convolution(x, kernel, self.stride, 1)
        return x if bias is None else x + bias


@partial(jax.jit, static_argnums=(2, 3))  # a call in the jaxpr, by whose name `flops` counts it
def grouped_convolution(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    plain = partial(_convolution, stride=stride, groups=groups)
    if len(kernel) == 1:
        by_group = lambda x, kernel: _pointwise(x[:, ::stride, ::stride], kernel[0, 0], groups)
    elif groups == x.shape[-1] == kernel.shape[-1]:
        by_group = lambda x, kernel: _shifted_products(x, kernel[:, :, 0], stride)
    else:
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=by_group, default=plain)


def _convolution(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    pad = len(kernel) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=2 * [(pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _pointwise(x: Array, kernel: Array, groups: int) -> Array:
    pixels = jnp.split(x.reshape(-1, x.shape[-1]), groups, axis=1)
    kernels = jnp.split(kernel, groups, axis=1)
    y = jnp.concatenate([p @ k for p, k in zip(pixels, kernels, strict=True)], axis=1)
    return y.reshape(*x.shape[:-1], -1)


def _shifted_products(x: Array, kernel: Array, stride: int) -> Array:
    h, w = x.shape[1:3]
    k, dtype = kernel.shape[0], x.dtype
    pad = (k // 2, k // 2)
    x = promote(jnp.pad(x, ((0, 0), pad, pad, (0, 0))))
    shifted = lambda i, j: x[:, i : i + h : stride, j : j + w : stride]
    y = sum(shifted(i, j) * kernel[i, j] for i in range(k) for j in range(k))
    return jnp.asarray(y, dtype)


class BatchNorm(nn.BatchNorm):
    """nn.BatchNorm with torch's default momentum of 0.1, which is 0.9 in Flax's convention.

    `fused` and `formulation` are those of `then`.
    """

    momentum: float = 0.9
    fused: bool = True
    formulation: Formulation = "cpu"

    def then(self, act: Any, x: Array, shortcut: Array | None = None) -> tuple[Array, Array]:
        """act(norm(x) + shortcut) on [B, H, W, C], and the pooled input of `act`, [B, C].

        With `fused`, RAA runs as one operation with the norm in training (`norm_raa.py`), which
        supports only reverse-mode differentiation.
        """
        plain_raa = isinstance(act, RAA) and (act.base, act.shift) == ("gelu", "vector")
        # Run layer by layer to create parameters, or if intermediate results are captured.
        watched = self.is_initializing() or self.is_mutable_collection("intermediates")
        if not (self.fused and plain_raa) or self.use_running_average or watched:
            y = self(x)
            y = y if shortcut is None else y + shortcut
            return act(y), global_pool(y)
        norm, raa = self.variables["params"], act.variables["params"]
        parameters = norm["scale"], norm["bias"], raa["w"], raa["b"]
        x, shortcut = promote_dtype(x, shortcut, dtype=self.dtype)
        y: Any = norm_raa(x, shortcut, *parameters, self.epsilon, self.formulation)
        for name, value in (("mean", y.mean), ("var", y.var)):
            average = self.get_variable("batch_stats", name)
            average = self.momentum * average + (1 - self.momentum) * value
            self.put_variable("batch_stats", name, average)
        return y.out, y.pooled


def global_pool(x: Array) -> Array:
    """The mean over the pixels, [B, H, W, C] -> [B, C], in float32 or float64."""
    return promote(x).mean((1, 2))


def adaptive_avg_pool(x: Array, size: int) -> Array:
    """torch's AdaptiveAvgPool2d: [B, H, W, C] -> [B, size, size, C]; windows may overlap.

    Raises:
      ModelError: for an empty feature map.
    """
    if 0 in x.shape:
        raise ModelError("image_size is too small, nothing is left to pool: choose a larger one")

    def means(n):  # [size, n]; window i covers the pixels floor(i n / size) .. ceil((i+1) n / size)
        i, pixel = jnp.arange(size)[:, None], jnp.arange(n)
        inside = (pixel >= i * n // size) & (pixel < -(-(i + 1) * n // size))
        return (inside / inside.sum(1, keepdims=True)).astype(x.dtype)

    h, w = x.shape[1:3]
    return x if h == w == size else jnp.einsum("ih,jw,bhwc->bijc", means(h), means(w), x)


def channel_shuffle(x: Array, groups: int) -> Array:
    """Distributes the channels of each group over all groups (Zhang et al., ShuffleNet, 2018)."""
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


def flatten(x: Array) -> Array:
    """[B, H, W, C] -> [B, C H W], in the order of torch's channels-first maps."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
