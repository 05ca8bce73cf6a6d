"""CaiT, class attention in image transformers (Touvron et al., 2021), in timm's form.

`depth` blocks of talking-heads attention (Shazeer et al., 2020) process the patch tokens alone;
then `depth_token_only` blocks of class attention update only a class token, which attends to them.

RAA sites: between fc1 and fc2 of every block of both kinds. ARR sites: the mean over the patch
tokens after each of the first blocks, which have no class token, and the class token after each
of the others; both residuals added, before the final norm (J = 24 + 2).
"""

from functools import partial
from typing import Any

import flax.linen as nn
from jax import Array

from dnrt_jax.models.attention import MultiHead
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.models.layers import (
    Dense,
    DropPath,
    Mlp,
    check_multiple,
    check_size,
    mlp_width,
    normal_02,
    prepend,
    remat_if,
)
from dnrt_jax.models.vit import PatchEmbed
from dnrt_jax.raa import promote
from dnrt_jax.record import record


class TalkingHeadsAttention(MultiHead):
    """Self-attention on [B, N, D] that mixes the heads before and after the softmax."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        heads = self.num_heads
        mix = partial(
            nn.Einsum, (heads, heads), "bhqk,hg->bgqk", kernel_init=normal_02, dtype=self.dtype
        )
        q, k, v = self.project(x, 3, "qkv", fused=False)
        logits = mix(name="proj_l")((q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2))
        weights = nn.softmax(promote(logits))
        weights = mix(name="proj_w")(weights.astype(v.dtype))
        weights = nn.Dropout(self.attn_drop_rate)(weights, deterministic=not train)
        return self.merge(weights @ v, train, tokens=x.shape[1])


class ClassAttention(MultiHead):
    """Attention with the first token of [B, N, D] as the only query: [B, 1, D]."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        (q,) = self.project(x[:, :1], 1, "q")
        (k,) = self.project(x, 1, "k")
        (v,) = self.project(x, 1, "v")
        return self.merge(self.attend(q, k, v, train, keys=x.shape[1]), train, tokens=1)


class Block(nn.Module):
    """x + g1 * attn(norm(x)), then x + g2 * mlp(norm(x)), with learned factors g per channel.

    [B, N, D] -> [B, N, D]; with ClassAttention only the first token is returned, [B, 1, D].
    """

    attention: type[TalkingHeadsAttention] | type[ClassAttention]
    num_heads: int
    act: str
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    init_values: float = 1e-5
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    fused: bool = True
    dtype: Any = None
    formulation: Formulation = "cpu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        d = x.shape[-1]
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        gamma = lambda i: self.param(
            f"gamma_{i}", nn.initializers.constant(self.init_values), (d,)
        ).astype(x.dtype)
        drop_path = lambda y: DropPath(self.drop_path_rate)(y, train)
        attn = self.attention(
            self.num_heads,
            self.qkv_bias,
            self.attn_drop_rate,
            self.drop_rate,
            self.dtype,
            self.formulation,
            name="attn",
        )
        hidden_dim = mlp_width(d, self.mlp_ratio)
        mlp = Mlp(
            hidden_dim,
            self.act,
            self.drop_rate,
            self.fused,
            self.dtype,
            self.formulation,
            name="mlp",
        )

        y = attn(norm(name="norm1")(x), train)
        x = x[:, : y.shape[1]] + drop_path(gamma(1) * y)
        x = x + drop_path(gamma(2) * mlp(norm(name="norm2")(x), train))
        record(self, x.mean(1))
        return x


class CaiT(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    The fields are timm's. As there, `drop_path_rate` is the same in all talking-heads blocks, and
    the class-attention blocks have no dropout. `fused=False` allows forward-mode differentiation
    (see `layers.Mlp`).

    Raises:
      ModelError: if the images have another size, sizes are not divisible, or an MLP has no width.
    """

    num_classes: int
    act: str = "raa"
    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 24
    depth_token_only: int = 2
    num_heads: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    init_values: float = 1e-5
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
        d = self.embed_dim
        check_multiple(image_size=self.image_size, patch_size=self.patch_size)
        check_multiple(embed_dim=d, num_heads=self.num_heads)
        block = partial(
            remat_if(self.remat, Block),
            num_heads=self.num_heads,
            act=self.act,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            init_values=self.init_values,
            fused=self.fused,
            dtype=self.dtype,
            formulation=self.formulation,
        )
        dropping = partial(
            block,
            drop_rate=self.drop_rate,
            attn_drop_rate=self.attn_drop_rate,
            drop_path_rate=self.drop_path_rate,
        )

        x = PatchEmbed(d, self.patch_size, dtype=self.dtype, name="patch_embed")(images)
        x = x + self.param("pos_embed", normal_02, (1, *x.shape[1:])).astype(x.dtype)
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        for i in range(self.depth):
            x = dropping(TalkingHeadsAttention, name=f"blocks_{i}")(x, train)
        token = self.param("cls_token", normal_02, (1, 1, d))
        for i in range(self.depth_token_only):
            token = block(ClassAttention, name=f"blocks_token_only_{i}")(prepend(token, x), train)
        token = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(token[:, 0])
        return Dense(self.num_classes, name="head")(
            token
        )  # float32 logits, as parameters are float32


MODELS = {
    "cait_xxs24_patch4_32": partial(CaiT, image_size=32, patch_size=4),
    "cait_xxs24_224": CaiT,
}
