"""Batch norm, a shortcut and RAA in one, for the blocks of CNNs: exact, and cheaper.

RAA's shift is linear in its input, so the backward pass needs only the convolution's output x, the
shift of each pixel and, with a shortcut, RAA's input; Phi is computed again. Each of the functions
`_activate`, `_slope`, `_dy` and `_dx` is one pass over the maps; between them are sums.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata

from dnrt_jax.models.formulation import Formulation
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


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
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
    """raa(batch_norm(x) + shortcut, w, b). Differentiable in reverse mode only.

    Args:
      x: [B, H, W, C]; shortcut: the same, or None.
      scale, bias: [C], of the norm; w: [C] and b: [], of RAA; float32 or float64.
      formulation: whether the passes are kept apart.
    """
    return _forward(x, shortcut, scale, bias, w, b, epsilon, formulation)[0]


def _forward(x, shortcut, scale, bias, w, b, epsilon, formulation):
    kept_apart = formulation == "cpu"
    y, n = promote(x), x.size // x.shape[-1]
    total, squares = _over_pixels(formulation, y, y * y)
    mean = total / n
    var = jnp.maximum(0, squares / n - mean * mean)  # as nn.BatchNorm does
    deviation = jax.lax.rsqrt(var + epsilon)
    affine = mean, deviation * scale, bias
    run = _pass(formulation)
    if shortcut is None:
        z = x
        shift = _shift(formulation, x, affine, w, b)
    else:
        z = run(_add, x, affine, shortcut)
        shift = _shift(formulation, z, None, w, b)
        z = _stored(formulation, z.astype(x.dtype))
        affine = None
    out = run(_activate, z, affine, shift)
    pooled = _input(z, affine).mean((1, 2))
    return NormRAA(out, pooled, mean, var), (x, None if shortcut is None else z, scale, bias, w, mean, deviation, shift)


def _backward(epsilon, formulation, saved, cotangents):
    run = _pass(formulation)
    x, total, scale, bias, w, mean, deviation, shift = saved
    g, factor = cotangents.out, deviation * scale
    affine = (mean, factor, bias) if total is None else None
    z = x if total is None else total
    slope = run(_slope, g, z, affine, shift)
    dshift = _stored(formulation, slope.sum(-1))
    pooled = cotangents.pooled / (x.shape[1] * x.shape[2])
    dy = run(_dy, g, z, affine, shift, slope if formulation=="cpu" else None, dshift, w, None if total is None else pooled)
    dy = _stored(formulation, dy.astype(x.dtype))
    n = x.size // x.shape[-1]
    if formulation == "cpu":
        db = dshift.sum()
        dw = jnp.tensordot(dshift, promote(z), 3, precision=HIGHEST)
        dbias, dscale = _over_pixels(formulation, promote(dy), promote(dy) * promote(x))
    else:
        d = dshift[..., None]
        ones = jax.lax.optimization_barrier(jnp.ones(x.shape[-1]))
        dbias, dscale, dw, db = _over_pixels(formulation, promote(dy), promote(dy) * promote(x), d * promote(z), d*ones)
    if total is None:
        dw = (dw - mean * db) * factor + db * bias
    if formulation != "cpu": db=db[0]
    dscale = (dscale - mean * dbias) * deviation
    dx = run(_dx, dy, x, mean, factor, dbias / n, deviation * dscale / n)
    return dx, None if total is None else dy, dscale, dbias, dw, db

def _shift(formulation, x, affine, w, b):
    if formulation != "cpu":
        return (_input(x, affine) * w + b / x.shape[-1]).sum(-1)
    if affine is not None:
        mean, factor, bias = affine
        b, w = bias @ w - mean @ (factor * w) + b, factor * w
    return _dot(x, w) + b

def _over_pixels(formulation, *maps):
    """Sums [C] of maps [B, H, W, C]."""
    if formulation == "cpu":
        return [x.sum(PIXELS) for x in maps]
    return jnp.stack([x.sum((1, 2)) for x in maps]).sum(1)

def _pass(formulation): return _apart if formulation=='cpu' else _inline
def _stored(formulation, x): return jax.lax.optimization_barrier(x) if formulation=='gpu' else x

norm_raa.defvjp(_forward, _backward)

def _add(x, affine, shortcut):
    return _input(x, affine) + promote(shortcut)


def _activate(x, affine, shift):
    y = _input(x, affine)
    return (y * normal_cdf(y + shift[..., None])).astype(x.dtype)


def _slope(g, x, affine, shift):
    y = _input(x, affine)
    z = y + shift[..., None]
    return promote(g) * y * jnp.exp(-0.5 * z * z) * (2 * jnp.pi) ** -0.5


def _dy(g, x, affine, shift, slope, dshift, w, pooled):
    cdf = normal_cdf(_input(x, affine) + shift[..., None])
    slope = _slope(g, x, affine, shift) if slope is None else slope
    dy = promote(g) * cdf + slope + dshift[..., None] * w
    dy = dy if pooled is None else dy + pooled[:, None, None]
    return dy


def _dx(dy, x, mean, factor, dmean, dvar):
    return (factor * (promote(dy) - dmean - (promote(x) - mean) * dvar)).astype(x.dtype)


def _input(x, affine):
    """RAA's input, of x or of a map that is already normalised."""
    if affine is None:
        return promote(x)
    mean, factor, bias = affine
    return (promote(x) - mean) * factor + bias


def _dot(x, w):
    rows = jnp.matmul(promote(x).reshape(-1, x.shape[-1]), w, precision=HIGHEST)
    return rows.reshape(x.shape[:-1])


def _apart(f, *args):
    """f(*args) as a program of its own. XLA:CPU else repeats what is cheap in all that uses it."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(f)(*args)


def _inline(f, *args):
    return f(*args)
