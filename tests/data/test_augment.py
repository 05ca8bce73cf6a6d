"""The whole transforms: against draws of the authors' pipeline, and what they promise."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from dnrt_jax.data import augment

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "augment.npz")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PAPER = {
    "image_size": 32,
    "mean": MEAN,
    "std": STD,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erase": 0.25,
}
RAW = {"mean": (0, 0, 0), "std": (1, 1, 1), "flip": 0.0}  # pixels come out in 0 .. 1


@pytest.fixture(scope="module")
def paper():
    return augment.train_transform(**PAPER)


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.sort(a), np.sort(b)
    at = np.union1d(a, b)
    share = [np.searchsorted(x, at, side="right") / len(x) for x in (a, b)]
    return np.abs(share[0] - share[1]).max()


# ---- against the reference ------------------------------------------------------------------


def test_evaluation_equals_the_reference():
    transform = augment.eval_transform(image_size=32, eval_resize=36, mean=MEAN, std=STD)
    np.testing.assert_allclose(transform(GOLDEN["images"][:4]), GOLDEN["eval"], atol=1e-5)


def test_training_draws_have_the_reference_distribution(paper):
    out = np.stack([paper(keys(16, seed), GOLDEN["images"]) for seed in range(200)])
    np.testing.assert_allclose(out.mean((0, 1, 2, 3)), GOLDEN["stats/train_mean_rgb"], atol=0.04)
    np.testing.assert_allclose(out.std((0, 1, 2, 3)), GOLDEN["stats/train_std_rgb"], atol=0.03)
    assert np.abs(out.mean(0) - GOLDEN["stats/pixel_mean"]).mean() < 0.09


def test_crop_boxes_have_the_reference_distribution():
    draw = jax.vmap(lambda key: augment.random_crop_box(key, 32, 32, (0.08, 1.0), (3 / 4, 4 / 3)))
    ours = np.asarray(jax.jit(draw)(keys(100_000))).T
    theirs = GOLDEN["stats/crop_ijhw"].T.astype(int)
    for measure in (lambda b: b[0], lambda b: b[1], lambda b: b[2] * b[3], lambda b: b[3] / b[2]):
        assert kolmogorov_smirnov(measure(ours), measure(theirs)) < 0.02


def test_erased_boxes_have_the_reference_distribution():
    grey = jnp.full((32, 32, 1), 9.0)
    count = jax.vmap(lambda key: (augment.random_erasing(key, grey, 0.25) != 9).sum())
    ours = np.concatenate([jax.jit(count)(keys(10_000, seed)) for seed in range(2)])
    assert kolmogorov_smirnov(ours, GOLDEN["stats/erased_pixels"]) < 0.02


# ---- what the transforms promise ------------------------------------------------------------


def test_evaluation_equals_pillow_on_an_oblong_image():
    (image,) = images = noise(1, 75, 100, 3)
    transform = augment.eval_transform(image_size=48, eval_resize=60, mean=(0, 0, 0), std=(1, 1, 1))
    pillow = np.asarray(Image.fromarray(image).resize((80, 60), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(transform(images)[0] * 255, pillow[6:54, 16:64], atol=1e-4)


def test_an_image_depends_on_its_own_key_alone(paper):
    images, seeds = GOLDEN["images"], keys(16)
    some = np.array([9, 2, 14, 5])
    whole = np.asarray(paper(seeds, images))
    np.testing.assert_array_equal(paper(seeds[some], images[some]), whole[some])


@pytest.mark.skipif(jax.device_count() < 2, reason="needs several devices")
def test_several_devices_equal_one(paper):
    images, seeds = GOLDEN["images"], keys(16)
    devices = math.gcd(16, jax.device_count())
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
    split = NamedSharding(mesh, PartitionSpec("data"))
    sharded = paper(jax.device_put(seeds, split), jax.device_put(images, split))
    assert sharded.sharding.is_equivalent_to(split, sharded.ndim)
    np.testing.assert_array_equal(sharded, paper(seeds, images))


def test_no_augmentation_is_normalisation():
    images = noise(2, 8, 8, 1)
    transform = augment.train_transform(image_size=8, mean=[0.3], std=[0.2], crop="none", flip=0)
    np.testing.assert_allclose(transform(keys(2), images), (images / 255 - 0.3) / 0.2, atol=1e-5)


def test_flip_is_certain_or_never():
    images = noise(3, 8, 8, 3)
    for flip, expected in ((1.0, images[:, :, ::-1]), (0.0, images)):
        transform = augment.train_transform(image_size=8, crop="none", **{**RAW, "flip": flip})
        np.testing.assert_allclose(transform(keys(3), images) * 255, expected, atol=1e-4)


def test_pad_crop_is_a_window_of_the_padded_image():
    images = noise(64, 8, 8, 1)
    transform = augment.train_transform(image_size=8, mean=[0], std=[1], crop="pad", pad=2, flip=0)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for out, image in zip(np.rint(transform(keys(64), images) * 255), padded, strict=True):
        found = {
            (i, j)
            for i in range(5)
            for j in range(5)
            if np.array_equal(out, image[i : i + 8, j : j + 8])
        }
        assert len(found) == 1
        seen |= found
    assert {i for i, _ in seen} == {j for _, j in seen} == set(range(5))


def test_a_full_crop_of_aspect_one_is_the_image():
    images = noise(2, 16, 16, 3)
    transform = augment.train_transform(
        image_size=16, crop_area=(1, 1), crop_aspect=(1, 1), interpolation="bicubic", **RAW
    )
    np.testing.assert_allclose(transform(keys(2), images) * 255, images, atol=1e-4)


def test_a_crop_that_never_fits_is_central():
    box = augment.random_crop_box(jax.random.key(0), 20, 60, (0.9, 1.0), (1.0, 1.5))
    assert box.tolist() == [0, 15, 20, 30]


def test_erased_pixels_are_normal_noise_in_one_box():
    image = jnp.full((64, 64, 3), 7.0)
    out = np.asarray(augment.random_erasing(jax.random.key(0), image, 1.0))
    rows, columns, _ = np.nonzero(out != 7)
    box = out[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.size == len(rows)
    assert 0.02 <= box.size / out.size <= 0.34
    assert abs(box.mean()) < 5 / math.sqrt(box.size)
    assert abs(box.std() - 1) < 5 / math.sqrt(box.size)


def test_mixup_blends_images_and_labels_alike():
    images, labels = jnp.asarray(noise(4, 4, 4, 1), jnp.float32), jnp.eye(4)
    mixed, mixed_labels = augment.mixup(jax.random.key(1), images, labels, 0.8)
    share = mixed_labels[0, 0]
    assert 0 < share < 1
    np.testing.assert_allclose(mixed_labels, share * labels + (1 - share) * labels[::-1])
    np.testing.assert_allclose(mixed, share * images + (1 - share) * images[::-1], rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_labels_are_the_shares_of_the_pixels(seed):
    images = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 12, 20, 1))
    mixed, labels = augment.cutmix(jax.random.key(seed), images, jnp.eye(4), 1.0)
    for i in range(4):
        assert set(np.unique(mixed[i])) <= {i, 3 - i}
        np.testing.assert_allclose(labels[i, i], (mixed[i] == i).mean(), atol=1e-6)
        np.testing.assert_allclose(labels[i].sum(), 1, atol=1e-6)


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"mean": (125, 123, 114)}, "mean=.*in 0 .. 1"),
        ({"std": (0.2,)}, "std=.*3 positive"),
        ({"std": (0.2, 0.2, 0)}, "std=.*3 positive"),
        ({"crop": "centre"}, "crop='centre'"),
        ({"crop_area": (0.5, 0.1)}, "crop_area"),
        ({"crop_aspect": (0, 1)}, "crop_aspect"),
        ({"interpolation": "nearest"}, "interpolation='nearest'"),
        ({"pad": -1}, "pad=-1"),
        ({"flip": 2}, "flip=2"),
        ({"erase": -0.1}, "erase=-0.1"),
        ({"rand_augment": "rand-m99"}, "'m99'"),
        ({"mean": (0.5,), "std": (0.5,)}, "needs RGB images, not 1 channel"),
    ],
)
def test_arguments_out_of_range_are_named(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        augment.train_transform(**(PAPER | wrong))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("crop", "images", "message"),
    [
        ("none", np.zeros((1, 9, 8, 3), np.uint8), "crop='none' .* 9 x 8"),
        ("pad", np.zeros((1, 3, 8, 3), np.uint8), "pad=2 is too small"),
        ("pad", np.zeros((1, 8, 8, 1), np.uint8), r"uint8\[B, H, W, 3\]"),
        ("pad", np.zeros((1, 8, 8, 3), np.float32), r"float32\[1, 8, 8, 3\]"),
    ],
)
def test_images_that_do_not_fit_are_named(crop, images, message):
    transform = augment.train_transform(image_size=8, crop=crop, pad=2, **RAW)
    with pytest.raises(ValueError, match=message):
        transform(keys(1), images)


def test_evaluation_smaller_than_its_crop_is_refused():
    with pytest.raises(ValueError, match="eval_resize=28"):
        augment.eval_transform(image_size=32, eval_resize=28, mean=MEAN, std=STD)


@pytest.mark.parametrize("mix", [augment.mixup, augment.cutmix])
def test_mixing_needs_a_positive_alpha(mix):
    with pytest.raises(ValueError, match="alpha=0"):
        mix(jax.random.key(0), jnp.zeros((2, 4, 4, 1)), jnp.eye(2), 0)
