"""Batch norm, a shortcut and RAA in one, for the blocks of CNNs: exact, and cheaper.

RAA's shift is linear in its input, so the backward pass needs only the convolution's output x, the
shift of each pixel and, with a shortcut, RAA's input; Phi is computed again. `_add`, `_activate`,
`_slope`, `_dy` and `_dx` are one pass over the maps each, with sums between them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata

from dnrt_jax.models.formulation import Formulation
from dnrt_jax.models.varying import equally_varying
from dnrt_jax.raa import normal_cdf, promote

PIXELS = (0, 1, 2)
HIGHEST = jax.lax.Precision.HIGHEST


class NormRAA(NamedTuple):
    """out: [B, H, W, C]. pooled: f32[B, C], mean over the pixels of RAA's input. mean, var: f32[C],
    of the batch; no gradient flows through them."""

    out: Array
    pooled: Array
    mean: Array
    var: Array


def norm_raa(
    x: Array,
    shortcut: Array | None,
    scale: Array,
    bias: Array,
    w: Array,
    b: Array,
    epsilon: float,
    formulation: Formulation = "cpu",
) -> NormRAA:
    """raa(batch_norm(x) + shortcut, w, b), by the batch's statistics. Differentiable in reverse
    mode only.

    Args:
      x: [B, H, W, C]; shortcut: the same with the same dtype, or None.
      scale, bias: [C], of the norm; w: [C] and b: [], of RAA: float32, or float64 as x.
    """
    arrays = equally_varying(x, shortcut, scale, bias, w, b)
    return _norm_raa(*arrays, epsilon, formulation)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _norm_raa(*args):
    return _forward(*args)[0]


def _forward(x, shortcut, scale, bias, w, b, epsilon, formulation):
    run, y, n = _runner(formulation), promote(x), x.size // x.shape[-1]
    total, squares = _over_pixels([y, y * y], formulation)
    mean = total / n
    var = jnp.maximum(0, squares / n - mean * mean)  # as nn.BatchNorm does
    deviation = jax.lax.rsqrt(var + epsilon)
    affine, kept = (mean, deviation * scale, bias), None
    if shortcut is None:
        z, shift = x, _shift(x, affine, w, b, formulation)
    else:
        z = run(_add, x, affine, shortcut)
        affine, shift = None, _shift(z, None, w, b, formulation)
        z = kept = _stored(z.astype(x.dtype), formulation)
    out = run(_activate, z, affine, shift)
    pooled = _input(z, affine).mean((1, 2))
    return NormRAA(out, pooled, mean, var), (x, kept, scale, bias, w, mean, deviation, shift)


def _backward(epsilon, formulation, saved, cotangents):
    run = _runner(formulation)
    x, kept, scale, bias, w, mean, deviation, shift = saved
    g, dpooled = cotangents.out, cotangents.pooled / (x.shape[1] * x.shape[2])
    factor, n = deviation * scale, x.size // x.shape[-1]
    z, affine = (x, (mean, factor, bias)) if kept is None else (kept, None)
    slope = run(_slope, g, z, affine, shift)
    dshift = _stored(slope.sum(-1), formulation)
    dy = run(_dy, g, z, affine, shift, slope, dshift, w, dpooled)  # of RAA's input
    dy = _stored(dy.astype(x.dtype), formulation)

    norm = [promote(dy), promote(dy) * promote(x)]
    if formulation == "cpu":
        dbias, dscale = _over_pixels(norm, formulation)
        dw, db = jnp.tensordot(dshift, promote(z), 3, precision=HIGHEST), dshift.sum()
    else:  # all as sums of columns, so that few kernels make them; db is [C] here, of equal values
        ones = jax.lax.optimization_barrier(jnp.ones_like(w))
        columns = [*norm, dshift[..., None] * promote(z), dshift[..., None] * ones]
        dbias, dscale, dw, db = _over_pixels(columns, formulation)
    dscale = (dscale - mean * dbias) * deviation
    if kept is None:
        dw = (dw - mean * db) * factor + db * bias
    dx = run(_dx, dy, x, mean, factor, dbias / n, deviation * dscale / n)
    return dx, None if kept is None else dy, dscale, dbias, dw, db.reshape(-1)[0]


_norm_raa.defvjp(_forward, _backward)


def _add(x, affine, shortcut):
    return _input(x, affine) + promote(shortcut)


def _activate(x, affine, shift):
    y = _input(x, affine)
    return (y * normal_cdf(y + shift[..., None])).astype(x.dtype)


def _slope(g, x, affine, shift):
    """The gradient through Phi alone, which the channels of a pixel share as the shift's."""
    y = _input(x, affine)
    z = y + shift[..., None]
    return promote(g) * y * jnp.exp(-0.5 * z * z) * (2 * jnp.pi) ** -0.5


def _dy(g, x, affine, shift, slope, dshift, w, dpooled):
    cdf = normal_cdf(_input(x, affine) + shift[..., None])
    return promote(g) * cdf + slope + dshift[..., None] * w + dpooled[:, None, None]


def _dx(dy, x, mean, factor, dmean, dvar):
    return (factor * (promote(dy) - dmean - (promote(x) - mean) * dvar)).astype(x.dtype)


def _input(x, affine):
    """RAA's input, of the convolution's output or of a map that is normalised already."""
    if affine is None:
        return promote(x)
    mean, factor, bias = affine
    return (promote(x) - mean) * factor + bias


def _shift(x, affine, w, b, formulation):
    """w.y + b of RAA's input y, [B, H, W]."""
    if formulation != "cpu":
        return (_input(x, affine) * w + b / x.shape[-1]).sum(-1)
    if affine is not None:  # straight from x
        mean, factor, bias = affine
        b, w = bias @ w - mean @ (factor * w) + b, factor * w
    rows = jnp.matmul(promote(x).reshape(-1, x.shape[-1]), w, precision=HIGHEST)
    return rows.reshape(x.shape[:-1]) + b


def _over_pixels(maps, formulation):
    """The sum [C] of each map [B, H, W, C]."""
    if formulation == "cpu":
        return [x.sum(PIXELS) for x in maps]
    return jnp.stack([x.sum((1, 2)) for x in maps]).sum(1)


def _stored(x, formulation):
    """x, of which a GPU stores these bits; it else stores float32 for what is rounded here."""
    return jax.lax.optimization_barrier(x) if formulation == "gpu" else x


def _runner(formulation):
    return _apart if formulation == "cpu" else lambda f, *args: f(*args)


def _apart(f, *args):
    """f(*args), which XLA:CPU compiles by itself: it else repeats in each pass over a map what the
    pass before has computed, as far as back to the loss of ARR."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(f)(*args)
