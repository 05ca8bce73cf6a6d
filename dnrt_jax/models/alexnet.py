"""AlexNet (Krizhevsky et al., 2012) in torchvision's form: no groups, no response normalisation.

RAA sites (7): every activation, per pixel after the five convolutions and per image after the two
hidden layers of the classifier. ARR sites (J = 5): each convolution's output, pooled, before its
activation. The paper does not say where either goes.

`cifar_alexnet` takes images of 32 pixels, with a 3x3 stem of stride 1 (maps of 32, 15, 7, 3
pixels).
"""

from functools import partial
from typing import Any

import flax.linen as nn
from jax import Array

from dnrt_jax import activations
from dnrt_jax.models.conv import Conv, adaptive_avg_pool, flatten, global_pool
from dnrt_jax.models.layers import Dense, check_size, uniform_fan_in
from dnrt_jax.record import record
from dnrt_jax.runtime.errors import ModelError


class AlexNet(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    `widths` are those of the five convolutions; with `cifar` the first has a 3x3 kernel, stride 1.

    Raises:
      ModelError: if the images have another size or are too small for the pooling, or if there
        are not five widths.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    widths: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    hidden_dim: int = 4096
    pool_size: int = 6
    cifar: bool = False
    drop_rate: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_size(images, self.image_size)
        if len(self.widths) != 5:
            raise ModelError(f"widths={self.widths}: give one width for each of 5 convolutions")
        kernel_size, stride, padding = (3, 1, 1) if self.cifar else (11, 4, 2)
        stem = nn.Conv(
            self.widths[0],
            (kernel_size, kernel_size),
            stride,
            padding,
            kernel_init=uniform_fan_in,
            dtype=self.dtype,
            name="features_0",
        )
        conv = partial(Conv, use_bias=True, dtype=self.dtype)
        dense = partial(Dense, self.hidden_dim, kernel_init=uniform_fan_in, dtype=self.dtype)
        dropout = nn.Dropout(self.drop_rate, deterministic=not train)

        def pool(x):
            if min(x.shape[1:3]) < 3:
                raise ModelError("image_size is too small, nothing is left to pool")
            return nn.max_pool(x, (3, 3), (2, 2))

        def activate(x, name):
            if x.ndim == 4:
                record(self, global_pool(x), f"response_{name}")
            return activations.create(self.act, name)(x)

        x = pool(activate(stem(images), "features_1"))
        x = conv(self.widths[1], 5, name="features_3")(x)
        x = pool(activate(x, "features_4"))
        x = conv(self.widths[2], 3, name="features_6")(x)
        x = activate(x, "features_7")
        x = conv(self.widths[3], 3, name="features_8")(x)
        x = activate(x, "features_9")
        x = conv(self.widths[4], 3, name="features_10")(x)
        x = pool(activate(x, "features_11"))

        x = flatten(adaptive_avg_pool(x, self.pool_size))
        x = activate(dense(name="classifier_1")(dropout(x)), "classifier_2")
        x = activate(dense(name="classifier_4")(dropout(x)), "classifier_5")
        return Dense(self.num_classes, kernel_init=uniform_fan_in, name="classifier_6")(x)


MODELS = {
    "alexnet": AlexNet,
    "cifar_alexnet": partial(AlexNet, image_size=32, pool_size=3, cifar=True),
}
