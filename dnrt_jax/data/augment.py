"""Training and evaluation transforms on the device: uint8 images in, normalised float32 out.

The training transform is timm's: crop -> flip -> RandAugment -> normalise -> random erasing. An
image's randomness depends only on its own key, so the result does not depend on how a batch is
split over devices or micro-batches. This holds for JAX's default generator, threefry, but not for
"rbg".
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax.data import randaugment, resample

_BICUBIC = {"bilinear": 0.0, "random": 0.5, "bicubic": 1.0}  # interpolation: probability of bicubic


def train_transform(
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: str = "random_resized",
    crop_area: tuple[float, float] = (0.08, 1.0),
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "random",
    pad: int = 4,
    flip: float = 0.5,
    rand_augment: str = "",
    erase: float = 0.0,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns a jitted (keys[B], images u8[B, H, W, C]) -> f32[B, S, S, C], with S = image_size.

    Args:
      mean, std: per channel, for pixels in 0 .. 1.
      crop: "random_resized" (a random box with a fraction `crop_area` of the image and width /
        height in `crop_aspect`, resized), "pad" (a random window after adding `pad` black pixels on
        each side) or "none".
      interpolation: "bilinear", "bicubic" or "random", for the resize and for RandAugment.
      flip, erase: probabilities.
      rand_augment: a policy in timm's notation, such as "rand-m9-mstd0.5-inc1"; "" for none. RGB
        images only.

    Raises:
      ValueError: for arguments out of range; on the first call, for unsuitable images.
    """
    _check_size_and_statistics(image_size, mean, std)
    _check("crop", crop, crop in ("random_resized", "pad", "none"), "random_resized, pad or none")
    _check("crop_area", crop_area, 0 < crop_area[0] <= crop_area[1] <= 1, "0 < low <= high <= 1")
    _check("crop_aspect", crop_aspect, 0 < crop_aspect[0] <= crop_aspect[1], "0 < low <= high")
    known = interpolation in _BICUBIC
    _check("interpolation", interpolation, known, "random, bilinear or bicubic")
    _check("pad", pad, pad >= 0, "0 or more pixels")
    _check("flip", flip, 0 <= flip <= 1, "a probability")
    _check("erase", erase, 0 <= erase <= 1, "a probability")
    policy = randaugment.parse(rand_augment) if rand_augment else None
    if policy and len(mean) != 3:
        raise ValueError(f"rand_augment={rand_augment!r} needs RGB images, not {len(mean)} channel")
    bicubic = _BICUBIC[interpolation]
    fill = np.array([min(255, round(255 * value)) for value in mean], np.uint8)

    def transform(key, image):
        crop_key, flip_key, policy_key, erase_key = jax.random.split(key, 4)
        if crop == "random_resized":
            image = _random_resized_crop(
                crop_key, image, image_size, crop_area, crop_aspect, bicubic
            )
        elif crop == "pad":
            image = _pad_and_crop(crop_key, image, image_size, pad)
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key, flip), image[:, ::-1], image)
        if policy:
            image = randaugment.rand_augment(policy_key, image, policy, bicubic, fill)
        image = _normalise(image, mean, std)
        return random_erasing(erase_key, image, erase) if erase else image

    @jax.jit
    def batch_transform(keys, images):
        _check_images(images, len(mean))
        height, width = images.shape[1:3]
        if crop == "none" and not height == width == image_size:
            raise ValueError(
                f"crop='none' does not make {image_size=} of {height} x {width} images"
            )
        if crop == "pad" and min(height, width) + 2 * pad < image_size:
            raise ValueError(f"{pad=} is too small for {image_size=} of {height} x {width} images")
        return jax.vmap(transform)(keys, images)

    return batch_transform


def eval_transform(
    *, image_size: int, eval_resize: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[jax.Array], jax.Array]:
    """Returns a jitted function images u8[B, H, W, C] -> f32[B, image_size, image_size, C].

    Resizes the shorter side to `eval_resize` (bilinear, antialiased), crops the centre and
    normalises.

    Raises:
      ValueError: for arguments out of range.
    """
    _check_size_and_statistics(image_size, mean, std)
    _check("eval_resize", eval_resize, eval_resize >= image_size, f"at least {image_size=}")

    @jax.jit
    def batch_transform(images):
        _check_images(images, len(mean))
        height, width = images.shape[1:3]
        shortest = min(height, width)
        size = eval_resize * height // shortest, eval_resize * width // shortest
        centre = jax.vmap(lambda image: resample.resized_centre(image, size, image_size))
        return _normalise(centre(images), mean, std)

    return batch_transform


def random_crop_box(
    key: jax.Array,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> jax.Array:
    """The box i32[4] = (top, left, height, width) of a random resized crop, as in timm."""
    found, box = _random_box(key, (height, width), area, aspect, (height, width))
    ratio = min(max(width / height, aspect[0]), aspect[1])
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    return jnp.where(found, box, jnp.array([(height - h) // 2, (width - w) // 2, h, w]))


def random_erasing(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Replaces a random box of f32[H, W, C] by normal noise with the given probability (Zhong et
    al., 2020; timm's mode "pixel")."""
    chance_key, box_key, noise_key = jax.random.split(key, 3)
    height, width, _ = image.shape
    found, (top, left, h, w) = _random_box(
        box_key, (height, width), (0.02, 1 / 3), (0.3, 1 / 0.3), (height - 1, width - 1)
    )
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
    erased = found & jax.random.bernoulli(chance_key, probability) & inside
    return jnp.where(erased, jax.random.normal(noise_key, image.shape), image)


def mixup(
    key: jax.Array, images: jax.Array, label_probs: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixup (Zhang et al., 2018) of f32[B, H, W, C] and f32[B, K] with the reversed batch.

    The weight ~ Beta(alpha, alpha) is the same for the whole batch, as by default in timm. Raises
    ValueError unless alpha > 0.
    """
    _check("mixup alpha", alpha, alpha > 0, "a positive number")
    share = jax.random.beta(key, alpha, alpha)
    images, label_probs = (share * x + (1 - share) * x[::-1] for x in (images, label_probs))
    return images, label_probs


def cutmix(
    key: jax.Array, images: jax.Array, label_probs: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """CutMix (Yun et al., 2019) with the reversed batch; shapes and errors as for `mixup`.

    The box has an area of 1 - Beta(alpha, alpha) and is clipped to the image; labels are mixed
    according to the clipped area.
    """
    _check("cutmix alpha", alpha, alpha > 0, "a positive number")
    share_key, centre_key = jax.random.split(key)
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    centre = jax.random.uniform(centre_key, (2,))

    def span(size, at):
        cut, middle = jnp.floor(size * side), jnp.floor(size * at)
        position = jnp.arange(size)
        return (position >= middle - cut // 2) & (position < middle + (cut + 1) // 2)

    rows, columns = span(height, centre[0]), span(width, centre[1])
    pasted = rows[:, None] & columns
    share = 1 - pasted.mean()
    images = jnp.where(pasted[..., None], images[::-1], images)
    return images, share * label_probs + (1 - share) * label_probs[::-1]


def _random_resized_crop(key, image, size, area, aspect, bicubic):
    box_key, filter_key = jax.random.split(key)
    height, width, _ = image.shape
    box = random_crop_box(box_key, height, width, area, aspect)
    return resample.resized_crop(image, box, size, jax.random.bernoulli(filter_key, bicubic))


def _pad_and_crop(key, image, size, pad):
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    room = np.array(padded.shape[:2]) - size
    top, left = jax.random.randint(key, (2,), 0, room + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (size, size, image.shape[-1]))


def _random_box(key, shape, area, aspect, largest):
    """(found, (top, left, height, width)): the first of ten random boxes of at most size `largest`.

    The area is uniform in `area`, a fraction of the image; width / height is log-uniform.
    """
    u = jax.random.uniform(key, (22,))
    target = shape[0] * shape[1] * (area[0] + (area[1] - area[0]) * u[:10])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = jnp.exp(low + (high - low) * u[10:20])
    heights = jnp.maximum(jnp.round(jnp.sqrt(target / ratio)).astype(jnp.int32), 1)
    widths = jnp.maximum(jnp.round(jnp.sqrt(target * ratio)).astype(jnp.int32), 1)
    fits = (heights <= largest[0]) & (widths <= largest[1])
    first = jnp.argmax(fits)
    is_first = jnp.arange(10) == first
    size = jnp.where(is_first, jnp.stack([heights, widths]), 0).sum(1)
    corner = jnp.floor(u[20:] * (jnp.array(shape) - size + 1)).astype(jnp.int32)
    return fits.any(), jnp.concatenate([corner, size])


def _normalise(images, mean, std):
    mean, std = np.float32(mean), np.float32(std)
    return (images.astype(jnp.float32) / 255 - mean) / std


def _check(name, value, valid, wanted):
    if not valid:
        raise ValueError(f"{name}={value!r}: must be {wanted}")


def _check_size_and_statistics(image_size, mean, std):
    _check("image_size", image_size, image_size >= 1, "1 or more pixels")
    _check("mean", mean, all(0 <= m <= 1 for m in mean), "in 0 .. 1, of pixels in 0 .. 1")
    matching = len(std) == len(mean) and all(s > 0 for s in std)
    _check("std", std, matching, f"{len(mean)} positive numbers, one for each channel of mean")


def _check_images(images, channels):
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != channels:
        given = f"{images.dtype}{list(images.shape)}"
        raise ValueError(f"images must be uint8[B, H, W, {channels}] as mean and std: {given}")
