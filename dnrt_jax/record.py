"""How a Flax module hands out the responses that ARR reads."""

import flax.linen as nn
from jax import Array


def record(module: nn.Module, response: Array, name: str = "response") -> None:
    """Hands out an aggregated response [B, D] where ARR applies; free unless somebody collects.

    Call it in a module's `@nn.compact` method or below. `model.apply(..., mutable=["responses"])`
    returns the responses as a tree of [B, D] arrays, by module and `name`. Two responses of one
    module need two names: the second of one name takes the first one's place.
    """
    module.sow("responses", name, response, reduce_fn=lambda _, x: x, init_fn=lambda: response)
