"""Histograms and tables of the 256 grey levels, and the tables of Equalize and AutoContrast.

For a TPU (see `formulation.py`) a level is two digits to base 16: what is counted or looked up is a
product of the pixels' one-hot digits, exact in bfloat16 factors and float32 sums.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax.data.formulation import by_platform

LEVELS = np.arange(256)[:, None]


def histogram(image: jax.Array) -> jax.Array:
    """u8[H, W, C] -> number of pixels of each level and channel, i32[256, C]."""
    return by_platform(image, count_by_scatter, count_by_product)


def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
    """The levels u8[H, W, C] of `table` u8[256, C] for those of `image` u8[H, W, C]."""
    return by_platform(image, look_up_by_gather, look_up_by_product, table)


def count_by_scatter(image: jax.Array) -> jax.Array:
    size = 256 * image.shape[-1]
    counts = jnp.zeros(size, jnp.int32).at[_entries(image)].add(1, mode="promise_in_bounds")
    return counts.reshape(256, -1)


def count_by_product(image: jax.Array) -> jax.Array:
    counts = jnp.einsum("chp,clp->hlc", *_digits(image), preferred_element_type=jnp.float32)
    return counts.reshape(256, -1).astype(jnp.int32)


def look_up_by_gather(image: jax.Array, table: jax.Array) -> jax.Array:
    return table.reshape(-1).at[_entries(image)].get(mode="promise_in_bounds")


def look_up_by_product(image: jax.Array, table: jax.Array) -> jax.Array:
    high, low = _digits(image)
    table = table.reshape(16, 16, -1).astype(jnp.bfloat16)
    rows = jnp.einsum("hlc,chp->clp", table, high, preferred_element_type=jnp.float32)
    levels = jnp.where(low > 0, rows, 0).sum(1)
    return levels.T.reshape(image.shape).astype(jnp.uint8)


def _entries(image: jax.Array) -> jax.Array:
    """The entry of each pixel in a flat [256, C] table."""
    channels = image.shape[-1]
    return channels * image.astype(jnp.int32) + jnp.arange(channels)


def _digits(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One-hot upper and lower hexadecimal digits of the pixels: bf16[C, 16, H W] each."""
    levels = image.reshape(-1, image.shape[-1]).T[:, None]
    digits = jnp.arange(16, dtype=jnp.uint8)[:, None]
    one_hot = lambda digit: (digit == digits).astype(jnp.bfloat16)
    return one_hot(levels >> 4), one_hot(levels & 15)


def equalize(counts: jax.Array, high: jax.Array) -> jax.Array:
    """The table i32[256, C] of Equalize, of a histogram and its highest levels i32[C]."""
    last = jnp.where(high == LEVELS, counts, 0).sum(0)
    step = (counts.sum(0) - last) // 255
    below = jnp.cumsum(counts, 0) - counts
    return jnp.where(
        step > 0, jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255), LEVELS
    )


def autocontrast(low: jax.Array, high: jax.Array) -> jax.Array:
    """The table i32[256, C] of AutoContrast, low .. high (i32[C]) linearly to 0 .. 255."""
    span, rise = jnp.maximum(high - low, 1), LEVELS - low
    bits = jnp.asarray(_autocontrast_slips())[256 * span + low]
    slip = (bits[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)).reshape(-1, 256).T & 1
    return jnp.where(
        high > low, jnp.clip(rise * 255 // span - slip.astype(jnp.int32), 0, 255), LEVELS
    )


@functools.cache
def _autocontrast_slips() -> np.ndarray:
    """Where Pillow's truncated float64 result is one less than the exact 255 * rise / span.

    u32[65536, 8], the bits of 256 levels, from the lowest on, for 256 * span + low. They can be set
    only if the quotient is an integer.
    """
    slips = np.zeros((256, 256, 256), bool)  # by span, low and level
    for span in range(1, 256):
        low = np.arange(256 - span)[:, None]
        level = low + np.arange(0, span + 1, span // math.gcd(span, 255))
        scale = 255.0 / span
        slips[span, low, level] = level * scale - low * scale < (level - low) * 255 // span
    return np.packbits(slips, axis=-1, bitorder="little").view("<u4").reshape(-1, 8)
