"""Activations by name. Those with parameters are Flax layers over the last axis (channels)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dnrt_jax.raa import RAA, promote, raa
from dnrt_jax.runtime.errors import ModelError, did_you_mean


class GDN(nn.Module):
    """Generalized divisive normalization: x_i / sqrt(beta_i + sum_j gamma_ij x_j^2).

    Ballé et al., ICLR 2016. Parameters: beta f32[D] >= 1e-6, initially 1, and gamma f32[D, D] >= 0
    (i by j), initially 0.1 times the identity.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d = x.shape[-1]
        beta = self.param("beta", nn.initializers.ones, (d,))
        gamma = self.param("gamma", lambda _, shape: 0.1 * jnp.eye(*shape), (d, d))
        y = promote(x).reshape(-1, d)
        beta, gamma = _at_least(beta, 1e-6), _at_least(gamma, 0.0)
        norm = jnp.square(y) @ gamma.T + beta  # pyright: ignore
        return (y * jax.lax.rsqrt(norm)).astype(x.dtype).reshape(x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _at_least(x: Any, bound: float) -> Any:
    return jnp.maximum(x, bound)


# Below the bound, only gradients that increase the value pass, so that it can return.
_at_least.defvjp(
    lambda x, bound: (jnp.maximum(x, bound), x),
    lambda bound, x, g: (jnp.where((x >= bound) | (g < 0), g, 0),),
)

# Constructors of layers, for activations with parameters; FUNCTIONS has those without.
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "gdn": GDN,
    "raa": RAA,
    "raa_scalar": partial(RAA, shift="scalar"),
    "raa_element": partial(RAA, shift="element"),
    "raa_relu": partial(RAA, base="relu"),
    "raa_relu_scalar": partial(RAA, base="relu", shift="scalar"),
    "raa_relu_element": partial(RAA, base="relu", shift="element"),
}
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "gelu": partial(raa, w=None, b=0.0),  # the exact GELU, computed by the same code as RAA
    "silu": nn.silu,
    "elu": nn.elu,
    "selu": nn.selu,
    "softplus": nn.softplus,
}


def names() -> list[str]:
    return [*FUNCTIONS, *LAYERS]


def check(name: str) -> None:
    """Raises ModelError, with the most similar name, unless `name` is an activation."""
    if not isinstance(name, str):
        raise ModelError(f"act={name!r}: give an activation by name, as act='gelu'")
    if name not in names():
        raise ModelError(f"unknown activation {name!r}{did_you_mean(name, names())}")


def create(name: str, layer_name: str = "act") -> Callable[[Array], Array]:
    """Returns the activation `name`, a function or layer on [..., D].

    Call it inside a module's `@nn.compact` method: an activation with parameters becomes a
    submodule with the name `layer_name`.

    Raises:
      ModelError: for an unknown name.
    """
    check(name)
    return FUNCTIONS[name] if name in FUNCTIONS else LAYERS[name](name=layer_name)
