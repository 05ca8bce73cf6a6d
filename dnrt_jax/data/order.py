"""The order of a split in an epoch, and its division into training and validation."""

from functools import lru_cache

import numpy as np

from dnrt_jax.runtime.errors import DataError


@lru_cache(maxsize=16)  # of the members of a set
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation, i32[count], that depends only on (seed, epoch)."""
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The batches of an epoch: indices i32[steps, batch] and mask bool[steps, batch].

    Every image occurs once with mask True. The last batch is padded with images from the start of
    the epoch, with mask False: losses and class means ignore them, batch statistics do not.
    """
    order = epoch_order(seed, epoch, count)
    padded = -(-count // batch_size) * batch_size
    indices = np.resize(order, padded).reshape(-1, batch_size)
    return indices, (np.arange(padded) < count).reshape(-1, batch_size)


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides a training split into training and validation, stratified by class.

    Of a class with n >= 2 images, round(fraction * n) are held out, but at least one and never all.
    The selection depends only on `seed` and the labels.

    Args:
      labels: i32[N], in 0 .. K-1.
      fraction: in the open interval 0 .. 1.

    Returns:
      The training indices and the held-out indices, both i32 and sorted.

    Raises:
      DataError: for a fraction out of range, or if no class has two images.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.valid_fraction={fraction}: must lie between 0 and 1")
    counts = np.bincount(labels)
    if not (counts > 1).any():
        raise DataError(
            f"data.valid_fraction={fraction}: no class has two images, so nothing can be held out"
        )
    wanted = np.floor(fraction * counts + 0.5).astype(int)
    wanted = np.where(counts > 1, np.clip(wanted, 1, counts - 1), 0)

    # The third number makes these draws independent of the order of the epochs.
    shuffled = np.random.default_rng((seed, 0, 1)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[rank < np.repeat(wanted, counts)]] = True
    return np.flatnonzero(~chosen).astype(np.int32), np.flatnonzero(chosen).astype(np.int32)
