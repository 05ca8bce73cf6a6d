"""Layers shared by several architectures. Submodules have timm's names, so weights map by rule."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array

from dnrt_jax import activations
from dnrt_jax.models.dense_raa import dense_raa
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.runtime.errors import ModelError

normal_02 = nn.initializers.normal(
    0.02
)  # timm's trunc_normal_ truncates at +-2, which is 100 standard deviations
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default


def check_size(images: Array, image_size: int) -> None:
    """Raises ModelError unless `images` are [B, image_size, image_size, C]."""
    if images.shape[1:3] != (image_size, image_size):
        raise ModelError(
            f"images of {images.shape[1:3]} pixels; the model has image_size={image_size}"
        )


def check_multiple(**fields: int) -> None:
    """Raises ModelError unless the first of two fields is a multiple of the second, as in
    `check_multiple(embed_dim=192, num_heads=3)`."""
    (field, value), (divisor, by) = fields.items()
    if by < 1 or value % by:
        raise ModelError(
            f"{field}={value} is not a multiple of {divisor}={by}: choose a {divisor} that "
            f"divides {field}"
        )


def mlp_width(dim: int, mlp_ratio: float) -> int:
    """The hidden width of an MLP on `dim` channels.

    Raises:
      ModelError: if it is 0.
    """
    if (width := int(dim * mlp_ratio)) < 1:
        raise ModelError(
            f"mlp_ratio={mlp_ratio}: times {dim} channels, it leaves the MLP no hidden unit; "
            "choose a larger one"
        )
    return width


def per_stage(**fields: Any) -> Iterable[tuple[int, tuple]]:
    """Yields (stage, value of each field) for each stage, from 0.

    Raises:
      ModelError: unless all fields are tuples with one value per stage.
    """
    lengths = {len(v) if isinstance(v, tuple | list) else 0 for v in fields.values()}
    if len(lengths) > 1 or 0 in lengths:
        given = ", ".join(f"{field}={values}" for field, values in fields.items())
        raise ModelError(f"{given}: give each one value per stage")
    return enumerate(zip(*fields.values(), strict=True))


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Stochastic depth rates that grow linearly over `depth` blocks, from 0 to `last`."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def prepend(token: Array, x: Array) -> Array:
    """Prepends a token [1 or B, 1, D] to tokens [B, N, D]: [B, 1+N, D]."""
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([token, x], axis=1)


class Dense(nn.Dense):
    """nn.Dense; for the CPU on flattened inputs, as XLA:CPU is slow at other weight gradients."""

    kernel_init: Any = normal_02
    formulation: Formulation = "cpu"

    @nn.compact
    def __call__(self, inputs: Array) -> Any:
        if self.formulation != "cpu":
            return super().__call__(inputs)
        x = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return x.reshape(*inputs.shape[:-1], self.features)

    def promoted(self, inputs: Array, width: int | None = None) -> Any:
        """inputs, kernel and bias (or None) of one dtype, for `width` inputs."""
        shape = (width or inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return promote_dtype(inputs, kernel, bias, dtype=self.dtype)


class PatchConv(nn.Module):
    """A convolution whose stride is its kernel size, as one matrix product.

    [B, H, W, C] -> [B, H/p, W/p, features]; parameters as in nn.Conv, initialised as in torch.
    """

    features: int
    patch_size: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        p = self.patch_size
        if h % p or w % p:
            raise ModelError(
                f"a map of {h}x{w} pixels is not a multiple of patch_size={p}: choose another "
                "image_size or patch_size"
            )
        kernel = self.param("kernel", uniform_fan_in, (p, p, c, self.features))
        bias = None
        if self.use_bias:
            bound = 1 / math.sqrt(p * p * c)
            init = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
            bias = self.param("bias", init, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(-1, p * p * c)
        x = x @ kernel.reshape(-1, self.features)
        x = x if bias is None else x + bias
        return x.reshape(b, h // p, w // p, self.features)


def remat_if(on: bool, block: type[nn.Module], train_at: int = 2) -> type[nn.Module]:
    """`block`, if `on` with its forward pass repeated in the backward pass, to save memory.

    Args:
      train_at: position of the argument `train` of its __call__; self is 0.
    """
    return nn.remat(block, static_argnums=(train_at,)) if on else block


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch [B, ...] per sample (Huang et al., 2016)."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        dims = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=dims)(x, deterministic=not train)


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al., CaiT, 2021)."""

    init_value: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gamma = self.param("gamma", nn.initializers.constant(self.init_value), (x.shape[-1],))
        return x * gamma.astype(x.dtype)


def _fused(dense: Dense, act: Any, x: Array) -> Array:
    """act(dense(x)), computed by `dense_raa` from the parameters of both."""
    weights, shift = dense.variables["params"], act.variables["params"]
    x, kernel, bias = promote_dtype(x, weights["kernel"], weights["bias"], dtype=dense.dtype)
    rows = x.reshape(-1, x.shape[-1]) if dense.formulation == "cpu" else x
    y: Any = dense_raa(rows, kernel, bias, shift["w"], shift["b"], dense.formulation)
    return y.reshape(*x.shape[:-1], dense.features)


class Mlp(nn.Module):
    """fc2(act(fc1(x))) on [..., D]: the RAA site of a transformer block.

    With `fused`, RAA and the dense layer before it are one operation (`dense_raa.py`), which is
    faster but supports only reverse-mode differentiation. `fused=False` also supports forward mode:
    `jax.jvp`, `jax.hessian`, `jax.linearize` and `jax.jacfwd`.
    """

    hidden_dim: int
    act: str
    drop_rate: float = 0.0
    fused: bool = True
    dtype: Any = None
    formulation: Formulation = "cpu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        d = x.shape[-1]
        dense = partial(Dense, dtype=self.dtype, formulation=self.formulation)
        fc1 = dense(self.hidden_dim, name="fc1")
        act = activations.create(self.act)
        # Run layer by layer to create parameters, or if intermediate results are captured.
        watched = self.is_initializing() or self.is_mutable_collection("intermediates")
        fused = self.fused and self.act == "raa" and not watched
        x = _fused(fc1, act, x) if fused else act(fc1(x))
        self.sow("intermediates", "activated", x)
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        x = dense(d, name="fc2")(x)
        return nn.Dropout(self.drop_rate)(x, deterministic=not train)
