"""Image classifiers by name: images [B, H, W, C] -> logits f32[B, num_classes].

One architecture a file; the `MODELS` table at its foot names its sizes. Models know no config, no
label and no ARR: they `record` their aggregated responses into the collection "responses".
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn

from dnrt_jax import activations


@cache
def registry() -> dict[str, Callable[..., nn.Module]]:
    """Model constructors by name, from the `MODELS` tables of the files in this folder."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found.update(getattr(module, "MODELS", {}))
    return found


def create(name: str, *, num_classes: int, act: str = "raa", **kwargs: Any) -> nn.Module:
    """The model `name` with the activation `act`; `kwargs` are fields of its class.

    `model.apply(variables, images[B, H, W, C], train=False)` gives logits f32[B, num_classes].

    Raises:
      ValueError: for an unknown name, activation or keyword, with the nearest known one.
    """
    _check("model", name, registry())
    _check("activation", act, activations.names())
    for keyword in kwargs:
        _check(f"keyword of model {name}:", keyword, fields(name))
    return registry()[name](num_classes=num_classes, act=act, **kwargs)


def fields(name: str) -> list[str]:
    """The keywords that the model `name` takes."""
    constructor = registry()[name]
    members = getattr(constructor, "func", constructor).__dataclass_fields__
    return [field for field in members if field not in ("parent", "name")]


def _check(what: str, value: str, known) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {what} {value!r}; {hint}known: {', '.join(sorted(known))}")
