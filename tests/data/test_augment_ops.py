"""RandAugment's operations and the resampling, against timm's on Pillow and against Pillow."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dnrt_jax.data import randaugment, resample
from dnrt_jax.data.randaugment import NO_OP, OPS, Draw, Policy

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "augment.npz")
IMAGES, FILL = GOLDEN["images"], GOLDEN["fill"].astype(np.uint8)
AFFINE = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


@jax.jit
def increasing(images, draws):
    return jax.vmap(lambda image, drawn: randaugment.apply(image, drawn, True, FILL))(images, draws)


@jax.jit
def constant(images, draws):
    return jax.vmap(lambda image, drawn: randaugment.apply(image, drawn, False, FILL))(
        images, draws
    )


@jax.jit
def resized_crop(images, box, bicubic):
    return jax.vmap(lambda image: resample.resized_crop(image, box, 32, bicubic))(images)


def draws(op, magnitude=9.0, sign=1.0, bicubic=False, count=4) -> Draw:
    index = OPS.index(op) if op else NO_OP
    fields = (jnp.int32(index), jnp.float32(magnitude), jnp.float32(sign), jnp.bool_(bicubic))
    return Draw(*(jnp.broadcast_to(field, count) for field in fields))


def golden_rows(op: str) -> list[str]:
    return [n for n in GOLDEN.files if re.fullmatch(rf"op/\w+/{op}(Increasing)?/.*", n)]


@pytest.mark.parametrize("op", OPS)
def test_operation_equals_the_reference(op):
    rows = golden_rows(op)
    assert rows
    for row in rows:
        _, filter_name, _, magnitude, sign = row.split("/")
        drawn = draws(op, float(magnitude[1:]), 1 if sign == "+" else -1, filter_name == "bicubic")
        ours = np.asarray(increasing(IMAGES[:4], drawn)).astype(int)
        if op in AFFINE:
            # Where the exact value is whole, the last bit decides which of two levels it is.
            assert np.abs(ours - GOLDEN[row]).mean() < 0.01, row
            assert np.abs(ours - GOLDEN[row]).max() <= 1, row
        else:
            np.testing.assert_array_equal(ours, GOLDEN[row], err_msg=row)


@pytest.mark.parametrize("row", [n for n in GOLDEN.files if n.startswith("crop/")])
def test_resized_crop_equals_the_reference(row):
    _, filter_name, box = row.split("/")
    box = jnp.array([int(v) for v in box.split(",")])
    ours = np.asarray(resized_crop(IMAGES[:4], box, filter_name == "bicubic")).astype(int)
    assert np.abs(ours - GOLDEN[row]).max() <= 1
    assert (ours != GOLDEN[row]).mean() < 0.001


@pytest.mark.parametrize("bicubic", [False, True])
def test_downscaling_is_antialiased_as_pillow(bicubic):
    image = np.random.default_rng(0).integers(0, 256, (80, 175, 3), np.uint8)
    ours = resized_crop(image[None], jnp.array([3, 5, 70, 160]), bicubic)[0]
    mode = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    pillow = Image.fromarray(image[3:73, 5:165]).resize((32, 32), mode)
    assert np.abs(np.asarray(ours, int) - np.asarray(pillow, int)).max() <= 1


def test_nothing_drawn_is_the_identity():
    np.testing.assert_array_equal(increasing(IMAGES[:4], draws(None)), IMAGES[:4])


def test_autocontrast_equals_pillow_where_its_float64_slips():
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.integers(0, 256, (2, 64, 3)), 0)
    ramp = np.linspace(low, high, 1024).round().astype(np.uint8)
    images = ramp.transpose(1, 0, 2).reshape(64, 32, 32, 3)
    pillow = np.stack([ImageOps.autocontrast(Image.fromarray(image)) for image in images])
    span = np.maximum(high - low, 1)[:, None, None]
    exact = (images - low[:, None, None].astype(int)) * 255 // span
    assert (pillow != exact).any()
    np.testing.assert_array_equal(increasing(images, draws("AutoContrast", count=64)), pillow)


def test_equalize_and_autocontrast_keep_a_single_level():
    images = np.full((4, 32, 32, 3), 77, np.uint8)
    for op in ("Equalize", "AutoContrast"):
        np.testing.assert_array_equal(increasing(images, draws(op)), images)


@pytest.mark.parametrize("op", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_blends_of_random_factors_equal_pillow(op):
    magnitude = np.random.default_rng(0).uniform(0, 10, 16).astype(np.float32)
    drawn = draws(op, count=16)._replace(magnitude=jnp.asarray(magnitude))
    enhance = getattr(ImageEnhance, op)
    pillow = [
        enhance(Image.fromarray(image)).enhance(m / 10 * 1.8 + 0.1)
        for image, m in zip(IMAGES, magnitude.astype(float), strict=True)
    ]
    # A factor off by one bit of float32 may move a product across a whole number.
    difference = np.asarray(constant(IMAGES, drawn), int) - np.stack(pillow)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-3


def test_increasing_decides_the_direction():
    dark = np.full((4, 32, 32, 3), 100, np.uint8)
    for magnitude, unchanged, solarized in ((1, increasing, constant), (9, constant, increasing)):
        drawn = draws("Solarize", magnitude)
        np.testing.assert_array_equal(unchanged(dark, drawn), dark)
        np.testing.assert_array_equal(solarized(dark, drawn), 255 - dark)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("op", AFFINE)
def test_affine_keeps_a_flat_image_flat(op, bicubic):
    images = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 32, 32, 3))
    magnitude = jnp.linspace(0, 10, 256)
    drawn = draws(op, bicubic=bicubic, count=256)._replace(magnitude=magnitude)
    out = np.asarray(increasing(images, drawn))
    assert ((out == images) | (out == FILL)).all()


def test_rotation_fills_the_corners_with_the_mean():
    out = np.asarray(increasing(IMAGES[:4], draws("Rotate", 10)))
    np.testing.assert_array_equal(out[:, 0, 0], np.broadcast_to(FILL, (4, 3)))


# ---- the policy -----------------------------------------------------------------------------


@functools.cache
def drawn_by(text: str, bicubic: float = 0.5, count: int = 20_000) -> Draw:
    policy = randaugment.parse(text)
    seeds = jax.random.split(jax.random.key(0), count)
    return jax.jit(jax.vmap(lambda key: randaugment.draw(key, policy, bicubic)))(seeds)


def test_every_operation_is_drawn_alike():
    op = np.asarray(drawn_by("rand-m9-mstd0.5-inc1").op)
    assert op.shape == (20_000, 2)
    assert abs((op == NO_OP).mean() - 0.5) < 0.01
    share = np.bincount(op[op != NO_OP], minlength=15) / (op != NO_OP).sum()
    np.testing.assert_allclose(share, 1 / 15, atol=0.01)
    assert abs(np.corrcoef((op != NO_OP).T)[0, 1]) < 0.03


def test_magnitudes_are_normal_and_end_at_ten():
    magnitude = np.asarray(drawn_by("rand-m9-mstd0.5-inc1").magnitude)
    assert magnitude.max() == 10
    assert abs(np.median(magnitude) - 9) < 0.02
    assert abs((magnitude == 10).mean() - 0.0228) < 0.005
    assert (np.asarray(drawn_by("rand-m7", 0.0).magnitude) == 7).all()


def test_a_standard_deviation_above_100_means_uniform():
    magnitude = np.asarray(drawn_by("rand-m8-mstd101").magnitude)
    np.testing.assert_allclose(np.quantile(magnitude, [0, 0.25, 0.5, 1]), [0, 2, 4, 8], atol=0.1)


def test_interpolation_is_chosen_by_its_probability():
    assert not np.asarray(drawn_by("rand-m7", 0.0).bicubic).any()
    assert abs(np.asarray(drawn_by("rand-m9-mstd0.5-inc1").bicubic).mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("rand", Policy(10, 2, 0.0, False, 0.5)),
        ("rand-m9-mstd0.5-inc1", Policy(9, 2, 0.5, True, 0.5)),
        ("rand-p0.8-n3-inc0-m5", Policy(5, 3, 0.0, False, 0.8)),
    ],
)
def test_strings_are_read_as_timm_reads_them(text, policy):
    assert randaugment.parse(text) == policy


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("augmix-m3", "augmix-m3"),
        ("rand-", "''"),
        ("rand-m11", "'m11'"),
        ("rand-m", "'m'"),
        ("rand-m9.5", "'m9.5'"),
        ("rand-n0", "'n0'"),
        ("rand-p1.5", "'p1.5'"),
        ("rand-inc2", "'inc2'"),
        ("rand-mstd1.2.3", "'mstd1.2.3'"),
        ("rand-mmax10", "'mmax10'"),
        ("rand-x3", "'x3'"),
        ("rand-m9-m8", "'m8'"),
    ],
)
def test_a_piece_that_cannot_be_read_is_named(text, piece):
    with pytest.raises(ValueError, match=re.escape(piece)) as error:
        randaugment.parse(text)
    assert "\n" not in str(error.value)
