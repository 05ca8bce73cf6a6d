"""`record`: how a Flax module exposes the aggregated responses that ARR regularizes."""

import flax.linen as nn
from jax import Array


def record(module: nn.Module, response: Array, name: str = "response") -> None:
    """Stores an aggregated response [B, D] in the collection "responses", for ARR.

    Call it inside a module's `@nn.compact` method. `model.apply(..., mutable=["responses"])`
    returns the responses as a tree of [B, D] arrays, by module and `name`; without `mutable` the
    call does nothing. Several responses of one module need different names: with the same name,
    the last one replaces the others, as does the last call of a module that is called repeatedly.

    Raises:
      TypeError: for a module that is not one of Flax Linen.
    """
    # A module of NNX has a `sow` too, which stores nothing that anybody would find.
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise TypeError(f"record: {kind} is no flax.linen.Module; take dnrt_jax.nnx.record")
    module.sow("responses", name, response, reduce_fn=lambda _, x: x, init_fn=lambda: response)
