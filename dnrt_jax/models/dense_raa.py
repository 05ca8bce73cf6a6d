"""A fused dense layer and RAA, for the hidden layer of a transformer's MLP: exact, and cheaper.

RAA's shift is linear in the dense layer's output x = u A + a, so it can be computed from the
narrower input, w.x + b = u.(A w) + (a.w + b), and its gradients with respect to u and A are
rank-one updates. This saves one read of the wide x in the forward and two in the backward pass. Phi
is recomputed in the backward pass: only u, x and the shift are stored.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from dnrt_jax import bfloat16
from dnrt_jax.models.formulation import TPU, Formulation
from dnrt_jax.models.varying import equally_varying
from dnrt_jax.raa import normal_cdf, promote


def dense_raa(
    u: Array, kernel: Array, bias: Array, w: Array, b: Array, formulation: Formulation = "cpu"
) -> Array:
    """raa(u @ kernel + bias, w, b). Differentiable in reverse mode only.

    Args:
      u: [..., C]; kernel: [C, D]; bias: [D]; all of the same dtype.
      w: [D]; b: []. The shift and RAA are computed in float32, or float64.
      formulation: of the backward pass.

    Returns:
      [..., D], with the dtype of `u`.
    """
    return _dense_raa(*equally_varying(u, kernel, bias, w, b), formulation)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _dense_raa(u, kernel, bias, w, b, formulation):
    return _apply(u, kernel, bias, w, b, formulation)[0]


def _apply(u, kernel, bias, w, b, formulation):
    """(the result, x, the shift)."""
    x = u @ kernel + bias
    pull = _dot(kernel, w)
    if formulation in TPU and u.dtype == jnp.bfloat16:
        # A TPU would make a product with one vector of float32 a sum, on another unit.
        columns = jnp.stack(bfloat16.parts(pull), 1).astype(u.dtype)
        shift = jnp.matmul(u, columns, preferred_element_type=jnp.float32).sum(-1)
    else:
        shift = _dot(u, pull)
    shift += _dot(bias, w) + b
    y = promote(x)
    y = y * normal_cdf(y + shift[..., None])
    return y.astype(u.dtype), x, shift


def _forward(u, kernel, bias, w, b, formulation):
    if formulation == "gpu":
        u, kernel, bias = _bias_as_row(u, kernel, bias)
    y, x, shift = _apply(u, kernel, bias, w, b, formulation)
    return y, (u, kernel, bias, w, b, x, shift)


def _bias_as_row(u, kernel, bias):
    """The bias as a row of the kernel, for a one at the end of each u: its gradient then comes with
    the kernel's, where a sum would read dx again. Rows are added in eights, as a GPU wants them."""
    ones = jnp.broadcast_to(jnp.arange(8) == 0, (*u.shape[:-1], 8))
    rows = jnp.concatenate([kernel, bias[None], jnp.zeros((7, bias.size), bias.dtype)])
    return jnp.concatenate([u, ones.astype(u.dtype)], -1), rows, jnp.zeros_like(bias)


def _backward(formulation, saved, g):
    u, kernel, bias, w, b, x, shift = saved
    # Barriers: on the CPU, to compute from x and the shift twice, which is less work than to store
    # the results; on a GPU, to make dx and dshift together in one pass. A TPU loses by either.
    again = lambda *arrays: jax.lax.optimization_barrier(arrays) if formulation == "cpu" else arrays
    g, samples = promote(g), tuple(range(u.ndim - 1))
    over_samples = lambda a, b: jnp.tensordot(a, b, (samples, samples), precision=HIGHEST)
    dshift = (g * _gate(*again(x, shift))[1]).sum(-1)
    cdf, slope = _gate(*again(x, shift))
    dx = (g * (cdf + slope)).astype(x.dtype)  # without the path through the shift
    if formulation == "gpu":
        dx, dshift = jax.lax.optimization_barrier((dx, dshift))
    total, pulled = dshift.sum(), over_samples(dshift, promote(u))
    du = dx @ kernel.T + (dshift[..., None] * _dot(kernel, w)).astype(u.dtype)
    dkernel = jnp.tensordot(u, dx, (samples, samples))
    dkernel += (pulled[:, None] * w).astype(kernel.dtype)
    dbias = (promote(dx).sum(samples) + total * w).astype(bias.dtype)
    dw = _dot(pulled, kernel) + total * promote(bias)
    if formulation == "gpu":
        width = len(kernel) - 8
        du, dkernel, dbias = du[..., :width], dkernel[:width], dkernel[width]
    return du, dkernel, dbias, dw.astype(w.dtype), total.astype(b.dtype)


def _gate(x, shift):
    """Phi(z) and x * phi(z), the normal distribution function and density, at z = x + shift."""
    x = promote(x)
    z = x + shift[..., None]
    return normal_cdf(z), x * jnp.exp(-0.5 * z * z) * (2 * jnp.pi) ** -0.5


_dense_raa.defvjp(_forward, _backward)

HIGHEST = jax.lax.Precision.HIGHEST


def _dot(x, y):
    return jnp.matmul(promote(x), promote(y), precision=HIGHEST)
