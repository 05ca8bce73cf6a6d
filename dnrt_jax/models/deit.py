"""DeiT, the data-efficient image transformer (Touvron et al., 2021): ViT with a distillation token.

The distillation token has a head of its own; the logits are the mean of both heads, also in
training, as in the code of DNRT's authors: there is no teacher. In their code both public names,
with and without "distilled", are this architecture. With `distilled=False` DeiT is the ViT of its
size.

RAA sites: between fc1 and fc2 of every block. ARR sites: the class token after every block, both
residuals added, before the final norm (J = 12; the distillation token has none).
"""

from functools import partial
from typing import Any

import flax.linen as nn
from jax import Array

from dnrt_jax.models.attention import Attention
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.models.layers import (
    Dense,
    check_multiple,
    check_size,
    drop_path_rates,
    normal_02,
    prepend,
    remat_if,
)
from dnrt_jax.models.vit import Block, PatchEmbed


class DeiT(nn.Module):
    """Images [B, image_size, image_size, C] -> logits f32[B, num_classes].

    The fields are timm's; `drop_path_rate` grows linearly to its value in the last block.
    `fused=False` allows forward-mode differentiation (see `layers.Mlp`).

    Raises:
      ModelError: if the images have another size, sizes are not divisible, or an MLP has no width.
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
    distilled: bool = True
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
            mlp_ratio=self.mlp_ratio,
            drop_rate=self.drop_rate,
            fused=self.fused,
            dtype=self.dtype,
            formulation=self.formulation,
        )

        d = self.embed_dim
        x = PatchEmbed(d, self.patch_size, dtype=self.dtype, name="patch_embed")(images)
        for token in ("dist_token", "cls_token") if self.distilled else ("cls_token",):
            x = prepend(self.param(token, normal_02, (1, 1, d)), x)
        x = x + self.param("pos_embed", normal_02, (1, *x.shape[1:])).astype(x.dtype)
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        for i, rate in enumerate(drop_path_rates(self.drop_path_rate, self.depth)):
            x = block(drop_path_rate=rate, name=f"blocks_{i}")(x, train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        # The logits are float32, as the parameters are.
        logits = Dense(self.num_classes, name="head")(x[:, 0])
        if not self.distilled:
            return logits
        return (logits + Dense(self.num_classes, name="head_dist")(x[:, 1])) / 2


MODELS = {
    "deit_tiny_patch4_32": partial(DeiT, image_size=32, patch_size=4),
    "deit_tiny_patch16_224": DeiT,
    "deit_tiny_distilled_patch16_224": DeiT,
}
