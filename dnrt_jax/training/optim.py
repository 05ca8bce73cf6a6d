"""Optimizer and learning rate schedule, equal to PyTorch's and to the authors' code."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dnrt_jax.config import Config, duration

Schedule = Callable[[Any], Array]  # step -> rate


def schedule(optim: Config, total_steps: int, epoch_steps: int) -> Schedule:
    """The learning rate schedule, step -> f32[], as in the authors' code (timm's and torch's).

    That code updates the scheduler after the optimizer, so steps 0 and 1 both use the first value.
    Its cosine has a period of `total - warm-up` steps but does not subtract the warm-up from the
    step: after the warm-up it starts below the peak, and at the end it stays at the minimum.
    """
    warmup = duration(optim.warmup_epochs, optim.warmup_steps, epoch_steps)

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
    """Gradient clipping as torch's clip_grad_norm_: unlike optax, it divides by norm + 1e-6."""

    def clip(grads):
        factor = jnp.minimum(max_norm / (optax.tree.norm(grads) + 1e-6), 1)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return optax.stateless(lambda grads, _: clip(grads))


def create(optim: Config, rate: Schedule | float) -> optax.GradientTransformation:
    """The optimizer `optim.name`. Weight decay applies to all parameters, as in the authors' code;
    it is added to the gradient (L2) for sgd, adam and rmsprop, and decoupled for adamw.
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
