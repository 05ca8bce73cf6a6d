"""float32 numbers as sums of bfloat16 numbers, which a TPU multiplies in one pass."""

import jax
import jax.numpy as jnp
from jax import Array


def parts(x: Array) -> Array:
    """Three bfloat16 numbers with the sum x: f32[...] -> bf16[3, ...]."""
    found, rest = [], x
    for _ in range(3):
        # A conversion there and back would be folded away.
        found.append(jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7))
        rest = rest - found[-1]
    return jnp.stack(found).astype(jnp.bfloat16)
