"""Resampling of uint8 images as Pillow does it: antialiased resize and affine transforms.

Both round their result to uint8, as Pillow does between operations. A resize (`Image.resize`) is
two small matrix products with Pillow's filter weights; an affine transform (`Image.transform`)
weights the 4 x 4 pixels around each point, with Pillow's other bicubic kernel, a = -1 instead of
-1/2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax import bfloat16
from dnrt_jax.data.formulation import by_platform


def _resize_weights(start, length, bicubic, size_in: int, size_out: int) -> jax.Array:
    """Weights f32[size_out, size_in] of the input pixels for each output pixel.

    Only the input pixels start .. start + length - 1 have weights.
    """
    x = jnp.arange(size_in, dtype=jnp.float32)
    scale = length / size_out
    centre = (jnp.arange(size_out, dtype=jnp.float32)[:, None] + 0.5) * scale
    distance = jnp.abs(x - start + 0.5 - centre) / jnp.maximum(scale, 1)
    linear = jnp.maximum(1 - distance, 0)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    cubic = jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0))
    inside = (x >= start) & (x < start + length)
    weights = jnp.where(inside, jnp.where(bicubic, cubic, linear), 0)
    return weights / weights.sum(-1, keepdims=True)


def _to_uint8(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255).astype(jnp.uint8)


def resized_crop(image: jax.Array, box: jax.Array, size: int, bicubic: jax.Array) -> jax.Array:
    """Resizes the box i32[4] = (top, left, height, width) of u8[H, W, C] to u8[size, size, C].

    Antialiased, bicubic if `bicubic` bool[] is true, else bilinear; within a grey level of Pillow.
    """
    top, left, height, width = box
    rows = _resize_weights(top, height, bicubic, image.shape[0], size)
    columns = _resize_weights(left, width, bicubic, image.shape[1], size)
    # Pillow's order: columns, rounded, then rows. The default precision of accelerators (bfloat16,
    # TF32) is too coarse for 256 grey levels.
    wide = jnp.einsum("sx,hxc->hsc", columns, image.astype(jnp.float32), precision="highest")
    wide = _to_uint8(wide).astype(jnp.float32)
    return _to_uint8(jnp.einsum("th,hsc->tsc", rows, wide, precision="highest"))


def resized_centre(image: jax.Array, size: tuple[int, int], crop: int) -> jax.Array:
    """Resizes u8[H, W, C] to `size` (bilinear) and crops the centre u8[crop, crop, C], as Pillow.

    Uses the same fixed-point arithmetic as Pillow, since ties in rounding are frequent here.
    """
    rows, columns = (
        _fixed_point_weights(n_in, n_out)[round((n_out - crop) / 2) :][:crop]
        for n_in, n_out in zip(image.shape, size, strict=False)
    )
    wide = _fixed_point_product("sx,hxc->hsc", columns, image)
    return _fixed_point_product("th,hsc->tsc", rows, wide)


def _fixed_point_weights(size_in: int, size_out: int) -> np.ndarray:
    """i64[size_out, size_in], in units of 2**-22."""
    scale = size_in / size_out
    centre = (np.arange(size_out)[:, None] + 0.5) * scale
    weights = 1 - np.abs(np.arange(size_in) + 0.5 - centre) / max(scale, 1)
    weights = np.maximum(weights, 0)
    return np.floor(weights / weights.sum(1, keepdims=True) * 2**22 + 0.5).astype(np.int64)


def _fixed_point_product(subscripts: str, weights: np.ndarray, image: jax.Array) -> jax.Array:
    # float32 is exact up to 2**24, so the upper and lower 11 bits are multiplied separately.
    upper, lower = (
        jnp.einsum(
            subscripts, half.astype(np.float32), image.astype(jnp.float32), precision="highest"
        )
        for half in (weights >> 11, weights & 2047)
    )
    total = (upper.astype(jnp.int32) << 11) + lower.astype(jnp.int32)
    return (total + 2**21 >> 22).astype(jnp.uint8)


def _tap_weights(fraction: jax.Array, bicubic: jax.Array) -> tuple[jax.Array, ...]:
    """The weights of pixels -1, 0, 1, 2 for a point `fraction` right of pixel 0."""
    d = fraction
    cubic = (-d * (1 - d) ** 2, 1 + d * d * (d - 2), d * (1 + d - d * d), d * d * (d - 1))
    return tuple(map(lambda c, b: jnp.where(bicubic, c, b), cubic, (0.0, 1 - d, d, 0.0)))


class _Taps(NamedTuple):
    """The 4 x 4 pixels around the point of each of P = H W output pixels.

    top, left: i32[P], the second of the four rows and columns, which may lie outside the image:
    the pixels there are those of its edge. weights_y, weights_x: f32[P] for each of the four.
    inside: bool[P], whether the point is in the image.
    """

    top: jax.Array
    left: jax.Array
    weights_y: tuple[jax.Array, ...]
    weights_x: tuple[jax.Array, ...]
    inside: jax.Array


def affine(image: jax.Array, matrix: jax.Array, bicubic: jax.Array, fill: np.ndarray) -> jax.Array:
    """Pillow's `Image.transform(size, AFFINE, matrix)` of u8[H, W, 3].

    Output pixel (x, y) is the input at (a x + b y + c, d x + e y + f), in coordinates of pixel
    centres, for matrix = (a, b, c, d, e, f) f32[6]; `fill` u8[3] outside the image.
    """
    height, width, _ = image.shape
    taps = _taps(height, width, matrix, bicubic)
    total = by_platform(image, interpolate_by_gather, interpolate_by_product, taps)
    # Pillow truncates; the margin preserves flat areas, where the weights sum to 0.9999999.
    value = jnp.clip(jnp.floor(total + 1e-4), 0, 255).astype(jnp.uint8)
    return jnp.where(taps.inside[:, None], value, fill).reshape(image.shape)


def interpolate_by_gather(image: jax.Array, taps: _Taps) -> jax.Array:
    """The weighted sums f32[P, C] of the taps of u8[H, W, C]."""
    height, width, channels = image.shape
    # One 32-bit gather for all channels instead of one per channel.
    shifts = 8 * np.arange(channels, dtype=np.uint32)
    packed = (image.astype(jnp.uint32) << shifts).sum(-1, dtype=jnp.uint32).reshape(-1)
    around = lambda first, size: [jnp.clip(first + k, 0, size - 1) for k in (-1, 0, 1, 2)]
    rows, columns = around(taps.top, height), around(taps.left, width)
    total = jnp.zeros((len(packed), channels), jnp.float32)
    for row, weight_y in zip(rows, taps.weights_y, strict=True):
        for column, weight_x in zip(columns, taps.weights_x, strict=True):
            pixel = (packed[row * width + column][..., None] >> shifts) & 255
            total += (weight_y * weight_x)[..., None] * pixel.astype(jnp.float32)
    return total


def interpolate_by_product(image: jax.Array, taps: _Taps) -> jax.Array:
    """As `interpolate_by_gather`: for each output pixel its taps' columns of all rows, by a product
    with their weights, then a weighted sum over the rows."""
    height, width, _ = image.shape
    planes = jnp.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge").transpose(2, 0, 1)

    def spread(first, weights, size):
        """The weights f32[size + 4, P] of all rows or columns."""
        tap, found = jnp.arange(-1, size + 3)[:, None] - first, jnp.float32(0)
        for k, weight in enumerate(weights):
            found = jnp.where(tap == k, weight, found)
        return found

    # One product of bfloat16, which holds the pixels, for six.
    across = jnp.concatenate(bfloat16.parts(spread(taps.left, taps.weights_x, width)))
    planes = jnp.tile(planes.astype(jnp.bfloat16), 3)
    wide = jnp.einsum(
        "cyx,xp->cyp", planes, across.astype(jnp.bfloat16), preferred_element_type=jnp.float32
    )
    return (spread(taps.top, taps.weights_y, height) * wide).sum(1).T


def _taps(height: int, width: int, matrix: jax.Array, bicubic: jax.Array) -> _Taps:
    a, b, c, d, e, f = matrix
    x = np.tile(np.arange(width, dtype=np.float32) + 0.5, height)
    y = np.repeat(np.arange(height, dtype=np.float32) + 0.5, width)
    x, y = a * x + b * y + c, d * x + e * y + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    weights_x = _tap_weights(x - 0.5 - left, bicubic)
    weights_y = _tap_weights(y - 0.5 - top, bicubic)
    return _Taps(top.astype(jnp.int32), left.astype(jnp.int32), weights_y, weights_x, inside)
