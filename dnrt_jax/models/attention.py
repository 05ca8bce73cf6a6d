"""Multi-head attention. Submodules have timm's names and shapes, in every formulation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dnrt_jax.models.formulation import TPU, Formulation
from dnrt_jax.models.layers import Dense, check_multiple
from dnrt_jax.models.varying import equally_varying
from dnrt_jax.raa import promote

HALF = (jnp.dtype("bfloat16"), jnp.dtype("float16"))


def _to_heads(x: Array, kernel: Array, bias: Array) -> Array:
    """[B, N, D] to heads [B, H, N, Dh], with a kernel [D, H, Dh] and a bias [H, Dh]; differentiable
    in reverse mode only."""
    return _projected(*equally_varying(x, kernel, bias))


@jax.custom_vjp
def _projected(x, kernel, bias):
    return jnp.einsum("bnd,dhk->bhnk", x, kernel) + bias[:, None]


def _projected_forward(x, kernel, bias):
    return _projected(x, kernel, bias), (x, kernel)


def _projected_backward(saved, g):
    x, kernel = saved
    # The bias is a row of the kernel, for a one at the end of each x: its gradient comes with the
    # kernel's. A sum would read g again, and take a TPU three times as long as the product.
    x_and_one = jnp.pad(x, ((0, 0), (0, 0), (0, 1)), constant_values=1)
    rows = jnp.einsum("bnd,bhnk->dhk", x_and_one, g)
    return jnp.einsum("bhnk,dhk->bnd", g, kernel), rows[:-1], rows[-1]


_projected.defvjp(_projected_forward, _projected_backward)


class Heads(Dense):
    """A dense layer to `parts` arrays of heads: [B, N, D] -> tuple of [B, H, N, Dh].

    Its features are those of all heads of the first part, then of the second, ...
    """

    num_heads: int = 1
    parts: int = 1

    @nn.compact
    def __call__(self, inputs: Array) -> tuple[Array, ...]:
        b, n, d = inputs.shape
        shape = (self.parts, self.num_heads, self.features // (self.parts * self.num_heads))
        if self.formulation not in TPU:
            heads = super().__call__(inputs).reshape(b, n, *shape)
            return tuple(heads.transpose(2, 0, 3, 1, 4))
        inputs, kernel, bias = self.promoted(inputs)
        kernels = kernel.reshape(d, *shape).swapaxes(0, 1)
        if bias is None:
            heads = [jnp.einsum("bnd,dhk->bhnk", inputs, kernel) for kernel in kernels]
        else:
            each = zip(kernels, bias.reshape(shape), strict=True)
            heads = [_to_heads(inputs, kernel, bias) for kernel, bias in each]
        return tuple(map(promote, heads) if self.formulation == "tpu5" else heads)


class Merge(Dense):
    """A dense layer of heads side by side: [B, H, N, Dh] -> [B, N, features]."""

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        b, h, n, size = inputs.shape
        if self.formulation not in TPU:
            return super().__call__(inputs.swapaxes(1, 2).reshape(b, n, h * size))
        inputs, kernel, bias = self.promoted(inputs, width=h * size)
        y = jnp.einsum("bhnk,hkd->bnd", inputs, kernel.reshape(h, size, -1))
        return y if bias is None else y + bias


class MultiHead(nn.Module):
    """What all multi-head attention has: its fields, and the steps after and before projections."""

    num_heads: int
    qkv_bias: bool = True
    attn_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    dtype: Any = None
    formulation: Formulation = "cpu"

    def project(self, x: Array, parts: int, name: str, *, fused: bool = True) -> tuple[Array, ...]:
        """[B, N, D] -> `parts` arrays [B, H, N, D / H], for `attend` unless `fused` is False: for
        cuDNN an odd N is made even."""
        d = x.shape[-1]
        check_multiple(embed_dim=d, num_heads=self.num_heads)
        heads = Heads(
            parts * d,
            use_bias=self.qkv_bias,
            dtype=self.dtype,
            formulation=self.formulation,
            num_heads=self.num_heads,
            parts=parts,
            name=name,
        )
        odd = x.shape[1] % 2 if fused and self._cudnn(d) else 0
        return heads(jnp.pad(x, ((0, 0), (0, odd), (0, 0))) if odd else x)

    def attend(self, q: Array, k: Array, v: Array, train: bool, *, keys: int) -> Array:
        """softmax(q k^T / sqrt(Dh)) v for [B, H, N, Dh] with the first `keys` keys; the softmax in
        float32."""
        dropout = nn.Dropout(self.attn_drop_rate)
        if self._cudnn(q.shape[-1] * self.num_heads):
            return _cudnn_attention(q, k, v, keys)
        logits = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
        weights = nn.softmax(promote(logits))
        return dropout(weights.astype(v.dtype), deterministic=not train) @ v

    def merge(self, x: Array, train: bool, *, tokens: int) -> Array:
        """The projection of heads [B, H, N, Dh] to the first `tokens` tokens, [B, tokens, D]."""
        d = x.shape[-1] * self.num_heads
        proj = Merge(d, dtype=self.dtype, formulation=self.formulation, name="proj")
        return nn.Dropout(self.proj_drop_rate)(proj(x)[:, :tokens], deterministic=not train)

    def _cudnn(self, d: int) -> bool:
        """Whether cuDNN's attention is used: it takes half precision and no dropout, and heads of a
        multiple of 8 features, at most 128 on all cards."""
        size = d // self.num_heads
        # The dtype may be a name.
        half = self.dtype is not None and jnp.dtype(self.dtype) in HALF
        fits = half and size % 8 == 0 and size <= 128 and not self.attn_drop_rate
        return self.formulation == "gpu" and fits


def _cudnn_attention(q: Array, k: Array, v: Array, keys: int) -> Array:
    """`MultiHead.attend` without dropout. Rows of padded queries are computed like the others, as
    cuDNN leaves rows undefined that it is told to leave out."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    lengths: dict[str, Any] = {}
    if keys < k.shape[1]:
        # Made from q, as under jax.vmap JAX's rule for this attention wants lengths that are mapped
        # like it. XLA folds the zeros.
        zeros = 0 * jnp.isnan(q[:, 0, 0, 0]).astype(jnp.int32)
        lengths["query_seq_lengths"] = zeros + q.shape[1]
        lengths["key_value_seq_lengths"] = zeros + keys
    y = jax.nn.dot_product_attention(q, k, v, **lengths, implementation="cudnn")
    return y.swapaxes(1, 2)


class Attention(MultiHead):
    """Multi-head self-attention on [B, N, D]."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        n = x.shape[1]
        q, k, v = self.project(x, 3, "qkv")
        return self.merge(self.attend(q, k, v, train, keys=n), train, tokens=n)
