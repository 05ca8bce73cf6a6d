"""Classifiers by name: images [B, H, W, C], or a graph's nodes [B], -> logits f32[B, num_classes].

One architecture a file; the `MODELS` table at its foot names its sizes. Models know no config, no
label and no ARR: they `record` their aggregated responses into the collection "responses".
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn

from dnrt_jax import activations

Registry = dict[str, Callable[..., nn.Module]]


def registry() -> Registry:
    """Constructors of image classifiers by name, from the `MODELS` tables of these files."""
    return _tables("MODELS")


def graph_registry() -> Registry:
    """Constructors of models of graphs, which take a `graph.Graph`, from `GRAPH_MODELS`."""
    return _tables("GRAPH_MODELS")


@cache
def _tables(name: str) -> Registry:
    files = [
        importlib.import_module(f"{__name__}.{i.name}") for i in pkgutil.iter_modules(__path__)
    ]
    return {key: made for file in files for key, made in getattr(file, name, {}).items()}


def _known() -> Registry:
    return registry() | graph_registry()


def create(name: str, *, num_classes: int, act: str = "raa", **kwargs: Any) -> nn.Module:
    """The model `name` with the activation `act`; `kwargs` are fields of its class.

    `model.apply(variables, images[B, H, W, C], train=False)` gives logits f32[B, num_classes]; a
    model of graphs takes a `graph.Graph`.

    Raises:
      ValueError: for an unknown name, activation or keyword, with the nearest known one.
    """
    _check("model", name, _known())
    _check("activation", act, activations.names())
    for keyword in kwargs:
        _check(f"keyword of model {name}:", keyword, fields(name))
    return _known()[name](num_classes=num_classes, act=act, **kwargs)


def fields(name: str) -> list[str]:
    """The keywords that the model `name` takes."""
    constructor = _known()[name]
    module: Any = getattr(constructor, "func", constructor)
    return [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]


def _check(what: str, value: str, known) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {what} {value!r}; {hint}known: {', '.join(sorted(known))}")
