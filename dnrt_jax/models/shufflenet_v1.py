"""ShuffleNet with three groups (Zhang et al., 2018).

RAA sites (33): every activation, per pixel, the stem's among them. ARR sites (J = 16): the output
of each unit, pooled, residual and shortcut joined, before its last activation. The paper does not
say where either goes.

`shufflenet_v1` follows the paper. `cifar_shufflenet` is that of pytorch-cifar100: a stem of stride
1 without pooling, convolutions with biases, and groups also in the first unit. Submodules have the
names of that code, including its spelling of "bottleneck".
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from dnrt_jax import activations
from dnrt_jax.models.conv import BatchNorm, Conv, channel_shuffle, global_pool, pad_1
from dnrt_jax.models.layers import (
    Dense,
    check_multiple,
    check_size,
    per_stage,
    remat_if,
    uniform_fan_in,
)
from dnrt_jax.record import record
from dnrt_jax.runtime.errors import ModelError


class ConvNorm(nn.Module):
    """norm(conv(x)) on [B, H, W, C]."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    names: tuple[str, str] = ("pointwise_0", "pointwise_1")
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.groups,
            self.use_bias,
            dtype=self.dtype,
            name=self.names[0],
        )
        norm = BatchNorm(use_running_average=not train, dtype=self.dtype, name=self.names[1])
        return norm(conv(x))


class Unit(nn.Module):
    """A bottleneck of grouped convolutions on [B, H, W, C], added to its input.

    With stride 2 the output is concatenated with the average-pooled input instead.
    """

    features: int
    stride: int
    groups: int
    first_groups: int
    act: str
    use_bias: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        c, hidden_dim = x.shape[-1], self.features // 4
        conv_norm = partial(ConvNorm, use_bias=self.use_bias, dtype=self.dtype)
        residual_dim = self.features - c if self.stride > 1 else self.features
        if residual_dim < 1:
            raise ModelError(f"widths: {self.features} follows {c}; each must be above the last")
        check_multiple(features=hidden_dim, groups=self.groups)

        y = conv_norm(hidden_dim, 1, groups=self.first_groups, name="bottlneck_0")(x, train)
        y = channel_shuffle(activations.create(self.act, "act1")(y), self.groups)
        y = conv_norm(
            hidden_dim,
            3,
            self.stride,
            groups=hidden_dim,
            names=("depthwise_0", "depthwise_1"),
            name="depthwise",
        )(y, train)
        y = conv_norm(residual_dim, 1, groups=self.groups, name="expand")(y, train)
        if self.stride > 1:
            y = jnp.concatenate([nn.avg_pool(x, (3, 3), (2, 2), pad_1), y], axis=-1)
        else:
            y = x + y
        record(self, global_pool(y))
        return activations.create(self.act, "act2")(y)


class ShuffleNetV1(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    Raises:
      ModelError: for an image of another size, not one value a stage, or widths that do not grow
        or divide into the groups.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    stage_sizes: tuple[int, ...] = (4, 8, 4)
    widths: tuple[int, ...] = (240, 480, 960)
    stem_width: int = 24
    groups: int = 3
    cifar: bool = False
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_size(images, self.image_size)
        stem = ConvNorm(
            self.stem_width,
            3,
            stride=1 if self.cifar else 2,
            use_bias=self.cifar,
            names=("conv", "bn"),
            dtype=self.dtype,
            name="conv1",
        )
        unit = partial(
            remat_if(self.remat, Unit),
            groups=self.groups,
            act=self.act,
            use_bias=self.cifar,
            dtype=self.dtype,
        )

        x = activations.create(self.act, "act1")(stem(images, train))
        if not self.cifar:
            x = nn.max_pool(x, (3, 3), (2, 2), pad_1)
        for stage, (size, width) in per_stage(stage_sizes=self.stage_sizes, widths=self.widths):
            for i in range(size):
                # In the paper the first one is not grouped, as it has few input channels.
                ungrouped = stage == i == 0 and not self.cifar
                x = unit(
                    width,
                    stride=2 if i == 0 else 1,
                    first_groups=1 if ungrouped else self.groups,
                    name=f"stage{stage + 2}_{i}",
                )(x, train)
        return Dense(self.num_classes, kernel_init=uniform_fan_in, name="fc")(global_pool(x))


MODELS = {
    "shufflenet_v1": ShuffleNetV1,
    "cifar_shufflenet": partial(ShuffleNetV1, image_size=32, cifar=True),
}
