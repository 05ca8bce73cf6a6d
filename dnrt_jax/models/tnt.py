"""TNT, Transformer in Transformer (Han et al., 2021), in its first published form.

An inner transformer processes the pixel tokens of each patch; an outer one processes the patch
tokens, to which the pixel tokens are added after each inner block. (timm calls this form "legacy".)

`tnt_s_patch4_32` is TNT-Small on 32 pixels with patches of 4x4 and `first_stride=1`, which gives
the published 16 pixel tokens per patch; all its tensors but the patch positions have the published
shapes. `first_stride=4`, as in the code of DNRT's authors, would give one pixel token.

RAA sites: between fc1 and fc2 of the inner and of the outer MLP of every block. ARR sites: the
class token after every block, before the final norm (J = 12).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from dnrt_jax.models.attention import MultiHead
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.models.layers import (
    Dense,
    DropPath,
    Mlp,
    check_multiple,
    check_size,
    drop_path_rates,
    mlp_width,
    normal_02,
    prepend,
    remat_if,
    uniform_fan_in,
)
from dnrt_jax.record import record


class Attention(MultiHead):
    """Multi-head self-attention on [B, N, D], with one projection for queries and keys."""

    qkv_bias: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        n = x.shape[1]
        q, k = self.project(x, 2, "qk")
        (v,) = self.project(x, 1, "v")
        return self.merge(self.attend(q, k, v, train, keys=n), train, tokens=n)


class Block(nn.Module):
    """Pixel tokens [B*N, P, C] and patch tokens [B, 1+N, D] -> both, with the same shapes.

    The inner MLP is always 4 times as wide as its tokens; `mlp_ratio` is the outer one's.
    """

    num_heads_inner: int
    num_heads: int
    act: str
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    fused: bool = True
    dtype: Any = None
    formulation: Formulation = "cpu"

    @nn.compact
    def __call__(self, pixels: Array, patches: Array, train: bool) -> tuple[Array, Array]:
        b, n, d = patches.shape
        c = pixels.shape[-1]
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        attention = partial(
            Attention,
            qkv_bias=self.qkv_bias,
            attn_drop_rate=self.attn_drop_rate,
            proj_drop_rate=self.drop_rate,
            dtype=self.dtype,
            formulation=self.formulation,
        )
        mlp = partial(
            Mlp,
            act=self.act,
            drop_rate=self.drop_rate,
            fused=self.fused,
            dtype=self.dtype,
            formulation=self.formulation,
        )
        attn_in, mlp_in = attention(self.num_heads_inner, name="attn_in"), mlp(4 * c, name="mlp_in")
        attn_out = attention(self.num_heads, name="attn_out")
        mlp_out = mlp(mlp_width(d, self.mlp_ratio), name="mlp")
        drop_path = lambda y: DropPath(self.drop_path_rate)(y, train)

        pixels = pixels + drop_path(attn_in(norm(name="norm_in")(pixels), train))
        pixels = pixels + drop_path(mlp_in(norm(name="norm_mlp_in")(pixels), train))
        sentences = norm(name="norm1_proj")(pixels).reshape(b, n - 1, -1)
        dense = Dense(d, dtype=self.dtype, formulation=self.formulation, name="proj")
        sentences = dense(sentences)
        patches = patches + jnp.pad(sentences, ((0, 0), (1, 0), (0, 0)))
        patches = patches + drop_path(attn_out(norm(name="norm_out")(patches), train))
        patches = patches + drop_path(mlp_out(norm(name="norm_mlp")(patches), train))
        record(self, patches[:, 0])
        return pixels, patches


class PixelEmbed(nn.Module):
    """[B, H, W, C] -> the pixel tokens of every patch, [B*N, P, inner_dim], row by row.

    The tokens are the output of a 7x7 convolution with stride `first_stride`.
    """

    inner_dim: int
    patch_size: int
    first_stride: int
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = nn.Conv(
            self.inner_dim,
            (7, 7),
            self.first_stride,
            padding=3,
            dtype=self.dtype,
            kernel_init=uniform_fan_in,
            name="proj",
        )(images)
        side = self.patch_size // self.first_stride
        b, h, w, c = x.shape
        x = x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3)
        return x.reshape(-1, side * side, c)


class TNT(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    `inner_dim` and `num_heads_inner` are those of the pixel tokens, `embed_dim` and `num_heads` of
    the patch tokens; a patch has (patch_size / first_stride)^2 pixel tokens. `drop_path_rate` grows
    linearly to its value in the last block, and applies to the inner residuals as well;
    `fused=False` allows forward-mode differentiation (see `layers.Mlp`).

    Raises:
      ModelError: if the images have another size, sizes are not divisible, or an MLP has no width.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    patch_size: int = 16
    first_stride: int = 4
    embed_dim: int = 384
    inner_dim: int = 24
    depth: int = 12
    num_heads: int = 6
    num_heads_inner: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
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
        check_multiple(image_size=self.image_size, patch_size=self.patch_size)
        check_multiple(patch_size=self.patch_size, first_stride=self.first_stride)
        check_multiple(embed_dim=self.embed_dim, num_heads=self.num_heads)
        check_multiple(inner_dim=self.inner_dim, num_heads_inner=self.num_heads_inner)
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        block = partial(
            remat_if(self.remat, Block, train_at=3),
            num_heads_inner=self.num_heads_inner,
            num_heads=self.num_heads,
            act=self.act,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            drop_rate=self.drop_rate,
            attn_drop_rate=self.attn_drop_rate,
            fused=self.fused,
            dtype=self.dtype,
            formulation=self.formulation,
        )

        pixels = PixelEmbed(
            self.inner_dim, self.patch_size, self.first_stride, self.dtype, name="pixel_embed"
        )(images)
        side = self.patch_size // self.first_stride
        pixel_pos = self.param("pixel_pos", normal_02, (1, self.inner_dim, side, side))  # as torch
        pixels = pixels + pixel_pos.reshape(self.inner_dim, -1).T.astype(pixels.dtype)

        x = pixels.reshape(images.shape[0], -1, side * side * self.inner_dim)
        x = norm(name="norm1_proj")(x)
        dense = Dense(self.embed_dim, dtype=self.dtype, formulation=self.formulation, name="proj")
        x = norm(name="norm2_proj")(dense(x))
        x = prepend(self.param("cls_token", normal_02, (1, 1, self.embed_dim)), x)
        x = x + self.param("patch_pos", normal_02, (1, *x.shape[1:])).astype(x.dtype)
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        for i, rate in enumerate(drop_path_rates(self.drop_path_rate, self.depth)):
            pixels, x = block(drop_path_rate=rate, name=f"blocks_{i}")(pixels, x, train)
        x = norm(name="norm")(x[:, 0])
        return Dense(self.num_classes, name="head")(x)  # float32 logits, as parameters are float32


MODELS = {
    "tnt_s_patch4_32": partial(TNT, image_size=32, patch_size=4, first_stride=1),
    "tnt_s_patch16_224": TNT,
}
