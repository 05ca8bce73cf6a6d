"""The training state: parameters, optimizer state, batch statistics and centroids."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from dnrt_jax import arr
from dnrt_jax.runtime.errors import ConfigError, ModelError, UserError

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


def check_own_model(model: nn.Module, name: str, state: TrainState, example: Any) -> None:
    """Traces `model` as training and evaluation apply it; `state` and `example` are of shapes."""

    def apply(variables: Any, inputs: Any, key: Array) -> None:
        rngs = {"dropout": key}
        names = ["batch_stats", "responses"]
        model.apply(variables, inputs, train=True, rngs=rngs, mutable=names)
        model.apply(variables, inputs, train=False)

    with own_model(name):
        jax.eval_shape(apply, state.variables, example, jax.random.key(0))


@contextmanager
def own_model(name: str) -> Iterator[None]:
    """Context manager in which an error of a model outside the package, MODULE:CLASS, becomes a
    ModelError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if ":" not in name:
            raise
        first, *_ = [*str(error).strip().splitlines(), ""]
        raise ModelError(
            f"config.model.name={name!r}: {type(error).__name__}: {first.rstrip('.')}; with "
            "DNRT_TRACEBACK=1 the program says where"
        ) from error


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
      ModelError: if the model does not give logits f32[1, num_classes].
      ConfigError: with `use_arr`, if the model records no responses.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    logits, variables = model.init_with_output(key, zeros)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] != num_classes:
        given = f"a {type(logits).__name__}" if shape is None else f"{logits.dtype}{list(shape)}"
        raise ModelError(
            f"{type(model).__name__}: gives {given} for one sample, not logits [1, {num_classes}]"
        )
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
