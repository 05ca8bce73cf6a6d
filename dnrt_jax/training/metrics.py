"""Classification metrics: counts per batch on the device, ratios at the end."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dnrt_jax.runtime.errors import DataError, NonFiniteError
from dnrt_jax.training import diagnostics

FEW_CLASSES = 10  # with more classes, top-5 accuracy is reported as well


def confusion(logits: Array, labels: Array, mask: Array, num_classes: int) -> Array:
    """Counts of (label, prediction) pairs, i32[K, K], over the rows where `mask` is True."""
    pairs = jnp.asarray(labels, jnp.int32) * num_classes + logits.argmax(-1)
    counts = jnp.zeros(num_classes**2, jnp.int32).at[pairs].add(mask.astype(jnp.int32))
    return counts.reshape(num_classes, num_classes)


def in_top_five(logits: Array, labels: Array, mask: Array) -> Array:
    """Number of rows with mask True whose label is among the five largest logits, i32[]."""
    top = jax.lax.top_k(logits, 5)[1]
    return ((top == labels[:, None]).any(1) & mask).sum()


def summary(sums: dict[str, Any], what: str) -> dict[str, float]:
    """Metrics and mean losses from the sums of `step.eval_step` over all batches.

    Raises:
      NonFiniteError: if a logit was NaN or infinite; `what` names the data in the message.
      DataError: if a label was not of a class.
    """
    if bad := int(sums["non_finite"]):
        raise NonFiniteError(f"the logits of {bad} {what} are not finite")
    if bad := int(sums["count"]) - int(sums["confusion"].sum()):
        last = len(sums["confusion"]) - 1
        raise DataError(f"the labels of {bad} {what} are not classes, 0 to {last}")
    losses = {name: value for name, value in sums.items() if name.startswith("loss")}
    values = {name: float(value / sums["count"]) for name, value in losses.items()}
    if "top5" in sums:
        values["acc_top5"] = float(sums["top5"] / sums["count"])
    of_layers = {k: v for k, v in sums.items() if k.startswith(diagnostics.PREFIX)}
    if of_layers:
        values |= diagnostics.summary(of_layers, sums["confusion"].sum(1))
    return classification(sums["confusion"]) | values


def by_frequency(confusion: Any, train_counts: Any, class_names: Sequence[str]) -> dict[str, float]:
    """Accuracy per class, and means over the classes with many (above 100), medium (20 .. 100) and
    few (below 20) training images, as in Liu et al. (OLTR, CVPR 2019). A class without evaluated
    images has none and is left out of the means."""
    confusion, counts = np.asarray(confusion, np.float64), np.asarray(train_counts)
    seen = confusion.sum(1) > 0
    accuracy = np.diag(confusion) / np.maximum(confusion.sum(1), 1)
    groups = {
        "many": counts > 100,
        "medium": (counts >= 20) & (counts <= 100),
        "few": counts < 20,
    }
    values = {
        f"acc_{name}": float(accuracy[g & seen].mean())
        for name, g in groups.items()
        if (g & seen).any()
    }
    each = zip(class_names, accuracy, seen, strict=True)
    return values | {f"acc_class_{name}": float(a) for name, a, is_seen in each if is_seen}


def roc_auc(scores: Any, positive: Any) -> float:
    """Area under the ROC curve for scores [N] and positives bool[N]: the probability that a
    positive has a higher score than a negative; ties count half. NaN if either is absent."""
    from sklearn.metrics import roc_auc_score

    positive = np.asarray(positive, bool)
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, scores))


def macro_roc_auc(logits: Any, labels: Any) -> float:
    """AUC for logits [N, K]: of class 1 if K = 2, else the one-versus-rest mean over the classes
    that have both positives and negatives; NaN if none has."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    # In the order of the probabilities, of which those near one are not told apart.
    others = lambda k: np.logaddexp.reduce(np.delete(logits, k, 1), 1)
    classes = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    areas = [roc_auc(logits[:, k] - others(k), labels == k) for k in classes]
    known = [area for area in areas if not math.isnan(area)]
    return math.fsum(known) / len(known) if known else math.nan


def classification(confusion: Any) -> dict[str, float]:
    """Accuracy and macro recall, precision and F1 in 0..1, from counts [K, K] (rows are labels).

    As in scikit-learn with zero_division=0, the recall of a class without samples and the precision
    of a class that is never predicted are 0; a class with neither is left out of the means.
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
