"""MobileNetV2 (Sandler et al., 2018) in torchvision's form.

RAA sites (35): every activation, per pixel, those of the stem and of the last convolution among
them. ARR sites (J = 17): the output of each inverted residual block, which ends without an
activation, pooled. The paper does not say where either goes. Published weights need the activation
"relu6".

`cifar_mobilenet_v2` has stride 1 in the stem and in its second stage: maps of 32 pixels down to 4.
"""

from functools import partial
from typing import Any

import flax.linen as nn
from jax import Array

from dnrt_jax import activations
from dnrt_jax.models.conv import BatchNorm, Conv, global_pool, kaiming_fan_out
from dnrt_jax.models.layers import Dense, check_size, per_stage, remat_if
from dnrt_jax.record import record

normal_001 = nn.initializers.normal(0.01)


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, pointwise projection, on [B, H, W, C]."""

    features: int
    stride: int
    expansion: int
    act: str
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        hidden_dim = self.expansion * x.shape[-1]
        conv = partial(Conv, kernel_init=kaiming_fan_out, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)

        y, i = x, 0  # i: index in torch's Sequential `conv`
        if self.expansion > 1:
            y = norm(name="conv_0_1")(conv(hidden_dim, 1, name="conv_0_0")(y))
            y = activations.create(self.act, "conv_0_2")(y)
            i = 1
        y = conv(hidden_dim, 3, self.stride, groups=hidden_dim, name=f"conv_{i}_0")(y)
        y = activations.create(self.act, f"conv_{i}_2")(norm(name=f"conv_{i}_1")(y))
        y = norm(name=f"conv_{i + 2}")(conv(self.features, 1, name=f"conv_{i + 1}")(y))
        y = x + y if x.shape == y.shape else y
        record(self, global_pool(y))
        return y


class MobileNetV2(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    `expansions`, `widths`, `stage_sizes`, `strides`: t, c, n and s of the paper's table 2.

    Raises:
      ModelError: if the images have another size, or tuples have different lengths.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    widths: tuple[int, ...] = (16, 24, 32, 64, 96, 160, 320)
    stage_sizes: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    stem_width: int = 32
    stem_stride: int = 2
    last_width: int = 1280
    drop_rate: float = 0.2
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_size(images, self.image_size)
        conv = partial(Conv, kernel_init=kaiming_fan_out, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        stages = per_stage(
            expansions=self.expansions,
            widths=self.widths,
            stage_sizes=self.stage_sizes,
            strides=self.strides,
        )

        x = conv(self.stem_width, 3, self.stem_stride, name="features_0_0")(images)
        x = activations.create(self.act, "features_0_2")(norm(name="features_0_1")(x))
        position = 1
        for _, (expansion, width, size, stage_stride) in stages:
            for i in range(size):
                stride = stage_stride if i == 0 else 1
                block = remat_if(self.remat, InvertedResidual)(
                    width, stride, expansion, self.act, self.dtype, name=f"features_{position}"
                )
                x = block(x, train)
                position += 1
        last = f"features_{position}"
        x = norm(name=f"{last}_1")(conv(self.last_width, 1, name=f"{last}_0")(x))
        x = global_pool(activations.create(self.act, f"{last}_2")(x))
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        return Dense(self.num_classes, kernel_init=normal_001, name="classifier_1")(x)


MODELS = {
    "mobilenet_v2": MobileNetV2,
    "cifar_mobilenet_v2": partial(
        MobileNetV2, image_size=32, stem_stride=1, strides=(1, 1, 2, 2, 1, 2, 1)
    ),
}
