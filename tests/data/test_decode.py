import io
import struct
import zlib

import numpy as np
import pytest
from making import encoded, exif, turned
from PIL import Image, ImageOps

from dnrt_jax.data import decode


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_grey_becomes_three_equal_channels():
    pixels = decode.decode(saved(Image.fromarray(RAMP), "PNG"), "grey.png")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.repeat(RAMP[..., None], 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    image = Image.fromarray(RAMP.astype(np.uint16) * 257)
    pixels = decode.decode(saved(image, kind), "deep")
    np.testing.assert_array_equal(pixels[..., 0], RAMP)


def test_integers_of_32_bits_are_refused_however_small():
    image = saved(Image.fromarray(np.full((4, 4), 200, np.int32)), "TIFF")
    with pytest.raises(decode.BrokenImage, match="32-bit pixels have no known range"):
        decode.decode(image, "deep.tif")


def test_palette_is_looked_up_also_with_transparency():
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[:2] = (200, 30, 10)
    palette = Image.fromarray(rgb).quantize(2)
    for options in ({}, {"transparency": bytes([0, 255])}):
        data = saved(palette, "PNG", **options)
        np.testing.assert_array_equal(decode.decode(data, "palette.png"), rgb)


def test_alpha_is_dropped():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[...] = (10, 20, 30, 128)
    pixels = decode.decode(saved(Image.fromarray(rgba), "PNG"), "alpha.png")
    np.testing.assert_array_equal(pixels, rgba[..., :3])


def test_cmyk_keeps_its_colours():
    red = Image.new("RGB", (8, 8), (250, 10, 10)).convert("CMYK")
    pixels = decode.decode(saved(red, "JPEG", quality=95), "cmyk.jpg")
    assert np.abs(pixels.astype(int) - (250, 10, 10)).max() <= 6


QUARTERS = np.zeros((24, 40, 3), np.uint8)  # of four grey values, so that no two turns are alike
QUARTERS[:8, 16:], QUARTERS[8:, :16], QUARTERS[8:, 16:] = 80, 160, 240


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_picture_of_each_orientation_is_upright(number, kind):
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    pixels = decode.decode(turned(Image.fromarray(QUARTERS), number, kind, **options), "photo")
    assert pixels.shape == (24, 40, 3)
    assert np.abs(pixels.astype(int) - QUARTERS).max() <= (4 if kind == "JPEG" else 0)


def test_upright_is_what_pillow_calls_so():
    for number in range(1, 9):
        with Image.open(io.BytesIO(turned(Image.fromarray(QUARTERS), number))) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
            assert decode.upright_size(image) == (40, 24)
            np.testing.assert_array_equal(np.asarray(decode.to_rgb(image)), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0", exif(9), exif(0)])
def test_an_orientation_that_says_nothing_is_none(exif):
    picture = Image.fromarray(QUARTERS)
    plain = decode.decode(saved(picture, "JPEG"), "photo")
    np.testing.assert_array_equal(decode.decode(saved(picture, "JPEG", exif=exif), "photo"), plain)


def bomb() -> bytes:
    """A PNG header that announces 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


JPEG = saved(
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)), "JPEG"
)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am text", "not an image"),
        (encoded(kind="JPEG")[:-30], "broken image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (bomb(), "bomb"),
        (saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point"),
        (saved(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "32-bit"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_a_broken_image_is_one_line_with_its_name(data, reason):
    with pytest.raises(decode.BrokenImage, match=reason) as caught:
        decode.decode(data, "folder/this.jpg")
    assert str(caught.value).startswith("folder/this.jpg: ")
    assert "\n" not in str(caught.value)


def test_fit_cuts_the_centre_square_of_the_resized_image():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    square = np.asarray(decode.fit(Image.fromarray(wide), 5))
    assert square.shape == (5, 5, 3)
    assert (square[:, 1:4] == 255).all()


def test_fit_refuses_what_would_not_fit_in_memory():
    data = saved(Image.new("RGB", (5000, 1)), "PNG")
    with pytest.raises(decode.BrokenImage, match="too narrow"):
        decode.decode(data, "line.png", side=8)


def test_eval_side_is_the_protocols():
    assert (decode.eval_side(32), decode.eval_side(224)) == (36, 256)
