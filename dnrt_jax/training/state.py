"""Everything a training step reads and writes, as one pytree."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from dnrt_jax import arr


class TrainState(flax.struct.PyTreeNode):
    """step i32[]: steps taken. centroids: None where ARR is off."""

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    centroids: arr.Centroids | None


def create(
    model: nn.Module,
    tx: optax.GradientTransformation,
    example: Any,
    key: Array,
    *,
    num_classes: int,
    use_arr: bool,
) -> TrainState:
    """A fresh state; `example` has the shapes and dtypes of what the model takes, f32[1, H, W, C].

    Raises:
      ValueError: with `use_arr`, if the model records no responses.
    """
    variables = model.init(key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    centroids = None
    if use_arr:
        if not variables.get("responses"):
            raise ValueError(f"ARR needs recorded responses, {type(model).__name__} has none")
        centroids = arr.init(variables["responses"], num_classes)
    return TrainState(jnp.int32(0), params, batch_stats, tx.init(params), centroids)
