"""ShuffleNet V2 (Ma et al., 2018) in torchvision's form.

RAA sites (37): every activation, per pixel, those of the stem and of the last convolution among
them. ARR sites (J = 16): the output of each unit, both branches concatenated, pooled. The paper
does not say where either goes.

`cifar_shufflenet_v2` has a stem of stride 1 without pooling: maps of 32 pixels down to 4.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from dnrt_jax import activations
from dnrt_jax.models.conv import BatchNorm, Conv, channel_shuffle, global_pool, pad_1
from dnrt_jax.models.layers import Dense, check_size, per_stage, remat_if, uniform_fan_in
from dnrt_jax.record import record
from dnrt_jax.runtime.errors import ModelError


class Unit(nn.Module):
    """Convolves half of the channels of [B, H, W, C], keeps the others, and shuffles both.

    With stride 2 both branches take all channels.
    """

    features: int
    stride: int
    act: str
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        half = self.features // 2
        if half < 1 or self.features % 2:
            raise ModelError(f"widths: {self.features}: each branch takes half of it")
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        if self.stride > 1:
            c, y = x.shape[-1], x
            x = conv(c, 3, self.stride, groups=c, name="branch1_0")(x)
            x = norm(name="branch1_1")(x)
            x = norm(name="branch1_3")(conv(half, 1, name="branch1_2")(x))
            x = activations.create(self.act, "branch1_4")(x)
        else:
            x, y = jnp.split(x, 2, axis=-1)
        y = norm(name="branch2_1")(conv(half, 1, name="branch2_0")(y))
        y = activations.create(self.act, "branch2_2")(y)
        y = conv(half, 3, self.stride, groups=half, name="branch2_3")(y)
        y = norm(name="branch2_4")(y)
        y = norm(name="branch2_6")(conv(half, 1, name="branch2_5")(y))
        y = activations.create(self.act, "branch2_7")(y)
        y = channel_shuffle(jnp.concatenate([x, y], axis=-1), 2)
        record(self, global_pool(y))
        return y


class ShuffleNetV2(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    With `cifar` the stem has stride 1 and no pooling.

    Raises:
      ModelError: if the images have another size, tuples have different lengths, or a width is odd.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    stage_sizes: tuple[int, ...] = (4, 8, 4)
    widths: tuple[int, ...] = (116, 232, 464)
    stem_width: int = 24
    last_width: int = 1024
    cifar: bool = False
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_size(images, self.image_size)
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)

        x = conv(self.stem_width, 3, stride=1 if self.cifar else 2, name="conv1_0")(images)
        x = activations.create(self.act, "conv1_2")(norm(name="conv1_1")(x))
        if not self.cifar:
            x = nn.max_pool(x, (3, 3), (2, 2), pad_1)
        for stage, (size, width) in per_stage(stage_sizes=self.stage_sizes, widths=self.widths):
            for i in range(size):
                stride = 2 if i == 0 else 1
                x = remat_if(self.remat, Unit)(
                    width, stride, self.act, self.dtype, name=f"stage{stage + 2}_{i}"
                )(x, train)
        x = norm(name="conv5_1")(conv(self.last_width, 1, name="conv5_0")(x))
        x = global_pool(activations.create(self.act, "conv5_2")(x))
        return Dense(self.num_classes, kernel_init=uniform_fan_in, name="fc")(x)


MODELS = {
    "shufflenet_v2_x1_0": ShuffleNetV2,
    "cifar_shufflenet_v2": partial(ShuffleNetV2, image_size=32, cifar=True),
}
