"""Decodes image files to upright uint8 RGB."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, JpegImagePlugin

from dnrt_jax.runtime.errors import DataError

# Pillow also opens formats that run other programs (EPS) or are not photographs (PDF, fonts).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
EVAL_CROP = 0.875
EXIF_ORIENTATION = 0x0112
BITS_PER_SAMPLE = 0x0102  # of TIFF
# The transpose for each EXIF orientation (as in Pillow's ImageOps.exif_transpose).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(DataError):
    """An image that cannot be decoded; the message is one line with its name and the reason."""


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """Context manager: opens the image in `data` and reads its header, but not the pixels.

    Raises:
      BrokenImage: for any failure in the block, or if `data` is empty, truncated, not an image, or
        has too many pixels (twice Pillow's `MAX_IMAGE_PIXELS`: a decompression bomb).
    """
    if not data:
        raise BrokenImage(f"{name}: empty file (0 bytes)")
    try:
        yield Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise BrokenImage(f"{name}: not an image ({', '.join(FORMATS)} are read)") from None
    except Image.DecompressionBombError:
        raise BrokenImage(f"{name}: decompression bomb, too many pixels to be decoded") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise anything for damaged files
        reason = " ".join(str(error).split())
        raise BrokenImage(f"{name}: broken image ({reason})") from None


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 .. 8; 1 (upright) if there is none.

    For JPEG it is read before the pixels, so that they can be decoded at a reduced size. Pillow
    rotates TIFF files itself while decoding, and a PNG may have it after its pixels.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        image.load()
    try:
        number = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # EXIF may be damaged while the pixels are not
        return 1
    return number if number in TURNS else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after `to_rgb`."""
    width, height = image.size
    on_its_side = orientation(image) >= 5
    return (height, width) if on_its_side else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decodes to 8-bit RGB and rotates according to the EXIF orientation.

    16-bit images are scaled, palettes looked up, alpha dropped (as in Pillow's `convert`).

    Raises:
      ValueError: for pixels without a fixed range (32-bit integers, floats).
    """
    turn = TURNS.get(orientation(image))
    image = _convert(image)
    return image if turn is None else image.transpose(turn)


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):
        grey, bits = np.asarray(image), getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE)
        if grey.min() < 0 or grey.max() > 65535 or bits == (32,):
            raise ValueError("32-bit pixels have no known range; save it with 8 or 16 bits")
        image = Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def eval_side(image_size: int) -> int:
    """The size of the shorter side before the evaluation crop: 32 -> 36, 224 -> 256."""
    return int(image_size / EVAL_CROP)


def fit(image: Image.Image, side: int) -> Image.Image:
    """Resizes the shorter side to `side` (bilinear, antialiased) and crops the centre square.

    Raises:
      ValueError: for an image so narrow that the resized image would not fit in memory.
    """
    (width, height), short = image.size, min(image.size)
    wide, high = int(side * width / short), int(side * height / short)
    if max(wide, high) > 100 * side:
        raise ValueError(f"{width} x {height} pixels: too narrow for a centre square")
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - side) / 2), round((high - side) / 2)
    return image.crop((left, top, left + side, top + side))


def decode(data: bytes, name: str, side: int | None = None) -> np.ndarray:
    """Decodes to uint8[H, W, 3], or with `side` to uint8[side, side, 3]; raises BrokenImage."""
    with opened(data, name) as image:
        rgb = to_rgb(image)
        return np.asarray(rgb if side is None else fit(rgb, side))
