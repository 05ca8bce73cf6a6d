"""Classification metrics: counts on the device, ratios at the end."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def confusion(logits: Array, labels: Array, mask: Array, num_classes: int) -> Array:
    """Counts of (label, prediction) pairs, i32[K, K], over the rows where `mask` is True."""
    pairs = labels * num_classes + logits.argmax(-1)
    counts = jnp.zeros(num_classes**2, jnp.int32).at[pairs].add(mask.astype(jnp.int32))
    return counts.reshape(num_classes, num_classes)


def classification(confusion: Any) -> dict[str, float]:
    """Accuracy and macro recall, precision and F1 in 0..1, from counts [K, K], labels by rows.

    A class that never occurs has recall 0, one never predicted precision 0, as in scikit-learn
    with zero_division=0; classes that do neither are left out of the means.
    """
    counts = np.asarray(confusion, np.float64)
    hits, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    present = (true + predicted) > 0
    mean = lambda num, den: float((num / np.where(den > 0, den, 1))[present].mean())
    return {
        "acc": float(hits.sum() / counts.sum()),
        "recall": mean(hits, true),
        "precision": mean(hits, predicted),
        "f1": mean(2 * hits, true + predicted),
    }
