"""VGG (Simonyan & Zisserman, 2015) in torchvision's form, with and without batch norm.

RAA sites (10 in VGG-11): every activation, per pixel after the convolutions and per image after the
two hidden layers of the classifier. ARR sites (J = 5): the last convolution of each stage, pooled,
normalised and before its activation. The paper does not say where either goes.

`cifar_vgg11_bn` is that of pytorch-cifar100; its last feature map has one pixel.
"""

from functools import partial
from itertools import count
from typing import Any

import flax.linen as nn
from jax import Array

from dnrt_jax import activations
from dnrt_jax.models.conv import (
    BatchNorm,
    Conv,
    adaptive_avg_pool,
    flatten,
    global_pool,
    kaiming_fan_out,
)
from dnrt_jax.models.layers import Dense, check_size
from dnrt_jax.record import record

normal_001 = nn.initializers.normal(0.01)


class VGG(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    `widths` has one tuple per stage; each stage ends with max pooling.

    Raises:
      ModelError: if the images have another size or are too small for the pooling.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    widths: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    hidden_dim: int = 4096
    pool_size: int = 7
    batch_norm: bool = False
    drop_rate: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_size(images, self.image_size)
        conv = partial(
            Conv, kernel_size=3, use_bias=True, kernel_init=kaiming_fan_out, dtype=self.dtype
        )
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        dense = partial(Dense, self.hidden_dim, kernel_init=normal_001, dtype=self.dtype)
        dropout = nn.Dropout(self.drop_rate, deterministic=not train)

        x = images
        names = (f"features_{i}" for i in count())  # torch also numbers activations and pooling
        for stage, widths in enumerate(self.widths):
            for i, width in enumerate(widths, 1):
                x = conv(width, name=next(names))(x)
                x = norm(name=next(names))(x) if self.batch_norm else x
                if i == len(widths):
                    record(self, global_pool(x), f"response_{stage}")
                x = activations.create(self.act, next(names))(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
            next(names)

        x = flatten(adaptive_avg_pool(x, self.pool_size))
        x = dropout(activations.create(self.act, "classifier_1")(dense(name="classifier_0")(x)))
        x = dropout(activations.create(self.act, "classifier_4")(dense(name="classifier_3")(x)))
        return Dense(self.num_classes, kernel_init=normal_001, name="classifier_6")(x)


MODELS = {
    "vgg11": VGG,
    "vgg11_bn": partial(VGG, batch_norm=True),
    "cifar_vgg11_bn": partial(VGG, image_size=32, pool_size=1, batch_norm=True),
}
