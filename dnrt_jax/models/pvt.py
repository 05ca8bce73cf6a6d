"""PVT, the Pyramid Vision Transformer (Wang et al., 2021), version 1.

Four stages with decreasing numbers of tokens of increasing width. In attention, keys and values
come from a map that is `sr_ratio` times smaller on each side. The last stage adds the class token.

`pvt_tiny_32` is PVT-Tiny on 32 pixels with patches of one pixel: its stages have 32x32, 16x16,
8x8 and 4x4 tokens, and the published ratios leave 16 keys in each. All its tensors but the first
patch embedding and the position embeddings have the published shapes.

RAA sites: between fc1 and fc2 of every block. ARR sites, after every block, both residuals added:
in stages 1 to 3 the mean over the tokens, in stage 4 the class token (J = 6 + 2).
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
from jax import Array

from dnrt_jax.models.attention import MultiHead
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.models.layers import (
    Dense,
    PatchConv,
    check_multiple,
    check_size,
    drop_path_rates,
    normal_02,
    per_stage,
    prepend,
    remat_if,
)
from dnrt_jax.models.vit import Block
from dnrt_jax.runtime.errors import ModelError

# Norms after a patch convolution have torch's default epsilon of 1e-5, all others 1e-6.
PATCH_NORM_EPSILON = 1e-5


class SpatialReductionAttention(MultiHead):
    """Self-attention on a square map [B, N, D] with keys from a map of N / sr_ratio^2 tokens."""

    sr_ratio: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        _, n, d = x.shape
        (q,) = self.project(x, 1, "q")
        if self.sr_ratio > 1:
            side = math.isqrt(n)
            check_multiple(map_side=side, sr_ratio=self.sr_ratio)
            x = x.reshape(-1, side, side, d)
            x = PatchConv(d, self.sr_ratio, dtype=self.dtype, name="sr")(x)
            x = nn.LayerNorm(PATCH_NORM_EPSILON, dtype=self.dtype, name="norm")(x)
            x = x.reshape(x.shape[0], -1, d)
        k, v = self.project(x, 2, "kv")
        return self.merge(self.attend(q, k, v, train, keys=x.shape[1]), train, tokens=n)


class PatchEmbed(nn.Module):
    """[B, H, W, C] -> [B, H/p, W/p, embed_dim], normalised."""

    embed_dim: int
    patch_size: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = PatchConv(self.embed_dim, self.patch_size, dtype=self.dtype, name="proj")(x)
        return nn.LayerNorm(PATCH_NORM_EPSILON, dtype=self.dtype, name="norm")(x)


class PVT(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    The fields are the authors', tuples with one value per stage; `patch_size` is the first stage's,
    the others halve the map. `drop_path_rate` grows linearly to its value in the last block.
    `fused=False` allows forward-mode differentiation (see `layers.Mlp`).

    Raises:
      ModelError: if the images have another size, a map is not divisible, tuples have different
        lengths, an MLP has no width, or the last `sr_ratio` is not 1, as the class token is not on
        the map.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    patch_size: int = 4
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    qkv_bias: bool = True
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    fused: bool = True
    dtype: Any = None
    formulation: Formulation = "cpu"
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_size(images, self.image_size)
        stages = per_stage(
            embed_dims=self.embed_dims,
            depths=self.depths,
            num_heads=self.num_heads,
            mlp_ratios=self.mlp_ratios,
            sr_ratios=self.sr_ratios,
        )
        if self.sr_ratios[-1] != 1:
            raise ModelError(f"sr_ratios={self.sr_ratios}: the last, with a class token, must be 1")
        attention = partial(
            SpatialReductionAttention,
            qkv_bias=self.qkv_bias,
            attn_drop_rate=self.attn_drop_rate,
            proj_drop_rate=self.drop_rate,
            dtype=self.dtype,
            formulation=self.formulation,
        )
        block = partial(
            remat_if(self.remat, Block),
            act=self.act,
            drop_rate=self.drop_rate,
            fused=self.fused,
            dtype=self.dtype,
            formulation=self.formulation,
        )
        rates = iter(drop_path_rates(self.drop_path_rate, sum(self.depths)))

        x = images
        for index, (d, depth, num_heads, mlp_ratio, sr_ratio) in stages:
            check_multiple(embed_dims=d, num_heads=num_heads)
            stage = index + 1  # as the authors count
            last = stage == len(self.depths)
            patch_size = 2 if index else self.patch_size
            x = PatchEmbed(d, patch_size, self.dtype, name=f"patch_embed{stage}")(x)
            map_shape = x.shape
            x = x.reshape(x.shape[0], -1, d)
            if last:
                x = prepend(self.param("cls_token", normal_02, (1, 1, d)), x)
            pos_embed = self.param(f"pos_embed{stage}", normal_02, (1, *x.shape[1:]))
            x = nn.Dropout(self.drop_rate)(x + pos_embed.astype(x.dtype), deterministic=not train)
            for i in range(depth):
                x = block(
                    partial(attention, num_heads, sr_ratio=sr_ratio),
                    class_token=last,
                    mlp_ratio=mlp_ratio,
                    drop_path_rate=next(rates),
                    name=f"block{stage}_{i}",
                )(x, train)
            x = x if last else x.reshape(map_shape)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x[:, 0])
        return Dense(self.num_classes, name="head")(x)  # float32 logits, as parameters are float32


MODELS = {
    "pvt_tiny_32": partial(PVT, image_size=32, patch_size=1),
    "pvt_tiny": PVT,
}
