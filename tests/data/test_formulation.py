"""The augmentation by products, as on a TPU, is the augmentation by gathers."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnrt_jax.data import augment, grey_levels, randaugment, resample
from dnrt_jax.data.formulation import LARGEST
from dnrt_jax.data.randaugment import OPS, Draw
from tests.data.test_augment_ops import AFFINE, FILL, IMAGES


@pytest.fixture
def by_products(monkeypatch):
    take = lambda image, gathers, products, *args: products(image, *args)
    monkeypatch.setattr(resample, "by_platform", take)
    monkeypatch.setattr(grey_levels, "by_platform", take)


def every_operation(images):
    """u8[operations, images, H, W, 3]: every operation, up and down, in both interpolations."""
    grid = [(op, s, b) for op in range(len(OPS)) for s in (-1.0, 1.0) for b in (False, True)]
    op, sign, bicubic = map(np.array, zip(*grid, strict=True))
    magnitude = np.linspace(3, 9.5, len(grid))
    drawn = Draw(op, np.float32(magnitude), np.float32(sign), bicubic)
    of_images = lambda d: jax.vmap(lambda x: randaugment.apply(x, d, True, FILL))(images)
    return op, np.asarray(jax.jit(jax.vmap(of_images))(drawn)).astype(int)


@pytest.fixture(scope="module")
def gathered():
    return every_operation(IMAGES[:6])


def test_every_operation_is_the_same_by_products(by_products, gathered):
    op, wanted = gathered
    ours = every_operation(IMAGES[:6])[1]
    affine = np.isin(op, [OPS.index(name) for name in AFFINE])
    np.testing.assert_array_equal(ours[~affine], wanted[~affine])
    # Where the exact value is whole, the last bit decides which of two levels it is.
    assert np.abs(ours - wanted)[affine].max() <= 1
    assert (ours != wanted)[affine].mean() < 2e-4


def test_counts_and_tables_of_an_oblong_image_are_exact():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 70, 2), np.uint8)
    table = rng.integers(0, 256, (256, 2), np.uint8)
    counts = grey_levels.count_by_product(image)
    np.testing.assert_array_equal(counts, grey_levels.count_by_scatter(image))
    np.testing.assert_array_equal(counts[:, 1], np.bincount(image[..., 1].ravel(), minlength=256))
    found = grey_levels.look_up_by_product(image, jnp.asarray(table))
    np.testing.assert_array_equal(found, grey_levels.look_up_by_gather(image, jnp.asarray(table)))
    np.testing.assert_array_equal(found[..., 0], table[image[..., 0], 0])


def scalar_gathers(size, platform):
    """Gathers and scatters of single elements in the paper's augmentation, lowered."""
    transform = augment.train_transform(
        image_size=size,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        rand_augment="rand-m9-mstd0.5-inc1",
        erase=0.25,
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    images = jax.ShapeDtypeStruct((2, size, size, 3), np.uint8)
    text = transform.trace(keys, images).lower(lowering_platforms=(platform,)).as_text()
    sizes = re.findall(r"slice_sizes = array<i64: ([\d, ]+)>", text)
    single = [math.prod(map(int, each.split(", "))) == 1 for each in sizes]
    return sum(single), len(re.findall(r"#stablehlo.scatter<(?!update_window_dims)", text))


def test_no_element_is_gathered_on_a_tpu_and_products_stay_off_a_cpu():
    assert scalar_gathers(32, "tpu") == (0, 0)
    gathers, scatters = scalar_gathers(32, "cpu")
    assert gathers >= 17
    assert scatters >= 1
    assert scalar_gathers(LARGEST + 1, "tpu") == (gathers, scatters)
