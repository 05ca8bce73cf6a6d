"""MLP: a multi-layer perceptron on flattened images.

The paper gives no sizes for its MLP; here it has `depth` hidden layers of `embed_dim` units,
without normalisation. RAA sites: every hidden layer. ARR sites: every hidden layer's output, after
its activation (J = depth = 3).
"""

from typing import Any

import flax.linen as nn
from jax import Array

from dnrt_jax import activations
from dnrt_jax.models.layers import Dense, check_size
from dnrt_jax.record import record


class MLP(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    Raises:
      ModelError: if the images have another size.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 32
    embed_dim: int = 512
    depth: int = 3
    drop_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_size(images, self.image_size)
        he_normal = nn.initializers.he_normal()
        x = images.transpose(0, 3, 1, 2).reshape(images.shape[0], -1)  # as torch flattens
        for i in range(self.depth):
            name = f"layers_{i}"
            x = Dense(self.embed_dim, dtype=self.dtype, kernel_init=he_normal, name=name)(x)
            x = activations.create(self.act, f"act_{i}")(x)
            record(self, x, f"response_{i}")
            x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        return Dense(self.num_classes, name="head")(x)  # float32 logits, as parameters are float32


MODELS = {"mlp": MLP}
