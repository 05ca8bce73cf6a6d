"""RandAugment (Cubuk et al., 2020) as in timm on Pillow images, vectorised.

The operations belong to three families. Each family is applied to every image, as the identity if
no operation of it was drawn, so a batch with different operations takes three passes instead of 15:
    a table of 256 grey levels     AutoContrast Equalize Invert Posterize Solarize SolarizeAdd
    a blend with another image     Color Contrast Brightness Sharpness
    an affine transform            Rotate ShearX ShearY TranslateXRel TranslateYRel
"""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax.data import grey_levels, resample

OPS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color",
    "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
NO_OP = -1


class Policy(NamedTuple):
    """A policy `rand-mM-nN-mstdS-incI-pP`, with timm's defaults for missing sections."""

    magnitude: int = 10
    num_ops: int = 2
    magnitude_std: float = 0.0  # above 100: uniform in 0 .. magnitude
    increasing: bool = False  # Posterize, Solarize and the blends grow stronger with magnitude
    probability: float = 0.5  # that a drawn operation is applied


_SECTIONS = {  # key: (field, pattern, is valid, description of valid values)
    "m": ("magnitude", r"\d+", lambda v: v <= 10, "an integer from 0 to 10"),
    "n": ("num_ops", r"\d+", lambda v: 1 <= v <= 15, "an integer from 1 to 15"),
    "mstd": ("magnitude_std", r"\d+\.?\d*", lambda v: True, "a number such as 0.5"),
    "inc": ("increasing", r"[01]", lambda v: True, "0 or 1"),
    "p": ("probability", r"\d+\.?\d*", lambda v: v <= 1, "a number from 0 to 1"),
}


def parse(text: str) -> Policy:
    """Parses a policy in timm's notation, such as `rand-m9-mstd0.5-inc1`, or raises ValueError."""
    name, *sections = text.split("-")
    if name != "rand":
        raise ValueError(f"rand_augment={text!r}: must start with 'rand', as rand-m9-mstd0.5-inc1")
    fields = {}
    for section in sections:
        key = section.rstrip("0123456789.")
        value = section[len(key) :]
        if key not in _SECTIONS:
            known = " ".join(f"{key}.." for key in _SECTIONS)
            raise ValueError(f"rand_augment={text!r}: {section!r} is not one of {known}")
        field, pattern, valid, wanted = _SECTIONS[key]
        kind = type(Policy._field_defaults[field])
        if not re.fullmatch(pattern, value) or not valid(number := kind(float(value))):
            raise ValueError(f"rand_augment={text!r}: {section!r} needs {wanted} after {key!r}")
        if field in fields:
            raise ValueError(f"rand_augment={text!r}: {section!r} gives {key!r} a second time")
        fields[field] = number
    return Policy(**fields)


class Draw(NamedTuple):
    """One operation for one image."""

    op: jax.Array  # i32[], index into OPS, or NO_OP
    magnitude: jax.Array  # f32[], 0 to 10
    sign: jax.Array  # f32[], 1 or -1: sign of the angle, shift or change of factor
    bicubic: jax.Array  # bool[]: bicubic or bilinear affine transform


def draw(key: jax.Array, policy: Policy, bicubic: float) -> Draw:
    """Draws `num_ops` operations independently, with repetition as in timm; fields are stacked.

    `bicubic` is the probability of a bicubic transform.
    """
    uniform_key, normal_key = jax.random.split(key)
    u = jax.random.uniform(uniform_key, (5, policy.num_ops))
    if policy.magnitude_std > 100:
        magnitude = policy.magnitude * u[4]
    else:
        noise = jax.random.normal(normal_key, (policy.num_ops,))
        magnitude = policy.magnitude + policy.magnitude_std * noise
    op = jnp.floor(u[0] * len(OPS)).astype(jnp.int32)
    return Draw(
        op=jnp.where(u[1] < policy.probability, op, NO_OP),
        magnitude=jnp.clip(magnitude, 0, 10),
        sign=jnp.where(u[2] < 0.5, 1.0, -1.0),
        bicubic=u[3] < bicubic,
    )


def rand_augment(
    key: jax.Array, image: jax.Array, policy: Policy, bicubic: float, fill: np.ndarray
) -> jax.Array:
    """Applies `policy.num_ops` random operations to u8[H, W, 3]; `fill` u8[3] is the outside."""

    def step(image, drawn):
        return apply(image, drawn, policy.increasing, fill), None

    return jax.lax.scan(step, image, draw(key, policy, bicubic))[0]


def apply(image: jax.Array, drawn: Draw, increasing: bool, fill: np.ndarray) -> jax.Array:
    """Applies one operation to u8[H, W, 3], equal to timm's (affine ones within a grey level)."""
    image = _lookup(image, drawn, increasing)
    image = _blend(image, drawn, increasing)
    return _affine(image, drawn, fill)


# ---- grey level tables ----------------------------------------------------------------------


def _lookup(image: jax.Array, drawn: Draw, increasing: bool) -> jax.Array:
    level, histogram = grey_levels.LEVELS, grey_levels.histogram(image)
    low, high = jnp.argmax(histogram > 0, 0), 255 - jnp.argmax(histogram[::-1] > 0, 0)

    bits = jnp.floor(drawn.magnitude / 10 * 4).astype(jnp.int32)
    threshold = jnp.floor(drawn.magnitude / 10 * 256).astype(jnp.int32)
    added = jnp.floor(drawn.magnitude / 10 * 110).astype(jnp.int32)
    if increasing:
        bits, threshold = 4 - bits, 256 - threshold
    tables = {
        "AutoContrast": grey_levels.autocontrast(low, high),
        "Equalize": grey_levels.equalize(histogram, high),
        "Invert": 255 - level,
        "Posterize": level & (256 - (256 >> bits)),
        "Solarize": jnp.where(level < threshold, level, 255 - level),
        "SolarizeAdd": jnp.where(level < 128, jnp.minimum(level + added, 255), level),
    }
    chosen = jnp.stack([drawn.op == OPS.index(name) for name in tables]).astype(jnp.float32)
    stacked = jnp.stack([jnp.broadcast_to(table, (256, 3)) for table in tables.values()])
    # A product, since XLA would fuse a select into the lookup and compute the table for each pixel.
    table = jnp.einsum("o,olc->lc", chosen, stacked.astype(jnp.float32), precision="highest")
    table = jnp.where(chosen.any(), table.astype(jnp.uint8), level.astype(np.uint8))
    return grey_levels.look_up(image, table)


# ---- blends ---------------------------------------------------------------------------------


def _blend(image: jax.Array, drawn: Draw, increasing: bool) -> jax.Array:
    """degenerate + factor (image - degenerate), as in Pillow's ImageEnhance."""
    pixels = image.astype(jnp.int32)
    # Pillow's luma, ITU-R 601 in 16-bit fixed point.
    grey = ((pixels * jnp.array([19595, 38470, 7471])).sum(-1) + 0x8000) >> 16
    mean = (2 * grey.sum() + grey.size) // (2 * grey.size)
    degenerates = {
        "Color": grey[..., None],
        "Contrast": mean,
        "Brightness": jnp.int32(0),
        "Sharpness": _smooth(pixels),
    }
    drawn_ops = [drawn.op == OPS.index(name) for name in degenerates]
    degenerates = [jnp.broadcast_to(image, pixels.shape) for image in degenerates.values()]
    degenerate = jnp.select(drawn_ops, degenerates, pixels)
    # Truncation exposes the last bit of the factor, which must be timm's float64 one in float32:
    # 1 - 0.09 * magnitude would round twice, and XLA would turn a constant / 100 into * 0.01.
    hundred = 100 + 0 * drawn.magnitude
    if increasing:
        factor = jnp.maximum((100 + drawn.sign * drawn.magnitude * 9) / hundred, 0.1)
    else:
        factor = (10 + drawn.magnitude * 18) / hundred
    # In float32 a compiler may fuse product and sum, which changes the truncated result. Fixed
    # point with 21 fractional bits is exact, and its conversion rounds like the float32 sum.
    product = (factor * (pixels - degenerate).astype(jnp.float32) * 2.0**21).astype(jnp.int32)
    blended = ((degenerate << 21) + product).astype(jnp.float32) * 2.0**-21
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def _smooth(pixels: jax.Array) -> jax.Array:
    """ImageFilter.SMOOTH: a 3 x 3 mean with weight 5 for the centre; the border is unchanged."""
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * pixels[1:-1, 1:-1]
    return pixels.at[1:-1, 1:-1].set((2 * total + 13) // 26)


# ---- affine transforms ----------------------------------------------------------------------


def _affine(image: jax.Array, drawn: Draw, fill: np.ndarray) -> jax.Array:
    height, width, _ = image.shape
    strength = drawn.sign * drawn.magnitude / 10

    def amount(name, largest):
        return jnp.where(drawn.op == OPS.index(name), strength * largest, 0.0)

    angle = -amount("Rotate", math.radians(30))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    matrix = (
        cos,
        sin + amount("ShearX", 0.3),
        x - cos * x - sin * y + amount("TranslateXRel", 0.45) * width,
        -sin + amount("ShearY", 0.3),
        cos,
        y + sin * x - cos * y + amount("TranslateYRel", 0.45) * height,
    )
    return resample.affine(image, jnp.stack(matrix), drawn.bicubic, fill)
