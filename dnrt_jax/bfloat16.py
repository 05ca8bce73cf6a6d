"""float32 numbers as sums of bfloat16 numbers, which a TPU multiplies in one pass."""

import jax
from jax import Array


def parts(x: Array) -> list[Array]:
    """Three arrays like x, f32, with the sum x, whose numbers bfloat16 holds."""
    found, rest = [], x
    for _ in range(3):
        # A conversion there and back would be folded away.
        found.append(jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7))
        rest = rest - found[-1]
    return found
