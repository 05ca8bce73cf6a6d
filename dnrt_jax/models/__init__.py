"""Models by name: images [B, H, W, C], or the nodes [B] of a graph, -> logits f32[B, num_classes].

Each architecture is one file, with a table `MODELS` of its sizes at the end. Models do not depend
on configs, labels or ARR: they `record` their aggregated responses in the collection "responses".
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from functools import cache, partial
from typing import Any, get_args, get_type_hints

import flax.linen as nn

from dnrt_jax import activations
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.runtime.errors import ModelError, did_you_mean

Constructor = Callable[..., nn.Module]  # a subclass of nn.Module, or a partial of one


@cache
def registry() -> dict[str, Constructor]:
    """All models by name, collected from the `MODELS` tables of the files in this folder.

    Models with a field `image_size` take images; the others take a `graph.Graph`.
    """
    files = [
        importlib.import_module(f"{__name__}.{i.name}") for i in pkgutil.iter_modules(__path__)
    ]
    return {name: made for file in files for name, made in getattr(file, "MODELS", {}).items()}


def create(name: str, *, num_classes: int, act: str = "raa", **kwargs: Any) -> nn.Module:
    """Creates the model `name` with the activation `act`; `kwargs` are fields of its class.

    `model.apply(variables, images[B, H, W, C], train=False)` gives logits f32[B, num_classes]; a
    graph model takes a `graph.Graph`.

    Args:
      name: one of `registry()`, or `package.module:Class` for a model outside this package: a
        Flax Linen module, or a `functools.partial` of one, with fields `num_classes` and `act`.

    Raises:
      ModelError: for an unknown name, activation or keyword, with the most similar known one, or
        an unknown formulation.
    """
    constructor, known = _find(name), fields(name)
    activations.check(act)
    for keyword in kwargs:
        if keyword not in known:
            hint = did_you_mean(keyword, known)
            raise ModelError(f"unknown keyword of model {name}: {keyword!r}{hint}")
    platforms = get_args(Formulation)
    if (
        known.get("formulation") is Formulation
        and (given := kwargs.get("formulation", platforms[0])) not in platforms
    ):
        raise ModelError(f"formulation={given!r}: choose one of {', '.join(platforms)}")
    return constructor(num_classes=num_classes, act=act, **kwargs)


def fields(name: str) -> dict[str, Any]:
    """The fields of the model `name`, in order, with their type annotations.

    Raises:
      ModelError: for an unknown name.
    """
    module = _module(_find(name))
    hints = get_type_hints(module)
    names = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]
    return {field: hints[field] for field in names}


def _find(name: str) -> Constructor:
    if ":" in name:
        return _import(name)
    if name not in registry():
        raise ModelError(f"unknown model {name!r}{did_you_mean(name, registry())}")
    return registry()[name]


def _import(name: str) -> Constructor:
    """Imports the model `package.module:Class`."""
    path, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*path.split("."), attribute]):
        raise ModelError(f"model {name!r}: write it as package.module:Class")
    try:
        file = importlib.import_module(path)
    except ModuleNotFoundError as error:
        # A failing import inside the user's module keeps its traceback.
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"model {name!r}: no module {error.name!r}; is it on PYTHONPATH?"
        ) from None
    constructor = getattr(file, attribute, None)
    if constructor is None:
        known = [other for other, value in vars(file).items() if _is_linen(value)]
        hint = did_you_mean(attribute, known) if known else ""
        raise ModelError(f"model {name!r}: unknown {attribute!r}{hint}")
    module = _module(constructor)
    if not _is_linen(constructor):
        raise ModelError(f"model {name!r}: {attribute} is no flax.linen.Module")
    if not {"num_classes", "act"} <= {field.name for field in dataclasses.fields(module)}:
        raise ModelError(f"model {name!r}: {attribute} needs the fields num_classes and act")
    return constructor


def _is_linen(constructor: Any) -> bool:
    module = _module(constructor)
    return isinstance(module, type) and issubclass(module, nn.Module)


def _module(constructor: Constructor) -> Any:
    return constructor.func if isinstance(constructor, partial) else constructor
