"""Optimiser and learning rate from the config, with torch's semantics and the reference's clock."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dnrt_jax.config import Config, steps

Schedule = Callable[[Any], Array]  # step -> rate


def schedule(optim: Config, total_steps: int, epoch_steps: int) -> Schedule:
    """The learning rate at a step, f32[], as timm's and torch's schedulers drive the reference.

    The reference updates its scheduler after the optimiser, so step 0 and step 1 both use the
    scheduler's first value. Its cosine lasts `total - warm-up` steps but its clock does not
    subtract the warm-up: the curve enters below the peak and rests on the floor at the end.
    """
    warmup = steps(optim.warmup_epochs, optim.warmup_steps, epoch_steps)

    def warmed_up(after):
        def rate(step):
            clock = jnp.maximum(step - 1, 0) * 1.0
            ramp = optim.warmup_lr + clock * (optim.lr - optim.warmup_lr) / max(warmup, 1)
            return jnp.where(clock < warmup, ramp, after(step, clock))

        return rate

    def cosine(_, clock):
        phase = jnp.minimum(clock / max(total_steps - warmup, 1), 1)
        return optim.min_lr + 0.5 * (optim.lr - optim.min_lr) * (1 + jnp.cos(jnp.pi * phase))

    def drops(count_drops):
        def rate(step, _):
            epoch = jnp.maximum(step // epoch_steps - 1, 0)
            return optim.lr * optim.gamma ** (count_drops(epoch) * 1.0)

        return rate

    kinds = {
        "cosine": cosine,
        "step": drops(lambda epoch: epoch // optim.step_size),
        "multistep": drops(lambda epoch: sum((epoch >= m) * 1 for m in optim.milestones)),
    }
    return warmed_up(kinds[optim.schedule])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """torch's clip_grad_norm_, which adds 1e-6 to the norm it divides by; optax's does not."""

    def clip(grads):
        factor = jnp.minimum(max_norm / (optax.tree.norm(grads) + 1e-6), 1)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return optax.stateless(lambda grads, _: clip(grads))


def create(optim: Config, rate: Schedule | float) -> optax.GradientTransformation:
    """The optimiser `optim.name`. Weight decay touches every parameter, as in the reference.

    It is part of the gradient (L2) for sgd, adam and rmsprop, and decoupled for adamw.
    """
    decay = optax.add_decayed_weights(optim.weight_decay)
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    momentum = optax.trace(optim.momentum)
    direction = {
        "adamw": (adam, decay),
        "adam": (decay, adam),
        "sgd": (decay, momentum),
        "rmsprop": (decay, optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False), momentum),
    }[optim.name]
    clip = (clip_by_global_norm(optim.clip),) if optim.clip else ()
    return optax.chain(*clip, *direction, optax.scale_by_learning_rate(rate))
