"""RAA and `record` for Flax NNX; `arr` works with NNX as it is. Example:

class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(16, 64, rngs=rngs)
        self.act = RAA(64)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = self.act(self.hidden(x))
        record(self, x)
        return self.head(x)

net = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(net, optax.adamw(1e-2), wrt=nnx.Param)
net(x)
centroids = arr.init(responses(net), num_classes=10)

@nnx.jit
def train_step(net, optimizer, centroids, x, labels):
    def loss_fn(net):
        logits = net(x)
        recorded = responses(net)
        targets, after = arr.update(centroids, recorded, labels, momentum=0.1)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss + 20.0 * arr.loss(recorded, targets), after

    (loss, after), grads = nnx.value_and_grad(loss_fn, has_aux=True)(net)
    optimizer.update(net, grads)
    return loss, after

for _ in range(50):
    loss, centroids = train_step(net, optimizer, centroids, x, labels)
"""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from dnrt_jax.raa import variant


class RAA(nnx.Module):
    """RAA over the last axis, of width `features`; parameters `w` and `b`, zero at the start.

    Args:
      base, shift, param_dtype: as for `dnrt_jax.RAA`. With shift="scalar" `w` is None.
      rngs: unused, for the signature of NNX layers.

    Raises:
      ValueError: for an unknown `base` or `shift`, or an input of another width than `features`.
    """

    def __init__(
        self,
        features: int,
        *,
        base: Literal["gelu", "relu"] = "gelu",
        shift: Literal["vector", "scalar", "element"] = "vector",
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self.activate, w_shape, b_shape = variant(base, shift, features)
        self.w = None if w_shape is None else nnx.Param(jnp.zeros(w_shape, param_dtype))
        self.b = nnx.Param(jnp.zeros(b_shape, param_dtype))

    def __call__(self, x: Array) -> Array:
        return self.activate(x, None if self.w is None else self.w[...], self.b[...])


class Response(nnx.Variable):
    """The variable type of an aggregated response [B, D]."""


def record(module: nnx.Module, response: Array, name: str = "response") -> None:
    """Stores an aggregated response [B, D], for ARR, as the attribute `name` of `module`.

    Several responses of one module need different names: with the same name, the last one replaces
    the others.

    Raises:
      TypeError: for a module of Flax Linen.
      ValueError: if `module` has another attribute of that name.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"record: {type(module).__name__} is no nnx.Module; take dnrt_jax.record")
    if not isinstance(getattr(module, name, None), Response | None):
        raise ValueError(f"record: {type(module).__name__}.{name} exists; give another name")
    # Not `sow`, which warns outside `nnx.capture`, a function that older versions of Flax lack.
    setattr(module, name, Response(response))


def responses(model: nnx.Module) -> dict[Any, Any]:
    """Pops the responses of the last forward pass from `model`, as a tree of [B, D] arrays.

    The keys of an `nnx.List` are integers, which a file may give back as strings unless its reader
    is given a target, as `arr.init(responses(model), num_classes)` for centroids.
    """
    return nnx.to_pure_dict(nnx.pop(model, Response))
