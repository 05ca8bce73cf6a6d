"""Response-adaptive activation (RAA): GELU with a learned, input-dependent shift of its threshold.

    RAA(x) = x * Phi(x + f(x)),   f(x) = w.x + b        (Qiu et al., ICLR 2024, eq. 2)

Phi is the standard normal distribution function. All elements of a feature vector (a token, or a
pixel of a feature map) share one shift f(x). Training starts with w = b = 0, where RAA is the exact
GELU. The ReLU form of the authors' code, max(0, x + f(x)), starts as ReLU; it adds the shift to
the output as well.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def raa(x: Array, w: Array | None, b: Array | float) -> Array:
    """GELU form, x * Phi(x + f(x)).

    Args:
      x: [..., D], any leading dimensions. Lower precisions are computed in float32.
      w: [D] for one shift per vector, [D, D] (input by output) for one per element, or None for
        a shift that is independent of x.
      b: [], or [D] with an element-wise `w`.

    Returns:
      [..., D], with the dtype of `x`; float32 for integers.

    Raises:
      ValueError: for a `w` of another width than `x`.
    """
    y = promote(x)
    z = y + _shift(y, w, b)
    return _as(x, y * normal_cdf(z))


def raa_relu(x: Array, w: Array | None, b: Array | float) -> Array:
    """ReLU form, max(0, x + f(x)). Arguments, result and errors as for `raa`."""
    y = promote(x)
    return _as(x, nn.relu(y + _shift(y, w, b)))


@jax.custom_jvp
def normal_cdf(z: Array) -> Array:
    """The standard normal distribution function Phi."""
    return 0.5 * (1 + jax.lax.erf(z * 0.5**0.5))


@normal_cdf.defjvp
def _normal_pdf(primals, tangents):
    # jax.lax.erf's own derivative fails under jax.shard_map in JAX 0.12.
    (z,), (dz,) = primals, tangents
    x, dx = z * 0.5**0.5, dz * 0.5**0.5
    return normal_cdf(z), 0.5 * (2 / jnp.pi**0.5 * (dx * jnp.exp(-(x * x))))


def promote(x: Array) -> Array:
    """`x` in float32, or in float64 if that is its dtype."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _as(x: Array, y: Array) -> Array:
    return y.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else y


def _shift(x: Array, w: Array | None, b: Array | float) -> Array:
    b = jnp.asarray(b, x.dtype)
    if w is None:
        return b
    if w.shape[:1] != x.shape[-1:]:
        raise ValueError(f"RAA: w is {list(w.shape)}, x is {list(x.shape)}: give x of that width")
    w = w.astype(x.dtype)
    # As a 2-D matrix product: on XLA:CPU a sum over the last axis takes three times as long.
    rows = jnp.matmul(x.reshape(-1, x.shape[-1]), w, precision=jax.lax.Precision.HIGHEST)
    return rows.reshape(*x.shape[:-1], *(w.shape[1:] or (1,))) + b


def variant(base: str, shift: str, d: int) -> tuple[Callable[..., Array], tuple | None, tuple]:
    """The function for `base`, and the shapes of w (or None) and b for `shift`.

    Raises:
      ValueError: for an unknown `base` or `shift`.
    """
    activate = {"gelu": raa, "relu": raa_relu}.get(base)
    if activate is None:
        raise ValueError(f"RAA.base={base!r}: choose 'gelu' or 'relu'")
    shapes = {"vector": ((d,), ()), "scalar": (None, ()), "element": ((d, d), (d,))}
    if shift not in shapes:
        raise ValueError(f"RAA.shift={shift!r}: choose one of {', '.join(shapes)}")
    return activate, *shapes[shift]


class RAA(nn.Module):
    """RAA as a Flax layer over the last axis; parameters `w` and `b`, zero at the start.

    Attributes:
      base: "gelu" for `raa`, "relu" for `raa_relu`.
      shift: "vector" (the paper's: w[D], b[]), "scalar" (only b[]), or "element" (w[D, D], b[D]).
      param_dtype: of `w` and `b`.

    Raises:
      ValueError: for an unknown `base` or `shift`.
    """

    base: Literal["gelu", "relu"] = "gelu"
    shift: Literal["vector", "scalar", "element"] = "vector"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activate, w_shape, b_shape = variant(self.base, self.shift, x.shape[-1])
        zeros = nn.initializers.zeros
        w = None if w_shape is None else self.param("w", zeros, w_shape, self.param_dtype)
        b = self.param("b", zeros, b_shape, self.param_dtype)
        if self.is_mutable_collection("intermediates"):  # for reports
            self.sow("intermediates", "shift", _shift(promote(x), w, b))
        return activate(x, w, b)
