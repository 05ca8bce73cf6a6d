"""MobileNet (Howard et al., 2017): alternating depthwise 3x3 and pointwise 1x1 convolutions.

RAA sites (27): every activation, per pixel, the stem's among them. ARR sites (J = 13): the output
of each block's pointwise convolution, pooled, normalised and before its activation. The paper does
not say where either goes.

`mobilenet_v1` takes timm's weights (`mobilenetv1_100`, activation "relu6"); `cifar_mobilenet` is
the model of pytorch-cifar100 (activation "relu"), with a stem of stride 1.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
from jax import Array

from dnrt_jax import activations
from dnrt_jax.models.conv import BatchNorm, Conv, global_pool
from dnrt_jax.models.layers import Dense, check_size, per_stage, remat_if, uniform_fan_in
from dnrt_jax.record import record


class Names(NamedTuple):
    """Submodule names of the torch original; `stem=None`: its stem is not a submodule."""

    stem: str | None
    stem_parts: tuple[str, ...]
    block: str
    block_parts: tuple[str, ...]
    head: str


TIMM = Names(
    stem=None,
    stem_parts=("conv_stem", "bn1", "act1"),
    block="blocks_{}_{}",
    block_parts=("conv_dw", "bn1", "act1", "conv_pw", "bn2", "act2"),
    head="classifier",
)
PYTORCH_CIFAR100 = Names(
    stem="stem_0",
    stem_parts=("conv", "bn", "act"),
    block="conv{}_{}",
    block_parts=tuple(f"{part}_{i}" for part in ("depthwise", "pointwise") for i in range(3)),
    head="fc",
)


class Stem(nn.Module):
    """act(norm(conv(images)))."""

    features: int
    stride: int
    act: str
    names: tuple[str, ...]
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        conv, norm, act = self.names
        x = Conv(self.features, 3, self.stride, dtype=self.dtype, name=conv)(images)
        x = BatchNorm(use_running_average=not train, dtype=self.dtype, name=norm)(x)
        return activations.create(self.act, act)(x)


class Block(nn.Module):
    """act(norm(pointwise(act(norm(depthwise(x)))))) on [B, H, W, C]."""

    features: int
    stride: int
    act: str
    use_bias: bool
    names: tuple[str, ...]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        c = x.shape[-1]
        conv1, norm1, act1, conv2, norm2, act2 = self.names
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        x = Conv(c, 3, self.stride, groups=c, dtype=self.dtype, name=conv1)(x)
        x = activations.create(self.act, act1)(norm(name=norm1)(x))
        x = Conv(self.features, 1, use_bias=self.use_bias, dtype=self.dtype, name=conv2)(x)
        x = norm(name=norm2)(x)
        record(self, global_pool(x))
        return activations.create(self.act, act2)(x)


class MobileNetV1(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    All stages but the first halve the map; `use_bias` applies to the pointwise convolutions.

    Raises:
      ModelError: if the images have another size, or tuples have different lengths.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    stage_sizes: tuple[int, ...] = (1, 2, 2, 6, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    stem_stride: int = 2
    use_bias: bool = False
    names: Names = TIMM
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_size(images, self.image_size)
        stages, names = per_stage(stage_sizes=self.stage_sizes, widths=self.widths), self.names
        block = partial(
            remat_if(self.remat, Block),
            act=self.act,
            use_bias=self.use_bias,
            names=names.block_parts,
            dtype=self.dtype,
        )
        stem = Stem(
            self.widths[0] // 2,
            self.stem_stride,
            self.act,
            names.stem_parts,
            self.dtype,
            name=names.stem,
        )
        if names.stem is None:
            nn.share_scope(self, stem)

        x = stem(images, train)
        for stage, (size, width) in stages:
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                in_stem = (
                    names.stem is not None and stage == 0
                )  # part 0 of this submodule is the stem itself
                name = f"stem_{i + 1}" if in_stem else names.block.format(stage, i)
                x = block(width, stride, name=name)(x, train)
        x = global_pool(x)
        return Dense(self.num_classes, kernel_init=uniform_fan_in, name=names.head)(x)


MODELS = {
    "mobilenet_v1": MobileNetV1,
    "cifar_mobilenet": partial(
        MobileNetV1, image_size=32, stem_stride=1, use_bias=True, names=PYTORCH_CIFAR100
    ),
}
