import numpy as np
import pytest

from dnrt_jax.data import order
from dnrt_jax.runtime.errors import DataError


def test_an_order_is_a_permutation_of_seed_and_epoch_alone():
    first = order.epoch_order(1, 2, 100)
    assert first.dtype == np.int32
    assert sorted(first) == list(range(100))
    order.epoch_order.cache_clear()
    np.testing.assert_array_equal(order.epoch_order(1, 2, 100), first)
    for seed, epoch in ((1, 3), (2, 2)):
        assert (order.epoch_order(seed, epoch, 100) != first).any()


def test_an_epoch_has_every_image_once_and_real_ones_beyond():
    indices, mask = order.epoch_batches(21, 8, seed=3, epoch=1)
    assert indices.shape == mask.shape == (3, 8)
    assert sorted(indices[mask]) == list(range(21))
    assert (indices[~mask] == indices.ravel()[:3]).all()
    other, _ = order.epoch_batches(21, 8, seed=3, epoch=2)
    assert (other != indices).any()


LABELS = np.random.default_rng(0).permutation(
    np.repeat(np.arange(6, dtype=np.int32), (1, 2, 3, 40, 77, 0))
)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_the_held_out_part_is_stratified_and_nothing_is_lost(fraction):
    train, held = order.hold_out(LABELS, fraction, seed=5)
    assert train.dtype == held.dtype == np.int32
    assert sorted([*train, *held]) == list(range(len(LABELS)))
    assert (np.diff(held) > 0).all()
    assert (np.diff(train) > 0).all()
    counts, kept = np.bincount(LABELS), np.bincount(LABELS[held], minlength=5)
    assert (np.abs(kept - fraction * counts) <= 1).all()
    assert (kept[counts > 1] > 0).all()
    assert (kept < counts).all()


def test_the_held_out_part_is_a_function_of_the_seed_only():
    first = order.hold_out(LABELS, 0.2, seed=5)
    np.random.default_rng().random(7)
    again, other = order.hold_out(LABELS, 0.2, seed=5), order.hold_out(LABELS, 0.2, seed=6)
    np.testing.assert_array_equal(first[1], again[1])
    assert len(first[1]) == len(other[1])
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize(
    ("labels", "fraction", "words"),
    [
        (LABELS, 0.0, "data.valid_fraction=0.0: must lie between"),
        (LABELS, 1.0, "data.valid_fraction=1.0: must lie between"),
        (np.arange(5), 0.2, "no class has two images"),
    ],
)
def test_what_cannot_be_held_out_is_refused(labels, fraction, words):
    with pytest.raises(DataError, match=words):
        order.hold_out(labels, fraction, seed=0)
