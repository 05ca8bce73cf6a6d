"""The order in which a split is read, and the part of it that is held out; NumPy only."""

from functools import lru_cache

import numpy as np

from dnrt_jax.runtime.errors import DataError


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """int32[count], a permutation that depends on (seed, epoch) only."""
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images of an epoch, i32[steps, batch], and the mask bool[steps, batch] of real rows.

    Every image occurs once. The last batch is filled up with images from the epoch's beginning:
    masked out of losses and means, but real ones, for the sake of batch statistics.
    """
    order = epoch_order(seed, epoch, count)
    padded = -(-count // batch_size) * batch_size
    indices = np.resize(order, padded).reshape(-1, batch_size)
    return indices, (np.arange(padded) < count).reshape(-1, batch_size)


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides a training split into what is trained on and what is held out for validation.

    Of a class of n images round(fraction * n) are held out, but at least one where n is 2 or more,
    and never all of them. Which ones is a function of `seed` (and of the labels) only.

    Args:
      labels: i32[N], in 0 .. K-1.
      fraction: in 0 .. 1, both excluded.

    Returns:
      The indices to train on and the indices held out, both i32 and sorted; together 0 .. N-1.

    Raises:
      DataError: a fraction out of range, or no class with two images.
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

    # The third number keeps these draws apart from the order of the epochs.
    shuffled = np.random.default_rng((seed, 0, 1)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[rank < np.repeat(wanted, counts)]] = True
    return np.flatnonzero(~chosen).astype(np.int32), np.flatnonzero(chosen).astype(np.int32)
