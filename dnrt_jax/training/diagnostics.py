"""Diagnostics of the responses by layer: their size, how they cluster, what they tell of the class.

Everything is a sum over samples, so that batches add up, and is read off at the end. Between and
within are those of the analysis of variance: together the variance of all responses.
"""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dnrt_jax import arr

HIGHEST = jax.lax.Precision.HIGHEST
PREFIX = "responses/"


def sums(
    centroids: arr.Centroids, responses: Any, recorded: Any, labels: Array, mask: Array
) -> dict[str, Array]:
    """Sums over a batch, by "responses/LAYER/NAME".

    norm f32[]: of |x| / sqrt(D), x as recorded.
    square f32[], total f32[K, D]: of |d|^2 and, by class, of d, with d the distance of a response
    from the mean of all classes in the centroids.
    nearest i32[]: responses whose nearest class mean, of the centroids, is that of their class.

    Args:
      responses: tree of [B, D_j], what ARR acts on; recorded: the same before `arr.normalize`.
      labels: i32[B]; mask: bool[B].
    """
    found = {}
    seen = centroids.count > 0
    trees = (responses, recorded, centroids.mean)
    layers = zip(layer_names(responses), *map(jax.tree.leaves, trees), strict=True)
    for name, x, raw, means in layers:
        sizes = centroids.count.astype(means.dtype)
        middle = jnp.matmul(sizes, means, precision=HIGHEST) / jnp.maximum(sizes.sum(), 1)
        # About the mean of all, as responses may be much closer to each other than to zero.
        d = jnp.where(mask[:, None] & seen.any(), x.astype(means.dtype) - middle, 0)
        m = means - middle
        nearest = (m * m).sum(1) - 2 * jnp.matmul(d, m.T, precision=HIGHEST)
        nearest = jnp.where(seen, nearest, jnp.inf).argmin(1)
        found[name] = {
            "norm": jnp.where(mask, _root_mean_square(raw.astype(means.dtype)), 0).sum(),
            "square": (d * d).sum(),
            "total": jax.ops.segment_sum(d, labels, len(means)),
            "nearest": (mask & (nearest == labels)).sum(),
        }
    return {f"{PREFIX}{k}/{n}": x for k, of_layer in found.items() for n, x in of_layer.items()}


def summary(added: dict[str, Any], class_counts: np.ndarray) -> dict[str, float]:
    """The figures of a split from the sums over its batches, by "responses/LAYER/NAME".

    norm: mean |x| / sqrt(D). within, between: root mean square distance, a channel's share, of a
    response from the mean of its class, and of these means from the mean of all; both on this
    split. ratio: within / between, which no scale changes. probe: share of samples whose nearest
    class mean, of the training's running means, is that of their class.

    Args:
      class_counts: samples of each class in the split, [K].
    """
    counts = np.asarray(class_counts, np.float64)
    size, values = counts.sum(), {}
    for layer in dict.fromkeys(k[len(PREFIX) :].rpartition("/")[0] for k in added):
        norm, square, total, nearest = (
            np.asarray(added[f"{PREFIX}{layer}/{name}"], np.float64)
            for name in ("norm", "square", "total", "nearest")
        )
        means = total / np.maximum(counts, 1)[:, None]
        # Of all about the center, of the classes' means, and of the mean of all: what is between
        # classes is what their means have more than it.
        all_of_it = square / size
        classes = (counts @ (means * means).sum(1)) / size
        whole = np.square(total.sum(0) / size).sum()
        dim = total.shape[1]
        within, between = (np.sqrt(max(x, 0) / dim) for x in (all_of_it - classes, classes - whole))
        figures = {"norm": norm / size, "within": within, "between": between}
        figures |= {"ratio": within / between} if between > 0 else {}
        figures["probe"] = nearest / size
        values |= {f"{PREFIX}{layer}/{name}": float(x) for name, x in figures.items()}
    return values


def _root_mean_square(x: Array) -> Array:
    return jnp.sqrt((x * x).mean(1))


def layer_names(responses: Any) -> list[str]:
    """Of the leaves of a tree of responses: "blocks_0"; with the name of the response, as
    "blocks_0/first", where a layer has several or is the model itself."""
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(responses)
    ]
    layers = [path.rpartition("/")[0] for path in paths]
    several = Counter(["", "", *layers])
    return [
        path if several[layer] > 1 else layer for path, layer in zip(paths, layers, strict=True)
    ]
