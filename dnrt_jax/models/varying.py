"""Functions with a derivative rule of their own, under `jax.shard_map`."""

from typing import Any

import jax


def equally_varying(*arrays: Any) -> tuple[Any, ...]:
    """The arrays (or None), each varying over every axis of `jax.shard_map` that any varies over.

    `jax.custom_vjp` wants a gradient to vary over the same axes as its argument, where that of a
    weight shared by all devices varies with their data. JAX differentiates this cast, by the sum
    over the devices. Nothing is cast outside `jax.shard_map` or with `check_vma=False`.
    """
    axes = lambda x: jax.typeof(x).manual_axis_type.varying
    every = frozenset().union(*map(axes, jax.tree.leaves(arrays)))
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(every - axes(x)), to="varying"), arrays)
