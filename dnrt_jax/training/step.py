"""The training and the evaluation step: pure functions of (state, batch).

A batch is a dict: image uint8[B, H, W, C], label i32[B], mask bool[B] (False rows only pad it). For
a model of graphs `image` is a `models.graph.Graph` that asks about B nodes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from dnrt_jax import arr
from dnrt_jax.config import Config
from dnrt_jax.training import metrics
from dnrt_jax.training.state import TrainState

Batch = dict[str, Any]
Values = dict[str, Array]
Mix = Callable[[Array, Array, Array], tuple[Array, Array]]  # as augment.mixup, less its alpha


def train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    transform: Callable[[Array, Array], Array],
    mixing: Sequence[Mix],
    key: Array,
    sharding: Any = None,
    log_prior: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Values]]:
    """Makes step(state, batch) -> (state, values); values are f32[] by name.

    All randomness comes from (key, state.step, position in the batch). Of several ways of `mixing`
    images and label probabilities, as mixup, each batch takes one. A step whose loss or gradient is
    not finite changes nothing but `state.step`; its values tell.

    With a `log_prior` f32[K], the log counts of the classes, the loss is Balanced Softmax (Ren et
    al., NeurIPS 2020): the cross-entropy of logits + log_prior.

    With `config.train.accumulate` the parts of the batch go through the model one after the other;
    `sharding`, of [parts, B / parts, ...], spreads each over the devices. Their gradients add up to
    the whole batch's, and ARR sees the samples in the same order. But dropout draws other numbers,
    and batch norm takes the statistics of each part.
    """
    soft = bool(mixing or config.loss.label_smoothing)
    parts = config.train.accumulate
    prior = 0.0 if log_prior is None else log_prior

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Values]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), 4)
        augment_key, dropout_key, mix_key, choice_key = keys
        labels, mask = batch["label"], batch["mask"]
        images = transform(jax.random.split(augment_key, labels.shape[0]), batch["image"])
        truth = labels
        if soft:
            truth = jax.nn.one_hot(labels, model.num_classes)
            truth = optax.smooth_labels(truth, config.loss.label_smoothing)
        if mixing:
            choice = jax.random.randint(choice_key, (), 0, len(mixing))
            images, truth = jax.lax.switch(choice, mixing, mix_key, images, truth)
        size = jnp.maximum(mask.sum(), 1)
        differentiate = jax.grad(loss_fn, has_aux=True)

        def part_of_step(carry, part):
            grads, values, batch_stats, centroids = carry
            new_grads, (new_values, batch_stats, centroids) = differentiate(
                state.params, batch_stats, centroids, part, size
            )
            grads, values = jax.tree.map(jnp.add, (grads, values), (new_grads, new_values))
            return (grads, values, batch_stats, centroids), None

        whole = (images, truth, labels, mask)
        if parts == 1:
            grads, (values, batch_stats, centroids) = differentiate(
                state.params, state.batch_stats, state.centroids, (*whole, dropout_key), size
            )
        else:
            cut = lambda x: x.reshape(parts, -1, *x.shape[1:])
            whole = jax.lax.with_sharding_constraint(jax.tree.map(cut, whole), sharding)
            split_up = (*whole, jax.random.split(dropout_key, parts))
            first = jax.tree.map(lambda x: x[0], split_up)
            _, (values, _, _) = jax.eval_shape(
                differentiate, state.params, state.batch_stats, state.centroids, first, size
            )
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state.params, values))
            # XLA:CPU runs convolutions in a loop some thirty times slower than out of it.
            (grads, values, batch_stats, centroids), _ = jax.lax.scan(
                part_of_step,
                (*zeros, state.batch_stats, state.centroids),
                split_up,
                unroll=jax.default_backend() == "cpu",
            )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        values["grad_norm"] = optax.tree.norm(grads)
        moved = TrainState(state.step, params, batch_stats, opt_state, centroids)
        finite = jnp.isfinite(values["loss"]) & jnp.isfinite(values["grad_norm"])
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)
        return state.replace(step=state.step + 1), values

    def loss_fn(params, batch_stats, centroids, part, size):
        """The part's share of the mean loss over the batch's `size` samples."""
        images, truth, labels, mask, dropout_key = part
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"] if centroids is None else ["batch_stats", "responses"],
        )
        mean = lambda x: jnp.where(mask, x, 0).sum() / size
        values = {
            "loss_ce": mean(cross_entropy(logits + prior, truth)),
            "acc": mean(logits.argmax(-1) == labels),
        }
        values["loss"] = values["loss_ce"]
        if centroids is not None:
            targets, centroids = arr.update(
                centroids,
                updates["responses"],
                labels,
                momentum=config.arr.momentum,
                rule=config.arr.rule,
                target=config.arr.target,
                mask=mask,
            )
            distance = arr.loss(
                updates["responses"], targets, mask=mask, average=config.arr.average
            )
            values["loss_arr"] = distance * (mask.sum() / size)
            values["loss"] += config.arr.weight * values["loss_arr"]
        return values["loss"], (values, updates.get("batch_stats", {}), centroids)

    return step


def train_steps(
    step: Callable[[TrainState, Batch], tuple[TrainState, Values]], sharding: Any
) -> Callable[..., tuple[TrainState, Values]]:
    """Makes run(state, data, indices i32[S, B], mask bool[S, B], count) -> (state, values f32[S]).

    It takes the first `count` steps of S in one dispatch, on images that lie on the device: `data`
    is a dict of image uint8[N, H, W, C] and label i32[N]. One program serves every count, so the
    boundaries between dispatches change no bit of the result.
    """

    def run(state, data, indices, mask, count):
        def body(i, carry):
            state, log = carry
            state, values = step(state, take(data, indices[i], mask[i], sharding))
            return state, jax.tree.map(lambda xs, x: xs.at[i].set(x), log, values)

        batch = take(data, indices[0], mask[0], sharding)
        _, shapes = jax.eval_shape(step, state, batch)
        log = jax.tree.map(lambda x: jnp.zeros(indices.shape[0], x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, log))

    return run


def eval_step(
    model: nn.Module,
    arr_config: Config,
    transform: Callable[[Array], Array],
    num_classes: int,
    *,
    keep_logits: bool = False,
) -> Callable[[TrainState, Batch], Values]:
    """Makes step(state, batch) -> sums over the batch: confusion i32[K, K], and f32[] by name.

    With `keep_logits` also the logits f32[B, K], for what is no sum.
    """

    def step(state: TrainState, batch: Batch) -> Values:
        labels, mask = batch["label"], batch["mask"]
        logits, recorded = model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            transform(batch["image"]),
            train=False,
            mutable=[] if state.centroids is None else ["responses"],
        )
        sums = {
            "count": mask.sum(),
            "confusion": metrics.confusion(logits, labels, mask, num_classes),
            "loss_ce": jnp.where(mask, cross_entropy(logits, labels), 0).sum(),
            "non_finite": (mask & ~jnp.isfinite(logits).all(-1)).sum(),
        }
        if state.centroids is not None:
            targets = arr.lookup(state.centroids, recorded["responses"], labels)
            mean = arr.loss(recorded["responses"], targets, mask=mask, average=arr_config.average)
            sums["loss_arr"] = mean * mask.sum()
        return sums | ({"logits": logits} if keep_logits else {})

    return step


def take(data: dict[str, Array], indices: Array, mask: Array, sharding: Any) -> Batch:
    """The batch of `data` at `indices` i32[B], split over the devices."""
    batch = {"image": data["image"][indices], "label": data["label"][indices], "mask": mask}
    return jax.lax.with_sharding_constraint(batch, sharding)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """f32[B] of logits [B, K] and labels i32[B], or their probabilities f32[B, K]."""
    if labels.ndim == 2:
        return optax.softmax_cross_entropy(logits, labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
