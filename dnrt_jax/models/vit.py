"""Vision Transformer (Dosovitskiy et al., 2021) in timm's form.

RAA sites: between fc1 and fc2 of every block. ARR sites: the class token after every block, both
residuals added, before the final norm; without a class token, the mean over the tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
from jax import Array

from dnrt_jax.models.attention import Attention
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.models.layers import (
    Dense,
    DropPath,
    LayerScale,
    Mlp,
    PatchConv,
    check_multiple,
    check_size,
    drop_path_rates,
    mlp_width,
    normal_02,
    prepend,
    remat_if,
)
from dnrt_jax.record import record
from dnrt_jax.runtime.errors import ModelError


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)), on [B, N, D].

    `attention(name=...)` creates the submodule `attn`, called with ([B, N, D], train).
    """

    attention: Callable[..., nn.Module]
    act: str
    class_token: bool = True
    mlp_ratio: float = 4.0
    init_values: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    fused: bool = True
    dtype: Any = None
    formulation: Formulation = "cpu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        attn = self.attention(name="attn")
        hidden_dim = mlp_width(x.shape[-1], self.mlp_ratio)
        mlp = Mlp(
            hidden_dim,
            self.act,
            self.drop_rate,
            self.fused,
            self.dtype,
            self.formulation,
            name="mlp",
        )
        for i, branch in enumerate((attn, mlp), 1):
            y = branch(norm(name=f"norm{i}")(x), train)
            if self.init_values:
                y = LayerScale(self.init_values, name=f"ls{i}")(y)
            x = x + DropPath(self.drop_path_rate)(y, train)
        record(self, x[:, 0] if self.class_token else x.mean(1))
        return x


class PatchEmbed(nn.Module):
    """[B, H, W, C] -> one token per patch, [B, N, D]."""

    embed_dim: int
    patch_size: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array) -> Array:
        proj = PatchConv(self.embed_dim, self.patch_size, self.use_bias, self.dtype, name="proj")
        x = proj(images)
        return x.reshape(x.shape[0], -1, self.embed_dim)


class ViT(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    The fields are timm's. `fc_norm` puts the last norm after the pooling instead of before it
    (None: if `global_pool` is "avg"); `pre_norm` adds a norm before the blocks and removes the bias
    of the patch embedding; `no_embed_class` omits the position embedding of the class token;
    `init_values` turns on layer scale; `drop_path_rate` grows linearly to its value in the last
    block; `fused=False` allows forward-mode differentiation (see `layers.Mlp`).

    Raises:
      ModelError: if the images have another size, sizes are not divisible, an MLP has no
        width, or for `global_pool="token"` without a class token.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    class_token: bool = True
    global_pool: Literal["token", "avg"] = "token"
    fc_norm: bool | None = None
    pre_norm: bool = False
    no_embed_class: bool = False
    init_values: float | None = None
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
        check_multiple(embed_dim=self.embed_dim, num_heads=self.num_heads)
        if self.global_pool not in ("token", "avg"):
            raise ModelError(f"global_pool={self.global_pool!r}: choose 'token' or 'avg'")
        if self.global_pool == "token" and not self.class_token:
            raise ModelError("global_pool='token' needs class_token=True; or choose 'avg'")
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        attention = partial(
            Attention,
            self.num_heads,
            self.qkv_bias,
            attn_drop_rate=self.attn_drop_rate,
            proj_drop_rate=self.drop_rate,
            dtype=self.dtype,
            formulation=self.formulation,
        )
        block = partial(
            remat_if(self.remat, Block),
            attention,
            self.act,
            class_token=self.class_token,
            mlp_ratio=self.mlp_ratio,
            init_values=self.init_values,
            drop_rate=self.drop_rate,
            fused=self.fused,
            dtype=self.dtype,
            formulation=self.formulation,
        )
        fc_norm = self.global_pool == "avg" if self.fc_norm is None else self.fc_norm

        x = PatchEmbed(
            self.embed_dim, self.patch_size, not self.pre_norm, self.dtype, name="patch_embed"
        )(images)
        x = self._embed_positions(x)
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        x = norm(name="norm_pre")(x) if self.pre_norm else x
        for i, rate in enumerate(drop_path_rates(self.drop_path_rate, self.depth)):
            x = block(drop_path_rate=rate, name=f"blocks_{i}")(x, train)
        x = x if fc_norm else norm(name="norm")(x)
        x = x[:, 0] if self.global_pool == "token" else x[:, int(self.class_token) :].mean(1)
        x = norm(name="fc_norm")(x) if fc_norm else x
        return Dense(self.num_classes, name="head")(x)  # float32 logits, as parameters are float32

    def _embed_positions(self, x: Array) -> Array:
        n, d = x.shape[1:]
        length = n + (self.class_token and not self.no_embed_class)
        pos_embed = self.param("pos_embed", normal_02, (1, length, d)).astype(x.dtype)
        if self.no_embed_class:
            x = x + pos_embed
        if self.class_token:
            x = prepend(self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, d)), x)
        return x if self.no_embed_class else x + pos_embed


MODELS = {
    "vit_tiny_patch4_32": partial(ViT, image_size=32, patch_size=4),
    "vit_tiny_patch16_224": ViT,
}
