"""Aggregated response regularization (ARR): a loss that pulls responses to running class means.

    mu_k <- (1 - m) mu_k + m x_k                      (Qiu et al., ICLR 2024, eq. 3)
    loss  = mean over layers and samples of |x - mu_y|_1 / D            (eq. 4, 5)

x is a layer's aggregated response to one sample of class y: its class token, or its pooled feature
map. All functions are pure, work on pytrees of responses and need only JAX:

    centroids = arr.init(responses, num_classes)                            # once
    targets, centroids = arr.update(centroids, responses, labels, momentum=0.1)
    loss = task_loss + weight * arr.loss(responses, targets)                # every step

Recommended for several devices: `jax.jit` with a sharded batch, which needs no change. Inside
`jax.shard_map` or `jax.pmap`, pass the mapped axis as `axis_name` and average the task loss over it
(docs/own_model.md has complete examples):

    regularizer = arr.loss(responses, targets, axis_name="data")
    loss = jax.lax.pmean(task_loss, "data") + weight * regularizer

The gradients of replicated parameters then equal those on one device: directly under
`jax.shard_map`; after `jax.lax.pmean(grads, "data")` under `pmap` or with `check_vma=False`.
"""

from collections import Counter
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

Tree = Any  # a pytree of arrays
Target = Literal["updated", "previous", "zero", "global", "permuted"]
HIGHEST = jax.lax.Precision.HIGHEST  # a target is compared with its response digit by digit


class Centroids(NamedTuple):
    """The class means of every layer.

    mean: tree of f32[K, D_j], with the structure of the responses; 0 for a class not seen yet.
    count: i32[K], number of samples of each class seen so far.
    """

    mean: Tree
    count: Array


def init(responses: Tree, num_classes: int) -> Centroids:
    """Initial centroids for `responses`, a tree of [B, D_j] arrays or jax.ShapeDtypeStruct.

    Raises:
      ValueError: for a response that is not [B, D], or when none was recorded.
    """
    _batch_size(responses)
    mean = jax.tree.map(lambda x: jnp.zeros((num_classes, x.shape[-1]), _dtype(x)), responses)
    return Centroids(mean, jnp.zeros(num_classes, jnp.int32))


def update(
    centroids: Centroids,
    responses: Tree,
    labels: Array,
    *,
    momentum: float,
    rule: Literal["sequential", "centroid"] = "sequential",
    target: Target = "updated",
    mask: Array | None = None,
    axis_name: str | None = None,
) -> tuple[Tree, Centroids]:
    """Updates the class means with a batch and returns the target of each sample.

    Rule "sequential" is the authors' update, sample by sample in the order of the global batch,
    computed in closed form with one [B, B] matrix for all layers. Rule "centroid" is its mean over
    all orders, mu' = (1-m)^n mu + (1 - (1-m)^n) xbar. It needs only the sum and the count of each
    class, so it is independent of the order and of how the batch is split.

    A sample's target is its class mean with the sample (or, for "centroid", its batch) counted in
    ("updated", the authors' code) or left out ("previous", eq. 4). Under rule "sequential" the loss
    against "updated" is (1-m) times that against "previous", per sample, and a sample whose class
    was never seen before it is its own target. Under "centroid" several samples of a new class
    share their batch mean as the target if it is "updated", and are their own if "previous". Three
    more targets are controls for experiments, each with its question:

      "zero": does any pull help, or the pull to the class? Eq. 4 with mu = 0, a plain L1 of the
        responses. It needs no memory, so samples of classes never seen count too.
      "global": does it matter which class's mean? The mean of all samples' class means, that is
        of the class means weighted by their counts. Before any class was seen, the sample itself.
      "permuted": must it be the sample's own class? Class k looks at class (k+1) mod K; where that
        was never seen, the sample is its own target.

    These use the means from before the batch (as `lookup` does), so they do not depend on the
    batch or its order. The means are updated as usual.
    No gradient flows into targets or means.

    Args:
      responses: tree of [B, D_j].
      labels: integers [B] in 0..K-1; the targets of any other label are NaN.
      momentum: m, in 0..1; the weight of a new sample.
      mask: bool[B]; False rows (padding) are ignored, and their targets are undefined.
      axis_name: the mapped axis that splits the batch, inside `shard_map` or `pmap`.

    Returns:
      The targets, a tree of f32[B, D_j], and the new centroids, equal on all devices.

    Raises:
      ValueError: for an unknown rule or target, "permuted" with one class only, a momentum outside
        0..1 (unless it is a jax.Array), no response, one that is not [B, D], labels that are no
        integers [B], a mask that is not bool[B], or centroids that do not fit the responses.
    """
    rules = {"sequential": _sequential, "centroid": _centroid}
    if rule not in rules:
        raise ValueError(f"arr rule={rule!r}: choose 'sequential' or 'centroid'")
    if not isinstance(momentum, Array) and not 0 <= momentum <= 1:
        raise ValueError(f"arr momentum={momentum}: must be between 0 and 1")
    centroids, labels = _check(centroids, responses, labels, target)
    mask = _mask(mask, len(labels))
    # Masked rows are set to 0, as they may hold NaN and 0 * NaN is NaN.
    clean = lambda x: jnp.where(mask[:, None], jax.lax.stop_gradient(x).astype(_dtype(x)), 0)
    responses = jax.tree.map(clean, responses)
    xs, treedef = jax.tree.flatten(responses)
    means = treedef.flatten_up_to(centroids.mean)
    args = (means, centroids.count, xs, labels, momentum, target, mask, axis_name)
    targets, means, count = rules[rule](*args)
    moved = Centroids(treedef.unflatten(means), count)
    if target in ("updated", "previous"):
        return treedef.unflatten(targets), moved
    return lookup(centroids, responses, labels, target=target), moved


# What crosses devices takes all layers side by side: no more collectives for more layers. The means
# stay apart, because joining them would copy all K rows of every layer at every step.


def _sequential(means, count, xs, labels, momentum, target, mask, axis_name):
    joined, start, size = _join(xs), 0, labels.shape[0]
    if axis_name is not None:
        gather = lambda x: jax.lax.all_gather(x, axis_name, tiled=True, to="invarying")
        start = jax.lax.axis_index(axis_name) * size
        labels, mask, joined = gather(labels), gather(mask), gather(joined)
        xs = _part(joined, xs)
    n, num_classes = labels.shape[0], count.shape[0]
    labels = jnp.where(labels < 0, num_classes, labels)  # a negative index would wrap around

    order = jnp.arange(n)
    same = (labels[:, None] == labels[None]) & mask[:, None] & mask[None]
    before = same & (order[:, None] > order[None])
    rank = before.sum(1)  # number of earlier samples of the same class in the batch
    # An invalid label looks up a NaN mean.
    seen = _look_up(count > 0, labels) | (labels >= num_classes)
    first = (rank == 0) & ~seen
    dtype = jnp.result_type(*xs)
    keep = jnp.asarray(1 - momentum, dtype)
    enter = jnp.where(first, 1, jnp.asarray(momentum, dtype))

    # previous_i = old_i mu_(y_i) + sum_j weights_ij x_j: the mean before sample i is added
    between = jnp.maximum(rank[:, None] - 1 - rank[None], 0).astype(dtype)
    weights = jnp.where(before, enter[None] * keep**between, 0)
    old = jnp.where(seen, keep ** rank.astype(dtype), 0)
    mixed = jnp.matmul(weights.astype(joined.dtype), joined, precision=HIGHEST)

    def layer(mu, x, mixed):
        own = mu.at[labels].get(mode="fill", fill_value=jnp.nan)
        previous = jnp.where(first[:, None], x, old[:, None].astype(x.dtype) * own + mixed)
        # Written as a step from `previous`, so that m = 0 and x = previous stay exact.
        return previous, previous + enter[:, None].astype(x.dtype) * (x - previous)

    previous, updated = zip(*map(layer, means, xs, _part(mixed, xs)), strict=True)
    # A class keeps the mean as of its last sample: only those rows are moved, K at most.
    last = mask & (labels < num_classes) & (rank == same.sum(1) - 1)
    classes, rows = jax.lax.sort_key_val(jnp.where(last, labels, num_classes), order)
    classes, rows = (x[: min(n, num_classes)] for x in (classes, rows))
    moved = zip(means, _part(_join(updated)[rows], xs), strict=True)
    means = [mu.at[classes].set(new.astype(mu.dtype), mode="drop") for mu, new in moved]
    targets = updated if target == "updated" else previous
    targets = [jax.lax.dynamic_slice_in_dim(x, start, size) for x in targets]
    return targets, means, count + _sizes(labels, mask, num_classes)


def _centroid(means, count, xs, labels, momentum, target, mask, axis_name):
    num_classes = count.shape[0]
    labels = jnp.where(labels < 0, num_classes, labels)
    reduce = lambda x: x if axis_name is None else jax.lax.psum(x, axis_name)
    n = reduce(_sizes(labels, mask, num_classes))
    dtype = jnp.result_type(*xs)
    kept = jnp.asarray(1 - momentum, dtype) ** n.astype(dtype)
    enter = jnp.where(count > 0, 1 - kept, (n > 0).astype(dtype))
    own = _look_up((count == 0) & ((n <= 1) | (target == "previous")), labels)

    def layer(mu, x, total):
        average = total / jnp.maximum(n, 1).astype(x.dtype)[:, None]
        updated = mu + enter.astype(x.dtype)[:, None] * (average - mu)
        rows = updated if target == "updated" else mu
        targets = rows.at[labels].get(mode="fill", fill_value=jnp.nan)
        return jnp.where(own[:, None], x, targets), updated.astype(mu.dtype)

    sums = _part(reduce(jax.ops.segment_sum(_join(xs), labels, num_classes)), xs)
    targets, means = zip(*map(layer, means, xs, sums), strict=True)
    return targets, means, count + n


# A TPU looks up and adds single numbers one by one, so there all are compared with all.


def _compare(labels, num_classes):
    return labels[:, None] == jnp.arange(num_classes)[None]


def _look_up(values, labels):
    """values[labels], of values bool[K]; False for a label of K or more."""
    compared = lambda values, labels: (_compare(labels, len(values)) & values[None]).any(1)
    indexed = lambda values, labels: values.at[labels].get(mode="fill", fill_value=False)
    return jax.lax.platform_dependent(values, labels, tpu=compared, default=indexed)


def _sizes(labels, mask, num_classes):
    """Number of samples of each class: i32[K]."""

    def compared(labels, mask):
        return (_compare(labels, num_classes) & mask[:, None]).sum(0, dtype=jnp.int32)

    added = lambda labels, mask: jax.ops.segment_sum(mask.astype(jnp.int32), labels, num_classes)
    return jax.lax.platform_dependent(labels, mask, tpu=compared, default=added)


def _join(xs):
    """All layers side by side: [., D_1 + ... + D_J]."""
    return jnp.concatenate(xs, axis=1)


def _part(joined, xs):
    """The layers of `joined` again, as wide as `xs` and of their types."""
    parts, stop = [], 0
    for x in xs:
        start, stop = stop, stop + x.shape[1]
        parts.append(joined[:, start:stop].astype(x.dtype))
    return parts


def lookup(
    centroids: Centroids, responses: Tree, labels: Array, *, target: Target = "updated"
) -> Tree:
    """The targets of a batch under the means as they are: for evaluation.

    Args, result and errors as for `update`. "updated" and "previous" are both the sample's class
    mean here, and a sample of a class that was never seen is its own target.
    """
    (mean, count), labels = _check(centroids, responses, labels, target)
    num_classes = count.shape[0]
    known = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(known, labels, num_classes)
    if target == "permuted":
        labels = jnp.where(known, (labels + 1) % num_classes, num_classes)
    seen = _look_up(count > 0, labels) | ~known  # a bad label reads a NaN target
    if target in ("zero", "global"):
        seen = ~known | (target == "zero") | (count > 0).any()

    def layer(x, mu):
        x = jax.lax.stop_gradient(x).astype(_dtype(x))
        if target == "zero":
            rows = jnp.where(known[:, None], jnp.zeros_like(x), jnp.nan)
        elif target == "global":
            sizes = count.astype(mu.dtype)
            pooled = jnp.matmul(sizes, mu, precision=HIGHEST) / jnp.maximum(sizes.sum(), 1)
            rows = jnp.where(known[:, None], pooled, jnp.nan)
        else:
            rows = mu.at[labels].get(mode="fill", fill_value=jnp.nan)
        return jnp.where(seen[:, None], rows, x)

    return jax.tree.map(layer, responses, mean)


def normalize(responses: Tree) -> Tree:
    """Each response with zero mean and unit variance over its D features: tree of f32[B, D_j].

    A layer norm without parameters, to be applied before `init`, `update`, `lookup` and `loss`. It
    asks whether ARR acts on the scale of a response or on its direction: after it, scaling a
    response changes neither loss nor direction of the gradient (while its variance is far above
    the 1e-6 that keep a constant response finite).
    """

    def layer(x):
        x = x.astype(_dtype(x))
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    return jax.tree.map(layer, responses)


def loss(
    responses: Tree,
    targets: Tree,
    *,
    mask: Array | None = None,
    average: Literal["layer", "width"] = "layer",
    axis_name: str | None = None,
) -> Array:
    """Mean of |response - target| over features and samples, then over layers: f32[].

    Args:
      responses, targets: trees of [B, D_j].
      mask: bool[B]; False rows are ignored. If all are, the loss is 0.
      average: "layer" is eq. 5, the mean over layers. "width" is the authors' code: the mean over
        layers of equal width, then over widths; the same as "layer" if all widths are equal.
      axis_name: as for `update`; the result is then the mean over the global batch.

    Raises:
      ValueError: for an unknown average, no response, one that is not [B, D], a mask that is not
        bool[B], or targets of another tree or shape than the responses.
    """
    batch = _batch_size(responses)
    _check_tree("targets", targets, responses, batch)
    if average not in ("layer", "width"):
        raise ValueError(f"arr average={average!r}: choose 'layer' or 'width'")
    leaves, treedef = jax.tree.flatten(responses)
    widths = [x.shape[-1] for x in leaves]
    layers = Counter(widths)
    # The weight of each column of all layers side by side.
    alike = {d: n if average == "width" else 1 for d, n in layers.items()}
    weights = jnp.concatenate([jnp.full(d, 1 / (alike[d] * d)) for d in widths])
    parts = len(layers) if average == "width" else len(widths)

    rows = _mask(mask, batch)
    targets = jax.lax.stop_gradient(treedef.flatten_up_to(targets))
    distance = _join([x.astype(_dtype(x)) - mu for x, mu in zip(leaves, targets, strict=True)])
    distance = jnp.where(rows[:, None], distance, 0)
    # sign(d) * d is |d| with gradient 0 at d = 0, where a sample is its own target.
    sign = jax.lax.optimization_barrier(jax.lax.stop_gradient(jnp.sign(distance)))
    distance = sign * distance
    reduce = lambda x: x if axis_name is None else jax.lax.psum(x, axis_name)
    total = reduce((distance * weights.astype(distance.dtype)[None]).sum())
    return total / (parts * jnp.maximum(reduce(rows.sum()), 1)).astype(total.dtype)


def _dtype(x):
    """The dtype of centroids, targets and losses: float32, or float64 for float64 responses."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _check(centroids, responses, labels, target):
    """The centroids as JAX arrays and the labels as i32[B], if they fit together."""
    centroids = jax.tree.map(jnp.asarray, centroids)  # NumPy arrays, if they come from a file
    num_classes, batch = centroids.count.shape[0], _batch_size(responses)
    _check_tree("centroids", centroids.mean, responses, num_classes)
    if target not in get_args(Target):
        raise ValueError(f"arr target={target!r}: choose one of {', '.join(get_args(Target))}")
    if target == "permuted" and num_classes < 2:
        raise ValueError("arr target='permuted': one class has no other class to look at")
    return centroids, _index(labels, batch)


def _batch_size(responses):
    leaves = jax.tree.leaves(responses)
    if not leaves:
        raise ValueError("arr: no responses; does the model record any?")
    for x in leaves:
        if len(x.shape) != 2:
            raise ValueError(
                f"arr: a response is [B, D], not {list(x.shape)}; average a feature map over its "
                "pixels, give the responses of a scan, [L, B, D], as a list of layers"
            )
        if x.shape[0] != leaves[0].shape[0]:
            raise ValueError(f"arr: responses of {leaves[0].shape[0]} and {x.shape[0]} samples")
    return leaves[0].shape[0]


def _check_tree(name, tree, responses, rows):
    found, wanted = jax.tree.structure(tree), jax.tree.structure(responses)
    if found != wanted:
        raise ValueError(f"arr: {name} have the tree {found}, responses have {wanted}")
    for x, response in zip(jax.tree.leaves(tree), jax.tree.leaves(responses), strict=True):
        if x.shape != (rows, response.shape[1]):
            raise ValueError(f"arr: {name} are {list(x.shape)}, responses {list(response.shape)}")


def _index(labels, batch):
    """The labels as i32[B]: K, which stands for a bad label, may be too large for their dtype."""
    labels = labels if hasattr(labels, "dtype") else jnp.asarray(labels)
    if labels.shape != (batch,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        given = f"{labels.dtype}{list(labels.shape)}"
        raise ValueError(f"arr: labels are integers [{batch}], one a response, not {given}")
    if labels.dtype.itemsize > 4:  # 2**32 would become class 0
        low, high = jnp.iinfo(labels.dtype).min, jnp.iinfo(jnp.int32).max
        labels = labels.clip(max(low, -1), high)
    return jnp.asarray(labels, jnp.int32)


def _mask(mask, batch):
    mask = jnp.ones(batch, bool) if mask is None else jnp.asarray(mask)
    if mask.shape != (batch,) or mask.dtype != bool:
        raise ValueError(f"arr: mask is bool[{batch}], not {mask.dtype}{list(mask.shape)}")
    return mask
