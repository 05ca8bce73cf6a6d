"""The training state: parameters, optimizer state, batch statistics and centroids."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from dnrt_jax import arr
from dnrt_jax.runtime.errors import ConfigError

# For what runs once or seldom: compiles in 0.4 to 0.7 of the time, to the same bits on a CPU.
RUNS_ONCE = {"xla_backend_optimization_level": 1}


class TrainState(flax.struct.PyTreeNode):
    """step: i32[], number of steps taken. centroids: None if ARR is off. ema: moving average of the
    variables, {"params", "batch_stats"}; None if off."""

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    centroids: arr.Centroids | None
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation, prediction and export use: the moving average, if there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    example: Any,
    key: Array,
    *,
    num_classes: int,
    use_arr: bool,
    use_ema: bool = False,
) -> TrainState:
    """The initial state; `example` has the shapes and dtypes of a model input, as f32[1, H, W, C].

    Raises:
      ConfigError: with `use_arr`, if the model records no responses.
    """
    variables = model.init(key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    centroids = None
    if use_arr:
        if not variables.get("responses"):
            raise ConfigError(
                f"config.arr.weight: ARR needs recorded responses, {type(model).__name__} has none"
            )
        centroids = arr.init(variables["responses"], num_classes)
    ema = {"params": params, "batch_stats": batch_stats} if use_ema else None
    return TrainState(jnp.int32(0), params, batch_stats, tx.init(params), centroids, ema)
