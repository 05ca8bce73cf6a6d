"""ResNet of basic blocks (He et al., 2016), for ImageNet and for CIFAR.

RAA sites: the two activations of every block, per pixel; the stem keeps ReLU. ARR sites: the sum
of residual and shortcut of every block, pooled, before the block's last activation (J = 8 in
ResNet-18, 15 in ResNet-32).

`resnet18` is torchvision's, `cifar_resnet18` that of pytorch-cifar100 (a 3x3 stem, no pooling),
`cifar_resnet32` that of He et al., section 4.2: three stages of widths 16, 32 and 64,
and shortcuts without parameters.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from dnrt_jax import activations
from dnrt_jax.models.conv import BatchNorm, Conv, global_pool, kaiming_fan_out, pad_1
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.models.layers import Dense, check_size, per_stage, remat_if, uniform_fan_in
from dnrt_jax.record import record
from dnrt_jax.runtime.errors import ModelError


class Names(NamedTuple):
    """Submodule names of the torch original: convolutions with their norms."""

    stem: tuple[str, str] = ("conv1", "bn1")
    stage: str = "layer{}"
    first_stage: int = 1
    residual: tuple[str, str, str, str] = ("conv1", "bn1", "conv2", "bn2")
    shortcut: tuple[str, str] = ("downsample_0", "downsample_1")
    head: str = "fc"


PYTORCH_CIFAR100 = Names(
    stem=("conv1_0", "conv1_1"),
    stage="conv{}_x",
    first_stage=2,
    residual=(
        "residual_function_0",
        "residual_function_1",
        "residual_function_3",
        "residual_function_4",
    ),
    shortcut=("shortcut_0", "shortcut_1"),
)


class BasicBlock(nn.Module):
    """act(norm(conv(act(norm(conv(x))))) + shortcut(x)) on [B, H, W, C]."""

    features: int
    stride: int
    act: str
    pad_shortcut: bool = False
    names: Names = Names()
    fused: bool = True
    dtype: Any = None
    formulation: Formulation = "cpu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = partial(Conv, self.features, kernel_init=kaiming_fan_out, dtype=self.dtype)
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            dtype=self.dtype,
            fused=self.fused,
            formulation=self.formulation,
        )
        conv1, norm1, conv2, norm2 = self.names.residual
        y = conv(kernel_size=3, stride=self.stride, name=conv1)(x)
        y, _ = norm(name=norm1).then(activations.create(self.act, "act1"), y)
        y = conv(kernel_size=3, name=conv2)(y)

        if self.stride > 1 or x.shape[-1] != self.features:
            if self.pad_shortcut:
                extra = self.features - x.shape[-1]
                if extra < 0:
                    raise ModelError(
                        f"widths: {self.features} follows {x.shape[-1]}; with pad_shortcut none "
                        "may be below the last"
                    )
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
            else:
                conv3, norm3 = self.names.shortcut
                x = conv(kernel_size=1, stride=self.stride, name=conv3)(x)
                x = norm(name=norm3)(x)
        y, pooled = norm(name=norm2).then(activations.create(self.act, "act2"), y, x)
        record(self, pooled)
        return y


class ResNet(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    `cifar` replaces the 7x7 stem of stride 2 and its pooling by a 3x3 convolution; `pad_shortcut`
    replaces the 1x1 convolutions of shortcuts by subsampling and zero padding (option A of He et
    al.). With `fused`, batch norm, shortcut and RAA are one operation in training (`norm_raa.py`),
    which is faster but supports only reverse-mode differentiation.

    Raises:
      ModelError: if the images have another size, tuples have different lengths or are empty, or
        widths shrink with `pad_shortcut`.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    cifar: bool = False
    pad_shortcut: bool = False
    names: Names = Names()
    fused: bool = True
    dtype: Any = None
    formulation: Formulation = "cpu"
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_size(images, self.image_size)
        stages = per_stage(stage_sizes=self.stage_sizes, widths=self.widths)
        conv = partial(Conv, self.widths[0], kernel_init=kaiming_fan_out, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        block = partial(
            remat_if(self.remat, BasicBlock),
            act=self.act,
            pad_shortcut=self.pad_shortcut,
            names=self.names,
            fused=self.fused,
            dtype=self.dtype,
            formulation=self.formulation,
        )

        conv1, norm1 = self.names.stem
        kernel_size, stride = (3, 1) if self.cifar else (7, 2)
        x = conv(kernel_size=kernel_size, stride=stride, name=conv1)(images)
        x = nn.relu(norm(name=norm1)(x))
        if not self.cifar:
            x = nn.max_pool(x, (3, 3), (2, 2), pad_1)
        for stage, (size, width) in stages:
            name = self.names.stage.format(stage + self.names.first_stage)
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                x = block(width, stride, name=f"{name}_{i}")(x, train)
        x = global_pool(x)
        return Dense(self.num_classes, kernel_init=uniform_fan_in, name=self.names.head)(x)


cifar_resnet = partial(
    ResNet,
    image_size=32,
    widths=(16, 32, 64),
    cifar=True,
    pad_shortcut=True,
    names=Names(head="linear"),
)

MODELS = {
    "resnet18": ResNet,
    "cifar_resnet18": partial(ResNet, image_size=32, cifar=True, names=PYTORCH_CIFAR100),
    "cifar_resnet32": partial(cifar_resnet, stage_sizes=(5, 5, 5)),
}
