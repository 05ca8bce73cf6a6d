"""Optimizer and learning rate schedule, equal to PyTorch's and to the authors' code."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dnrt_jax.config import Config, duration
from dnrt_jax.runtime.errors import ConfigError

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
    """The optimizer `optim.name`: adamw, adam, sgd and rmsprop as in torch, the others as in optax.

    Weight decay applies to all parameters, as in the authors' code, except those that match
    `optim.no_decay`. It is added to the gradient (L2) for adam, sgd and rmsprop; for the others it
    is decoupled: times the rate.
    """
    decay = optax.add_decayed_weights(optim.weight_decay, _decayed(optim.no_decay))
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    rms = optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False)
    momentum = optax.trace(optim.momentum)
    direction = {
        "adamw": (adam, decay),
        "adam": (decay, adam),
        "sgd": (decay, momentum),
        "rmsprop": (decay, rms, momentum),
        "lion": (optax.scale_by_lion(b1=0.9, b2=0.99), decay),
        "lamb": (optax.scale_by_adam(eps=1e-6), decay, optax.scale_by_trust_ratio()),
        "adafactor": (
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
            decay,
        ),
        # The direction alone, with the root mean square of AdamW's, so that its rates fit.
        "muon": (optax.contrib.muon(learning_rate=-1.0, consistent_rms=0.2), decay),
    }[optim.name]
    clip = (clip_by_global_norm(optim.clip),) if optim.clip else ()
    by_layer = (scale_by_layer(optim.layer_decay),) if optim.layer_decay != 1 else ()
    return optax.chain(*clip, *direction, optax.scale_by_learning_rate(rate), *by_layer)


def is_elementwise(optim: Config) -> bool:
    """Whether `create` treats every element of the parameters alike, wherever it is in the tree."""
    by_parameter = optim.name in ("lamb", "muon", "adafactor") or optim.no_decay
    return not by_parameter and optim.layer_decay == 1


def _decayed(no_decay: str) -> Callable[[Any], Any] | None:
    """params -> whether weight decay applies to each, for those that do not match a regular
    expression; None if it applies to all."""
    if not no_decay:
        return None
    return lambda params: _by_name(lambda name, _: not re.search(no_decay, name), params)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Layer-wise decay of the learning rate (Clark et al., 2020; Bao et al., 2022): of L blocks,
    block i (from 1) has the factor decay^(L + 1 - i), embeddings decay^(L + 1), the head 1.

    Raises:
      ConfigError: on `init`, if the parameters have no blocks_0, blocks_1, ...
    """

    def layer(name: str, blocks: int) -> int:
        if found := re.match(r"blocks_(\d+)/", name):
            return int(found[1]) + 1
        is_embedding = re.match(r"[^/]*(embed|token|pos|proj|norm_pre)", name)
        return 0 if is_embedding and not name.startswith("blocks") else blocks + 1

    def count_blocks(params: Any) -> int:
        numbers = [int(i) for i in re.findall(r"^blocks_(\d+)/", "\n".join(_names(params)), re.M)]
        if not numbers:
            raise ConfigError(
                f"config.optim.layer_decay={decay}: the model has no blocks_0, blocks_1, ... to "
                "tell its layers by; leave it at 1"
            )
        return max(numbers) + 1

    def init(params: Any) -> optax.EmptyState:
        count_blocks(params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        blocks = count_blocks(updates)
        factor = lambda name, x: x * decay ** (blocks + 1 - layer(name, blocks))
        return _by_name(factor, updates), state

    return optax.GradientTransformation(init, update)


def _by_name(function: Callable[[str, Any], Any], params: Any) -> Any:
    """Maps (name, value), as ("blocks_0/norm1/scale", ...), over a tree of parameters."""
    name = lambda path: "/".join(str(entry.key) for entry in path)
    return jax.tree.map_with_path(lambda path, x: function(name(path), x), params)


def _names(params: Any) -> list[str]:
    return jax.tree.leaves(_by_name(lambda name, _: name, params))
