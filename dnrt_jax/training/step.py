"""The training step and the evaluation step: pure functions of (state, batch).

A batch is a dict: inputs, a pytree of arrays; label i32[B]; mask bool[B], False for padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from dnrt_jax import arr
from dnrt_jax.config import Config
from dnrt_jax.runtime.sharding import constrain, platform, split
from dnrt_jax.training import diagnostics, metrics
from dnrt_jax.training.state import TrainState

Batch = dict[str, Any]
Values = dict[str, Array]
Mix = Callable[[Array, Array, Array], tuple[Array, Array]]  # augment.mixup with alpha bound


class Samples(NamedTuple):
    """The inputs of the model and the loss.

    truth: labels i32[B], or f32[B, K] if they are smoothed or mixed.
    label: hard labels i32[B], for ARR.
    targets: targets of ARR, if computed before the forward pass; else None.
    """

    inputs: Any
    truth: Array
    label: Array
    mask: Array
    targets: Any = None


@dataclass(frozen=True, eq=False)  # compared by identity, as jax.jit needs it
class TrainStep:
    """One training step, a pure function: step(state, batch) -> (state, values f32[] by name).

    All randomness is a function of (key, state.step, position in the batch). A step whose loss or
    gradient is not finite leaves the state unchanged except `step`; the returned values show the
    NaN.

    Args:
      preprocess: (keys[B], inputs) -> model inputs.
      mixing: functions that mix inputs and label probabilities, as mixup; each batch uses one.
      mesh: devices over which the micro-batches of `config.train.accumulate` are sharded.
      log_prior: f32[K], log class counts, for Balanced Softmax (Ren et al., NeurIPS 2020): the
        cross-entropy of logits + log_prior.
      unravel: of a packed state, its parameters -> those of the model (see `training.packed`); None
        for a state that is not.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    config: Config
    preprocess: Callable[[Array, Any], Any]
    mixing: Sequence[Mix]
    key: Array
    mesh: Mesh | None = None
    log_prior: Any = None
    unravel: Callable[[Any], Any] | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Values]:
        keys = jax.random.split(jax.random.fold_in(self.key, state.step), 4)
        augment_key, dropout_key, mix_key, choice_key = keys
        samples = self._prepare(batch, augment_key, mix_key, choice_key)
        grads, values, batch_stats, centroids = self._differentiate(state, samples, dropout_key)
        values["grad_norm"] = optax.tree.norm(grads)
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = self._update_ema(state.ema, {"params": params, "batch_stats": batch_stats})
        moved = TrainState(state.step, params, batch_stats, opt_state, centroids, ema)
        return keep_if_finite(moved, state, values), values

    def _update_ema(self, ema: Any, variables: Any) -> Any:
        if ema is None:
            return None
        return optax.incremental_update(variables, ema, 1 - self.config.train.ema)

    def _prepare(
        self, batch: Batch, augment_key: Array, mix_key: Array, choice_key: Array
    ) -> Samples:
        labels = batch["label"]
        inputs = self.preprocess(jax.random.split(augment_key, labels.shape[0]), batch["inputs"])
        truth, smoothing = labels, self.config.loss.label_smoothing
        if self.mixing or smoothing:
            truth = jax.nn.one_hot(labels, self.model.num_classes)  # pyright: ignore
            truth = optax.smooth_labels(truth, smoothing)
        if self.mixing:
            choice = jax.random.randint(choice_key, (), 0, len(self.mixing))
            inputs, truth = jax.lax.switch(choice, self.mixing, mix_key, inputs, truth)
        return Samples(inputs, truth, labels, batch["mask"])

    def _forward(self, params, batch_stats, samples: Samples, dropout_key: Array, arr_is_on: bool):
        """(logits, {"batch_stats": ..., "responses": ...})"""
        params = self.unravel(params) if self.unravel else params
        return self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            samples.inputs,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats", "responses"] if arr_is_on else ["batch_stats"],
        )

    def _update_centroids(self, centroids: Any, responses: Any, samples: Samples):
        """(targets, new centroids)"""
        config = self.config.arr
        return arr.update(
            centroids,
            responses,
            samples.label,
            momentum=config.momentum,
            rule=config.rule,
            target=config.target,
            mask=samples.mask,
        )

    def _loss(self, params, batch_stats, centroids, samples: Samples, dropout_key, size):
        """The samples' share of the mean loss over the batch's `size` real samples."""
        config, mask, arr_is_on = self.config.arr, samples.mask, centroids is not None
        logits, new = self._forward(params, batch_stats, samples, dropout_key, arr_is_on)
        prior = 0.0 if self.log_prior is None else self.log_prior
        mean = lambda x: jnp.where(mask, x, 0).sum() / size
        values = {
            "loss_ce": mean(cross_entropy(logits + prior, samples.truth)),
            "acc": mean(logits.argmax(-1) == samples.label),
        }
        values["loss"] = values["loss_ce"]
        if arr_is_on:
            responses, targets = responses_for(config, new), samples.targets
            if targets is None:
                targets, centroids = self._update_centroids(centroids, responses, samples)
            distance = arr.loss(responses, targets, mask=mask, average=config.average)
            values["loss_arr"] = distance * (mask.sum() / size)
            values["loss"] += config.weight * values["loss_arr"]
        return values["loss"], (values, new.get("batch_stats", {}), centroids)

    def _differentiate(self, state: TrainState, samples: Samples, dropout_key: Array):
        """(gradients, values, batch statistics, centroids) of the whole batch."""
        size = jnp.maximum(samples.mask.sum(), 1)
        if self.config.train.accumulate > 1:
            return self._accumulate(state, samples, dropout_key, size)
        grads, (values, batch_stats, centroids) = jax.grad(self._loss, has_aux=True)(
            state.params, state.batch_stats, state.centroids, samples, dropout_key, size
        )
        return grads, values, batch_stats, centroids

    def _accumulate(self, state: TrainState, samples: Samples, dropout_key: Array, size: Array):
        """As `_differentiate`, with the parts of the batch one after the other.

        The gradients are summed to those of the whole batch. Dropout draws other numbers than
        without accumulation, and batch norm uses the statistics of each micro-batch.
        """
        count, grad = self.config.train.accumulate, jax.grad(self._loss, has_aux=True)
        keys = jax.random.split(dropout_key, count)
        parts = _cut(samples, count, self.mesh)
        centroids, config = state.centroids, self.config.arr
        # These targets depend on all of the batch, or on the means before any of it.
        of_the_whole = config.rule == "centroid" or config.target in ("global", "permuted")
        if centroids is not None and of_the_whole:
            parts, centroids = self._whole_targets(state, samples, parts, keys)

        def add(carry, part):
            *sums, batch_stats, centroids = carry
            grads, (values, batch_stats, centroids) = grad(
                state.params, batch_stats, centroids, *part, size
            )
            sums = jax.tree.map(jnp.add, tuple(sums), (grads, values))
            return (*sums, batch_stats, centroids), None

        first = jax.tree.map(lambda x: x[0], (parts, keys))
        shapes = jax.eval_shape(grad, state.params, state.batch_stats, centroids, *first, size)
        values = shapes[1][0]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state.params, values))
        start = (*zeros, state.batch_stats, centroids)
        return self._scan(add, start, (parts, keys))[0]

    def _whole_targets(self, state: TrainState, samples: Samples, parts: Samples, keys: Array):
        """(parts with their targets, new centroids), by an update with the whole batch: the parts
        go forward once more before."""

        def responses_of(_, part):
            samples, key = part
            new = self._forward(state.params, state.batch_stats, samples, key, True)[1]
            return None, responses_for(self.config.arr, new)

        _, responses = self._scan(responses_of, None, (parts, keys))
        whole = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), responses)
        targets, centroids = self._update_centroids(state.centroids, whole, samples)
        return parts._replace(targets=_cut(targets, len(keys), self.mesh)), centroids

    def _scan(self, body: Any, start: Any, parts: Any) -> Any:
        # XLA:CPU runs convolutions in a loop some thirty times slower than out of it.
        unroll = self.mesh is not None and platform(self.mesh) == "cpu"
        return jax.lax.scan(body, start, parts, unroll=unroll)


def _cut(tree: Any, count: int, mesh: Mesh | None) -> Any:
    """Reshapes arrays [B, ...] to [count, B / count, ...], with each part sharded over `mesh`."""
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), tree)
    return constrain(parts, split(mesh, axis=1)) if mesh else parts


def keep_if_finite(moved: TrainState, state: TrainState, values: Values) -> TrainState:
    """Returns `moved` if loss and gradient are finite, else `state` with `step` advanced."""
    finite = jnp.isfinite(values["loss"]) & jnp.isfinite(values["grad_norm"])
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)
    return kept.replace(step=state.step + 1)


def eval_step(
    model: nn.Module,
    arr_config: Config,
    preprocess: Callable[[Any], Any],
    num_classes: int,
    *,
    mirror: Callable[[Any], Any] | None = None,
    keep_logits: bool = False,
) -> Callable[[TrainState, Batch], Values]:
    """Returns step(state, batch) -> sums over the batch: confusion i32[K, K], and f32[] by name.

    Args:
      mirror: model inputs -> their mirror images, whose logits are averaged with theirs.
      keep_logits: return also the logits f32[B, K], for metrics that are not sums over samples.
    """

    def step(state: TrainState, batch: Batch) -> Values:
        labels, mask = batch["label"], batch["mask"]
        inputs = preprocess(batch["inputs"])
        logits, recorded = model.apply(
            state.variables,
            inputs,
            train=False,
            mutable=[] if state.centroids is None else ["responses"],
        )
        if mirror:
            logits = (logits + model.apply(state.variables, mirror(inputs), train=False)) / 2
        sums = {
            "count": mask.sum(),
            "confusion": metrics.confusion(logits, labels, mask, num_classes),
            "loss_ce": jnp.where(mask, cross_entropy(logits, labels), 0).sum(),
            "non_finite": (mask & ~jnp.isfinite(logits).all(-1)).sum(),
        }
        if num_classes > metrics.FEW_CLASSES:
            sums["top5"] = metrics.in_top_five(logits, labels, mask)
        if state.centroids is not None:
            responses = responses_for(arr_config, recorded)
            targets = arr.lookup(state.centroids, responses, labels, target=arr_config.target)
            mean = arr.loss(responses, targets, mask=mask, average=arr_config.average)
            sums["loss_arr"] = mean * mask.sum()
            raw = recorded["responses"]
            sums |= diagnostics.sums(state.centroids, responses, raw, labels, mask)
        return sums | ({"logits": logits} if keep_logits else {})

    return step


def responses_for(arr_config: Config, recorded: Any) -> Any:
    """What ARR acts on, of the collections that a forward pass has returned."""
    responses = recorded["responses"]
    return arr.normalize(responses) if arr_config.normalize == "unit" else responses


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy f32[B] of logits [B, K] and labels i32[B] or label probabilities f32[B, K]."""
    if labels.ndim == 2:
        return optax.softmax_cross_entropy(logits, labels)
    gathered = optax.softmax_cross_entropy_with_integer_labels
    return jax.lax.platform_dependent(logits, labels, tpu=_by_comparison, default=gathered)


def _by_comparison(logits: Array, labels: Array) -> Array:
    """As optax's, without its gather: a TPU gathers single elements one by one. NaN for a label
    outside 0..K-1."""
    is_own = labels[:, None] == jnp.arange(logits.shape[-1])
    own = jnp.where(is_own.any(-1), jnp.where(is_own, logits, 0).sum(-1), jnp.nan)
    return jax.nn.logsumexp(logits, -1) - own
