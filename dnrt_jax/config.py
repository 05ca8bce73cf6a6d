"""The config of a run: its fields, its checks, its text.

A config file starts from `default()`; `validate()` answers a bad config in one line before any
device is touched. The fields are those of all tasks (`common_fields.py`), those of the task
(`dnrt_jax.tasks`), most of them in the section `data`, and those of the model, in `model`.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dnrt_jax.common_fields import FIELDS
from dnrt_jax.fields import Field, rule_of
from dnrt_jax.runtime.errors import ConfigError, ModelError, did_you_mean

Config = Any  # an ml_collections.ConfigDict, whose fields no type checker can know

NOT_SET = ("num_classes", "image_size", "dtype", "formulation", "remat")  # follow other fields
WORDS = {  # other names of fields, for "did you mean"
    "learning_rate": "optim.lr",
    "lambda": "arr.weight",
    "dropout": "model.drop_rate",
    "activation": "model.act",
    "num_epochs": "train.epochs",
    "warmup": "optim.warmup_epochs",
}


def default(task: str = "image_classification") -> Config:
    """A config of a task with every field at its default.

    Raises:
      ConfigError: for an unknown task.
    """
    return _nested({n: f.default for n, f in _of_task(task).items()} | {"task": task})


def fields_of(config: Config) -> dict[str, Field]:
    """All fields that are valid for the config's task and model, by dotted name.

    Raises:
      ConfigError: for an unknown task or model.
    """
    return _of_task(config.get("task", "")) | model_fields(config.model.get("name", ""))


def _of_task(name: str) -> dict[str, Field]:
    from dnrt_jax import tasks  # imported here because it imports JAX

    return FIELDS | tasks.find(name).FIELDS


def model_fields(name: str) -> dict[str, Field]:
    """The config fields of the model `name`, as "model.depth", with the model's defaults.

    Raises:
      ConfigError: for an unknown model.
    """
    from dnrt_jax import models

    try:
        annotations, example = models.fields(name), models.create(name, num_classes=1)
    except ModelError as error:
        raise ConfigError(f"config.model.name: {error}") from None
    found = {}
    for field, annotation in annotations.items():
        rule = rule_of(field, annotation)
        if rule and field not in (*NOT_SET, "act"):
            found[f"model.{field}"] = Field(getattr(example, field), rule, "of the model")
    return found


def model_kwargs(config: Config) -> dict[str, Any]:
    """The keyword arguments of `models.create` in the model section: all but name, act, dtype."""
    given = {k: _tuples(v) for k, v in config.model.items() if v is not None}
    return {k: v for k, v in given.items() if k not in ("name", "act", "dtype")}


def validate(config: Config) -> None:
    """Checks the names, types and values of all fields.

    Raises:
      ConfigError: naming the first invalid field.
    """
    from dnrt_jax import activations, tasks

    flat, fields = flatten(config), fields_of(config)
    for name, value in flat.items():
        if value is None and name.startswith("model."):
            continue  # unset: the model uses its default
        if name not in fields:
            raise ConfigError(f"config.{name}: no such field{nearest(name, fields)}")
        if not fields[name].rule.fits(value):
            raise ConfigError(f"config.{name}={value!r}: must be {fields[name].rule.expected}")
    needed = {name for name in _of_task(config.task) if name not in flat}
    if needed:
        raise ConfigError(f"config.{min(needed)}: missing; start from dnrt_jax.config.default()")
    if config.model.act not in activations.names():
        hint = did_you_mean(config.model.act, activations.names())
        raise ConfigError(f"config.model.act={config.model.act!r}: no such activation{hint}")
    train = config.train
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"config.train.accumulate={train.accumulate}: does not divide {train.batch_size=}"
        )
    optim = config.optim
    if optim.schedule == "cosine" and optim.lr < optim.min_lr:
        raise ConfigError(
            f"config.optim.lr={optim.lr:g}: below optim.min_lr={optim.min_lr:g}, so the rate would "
            "rise; lower min_lr, too"
        )
    if not (train.epochs or train.steps):
        raise ConfigError("config.train.epochs=0: give the length of the run, in epochs or steps")
    tasks.find(config.task).check(config)


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean optim.lr?", or "" if no known name is similar.

    Tries similar dotted names, then `WORDS`, then the last part of the name in other sections.
    """
    known, word = list(known), name.split(".")[-1]
    tails = {k.split(".")[-1]: k for k in reversed(known)}  # the first of several
    near = difflib.get_close_matches(name, known, 1, 0.75)
    near = near or [WORDS[w] for w in (word,) if w in WORDS]
    near = near or [tails[t] for t in difflib.get_close_matches(word, tails, 1)]
    return f"; did you mean {near[0]}?" if near else ""


def check_resume(old: Config, new: Config, allowed: Iterable[str] = ()) -> None:
    """Checks that a run with the config `old` may be resumed with the config `new`.

    Raises:
      ConfigError: listing the fields that differ and are neither free (`Field.free`) nor `allowed`,
        or for clipping switched on or off.
    """
    fields, before, after = fields_of(new), _effective(old), _effective(new)
    free = {name for name, field in fields.items() if field.free} | set(allowed)
    changed = [
        f"{name} was {before.get(name)!r}, is {after.get(name)!r}"
        for name in sorted(before.keys() | after)
        if before.get(name) != after.get(name) and name not in free
    ]
    if changed:
        raise ConfigError(
            f"this folder holds a run of another config: {'; '.join(changed)}; choose another "
            "--workdir, or go on with --allow_change=FIELD"
        )
    if (old.optim.clip > 0) != (new.optim.clip > 0):
        raise ConfigError(
            f"config.optim.clip was {old.optim.clip:g}, is {new.optim.clip:g}: the state of the "
            "optimizer has another form with 0; a large number clips nothing either"
        )


def _effective(config: Config) -> dict[str, Any]:
    """The values of all fields, including the defaults of unset model fields."""
    given = {name: _tuples(value) for name, value in flatten(config).items() if value is not None}
    return {name: field.default for name, field in fields_of(config).items()} | given


def to_json(config: Config) -> str:
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> Config:
    """The inverse of `to_json`; fields missing in the text get their defaults.

    Raises:
      ConfigError: for an unknown task.
    """
    values = flatten(json.loads(text))
    task = values.get("task", FIELDS["task"].default)
    defaults = {name: field.default for name, field in _of_task(task).items()}
    given = {name: _tuples(value) for name, value in values.items() if value is not None}
    return _nested(defaults | given)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens a nested config or dict to {"optim.lr": value}."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        is_section = isinstance(value, ConfigDict | dict)
        flat |= flatten(value, f"{name}.") if is_section else {name: value}
    return flat


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with some fields, by dotted name, set to values of any type."""
    return _nested(flatten(config) | dict(values))


def varied_fields(configs: Sequence[Config]) -> list[str]:
    """The fields in which configs differ, the seed left out."""
    first, *others = map(flatten, configs)
    differ = {name for other in others for name in first if first[name] != other[name]}
    return sorted(differ - {"seed"})


def _nested(flat: Mapping[str, Any]) -> Config:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, key = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = value
    return ConfigDict(tree)


def _tuples(value: Any) -> Any:
    """Converts lists, which JSON has in place of tuples, to tuples, recursively."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def duration(epochs: float, steps: int, epoch_steps: int) -> int:
    """A duration in steps: `steps` if not 0, else `epochs` converted."""
    return steps or round(epochs * epoch_steps)
