"""The config of a run: every field with its default, its rule and its help.

A config file starts from `default()`; `validate()` answers a bad config in one line before any
device is touched. The `data` section has the fields of the task (`dnrt_jax.tasks`), the `model`
section those of the model. A duration has two fields, in epochs and in steps; steps, where set,
take precedence.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dnrt_jax.fields import (
    ABOVE_0,
    FLAG,
    FRACTION,
    FROM_0,
    NAME,
    PATTERN,
    POSITIVE_FRACTION,
    RATE,
    TEXT,
    Field,
    choice,
    integer,
    numbers_from,
    rule_of,
)
from dnrt_jax.runtime.errors import ConfigError, ModelError, did_you_mean

Config = Any  # an ml_collections.ConfigDict, whose fields no type checker can know

FIELDS = {
    "seed": Field(
        42, integer(0, 2**32 - 1), "random seed of parameters, data order, augmentation and dropout"
    ),
    "task": Field(
        "image_classification", NAME, "a task of dnrt_jax/tasks, or MODULE:CLASS of your own"
    ),
    "init_from": Field(
        "",
        TEXT,
        "initial weights: a .safetensors or .pth file, the folder of a run, or "
        "hf:OWNER/NAME[@REVISION] on the Hugging Face hub",
    ),
    "model.name": Field("vit_tiny_patch4_32", NAME, "a model of docs/models.md, or MODULE:CLASS"),
    "model.act": Field("raa", NAME, "activation, one of dnrt_jax.activations.names()"),
    "model.dtype": Field(
        "float32", choice("float32", "bfloat16"), "dtype of the computation; parameters are float32"
    ),
    "data.name": Field("digits", NAME, "data set; see the README, Data"),
    "data.dir": Field(
        "", TEXT, "folder of the data sets; if empty, $DATA_DIR, else ./data", free=True
    ),
    "loss.name": Field(
        "cross_entropy",
        choice("cross_entropy", "balanced_softmax"),
        "balanced_softmax adds the log class counts to the logits in training",
    ),
    "loss.label_smoothing": Field(
        0.0, RATE, "label smoothing of the cross-entropy; ARR uses the hard labels"
    ),
    "arr.weight": Field(
        20.0, FROM_0, "weight of the ARR loss, the paper's lambda; 0 turns ARR off", number=True
    ),
    "arr.momentum": Field(
        0.1, FRACTION, "weight of a new sample in its class mean, the paper's m", number=True
    ),
    "arr.rule": Field(
        "sequential",
        choice("sequential", "centroid"),
        "update of the class means; see dnrt_jax.arr.update",
    ),
    "arr.target": Field(
        "updated",
        choice("updated", "previous", "zero", "global", "permuted"),
        "what responses are pulled to (the last three are controls): dnrt_jax.arr.update",
    ),
    "arr.normalize": Field(
        "none",
        choice("none", "unit"),
        "unit: responses of zero mean and unit variance (a control): dnrt_jax.arr.normalize",
    ),
    "arr.average": Field(
        "layer", choice("layer", "width"), "average over layers; see dnrt_jax.arr.loss"
    ),
    "optim.name": Field(
        "adamw",
        choice("adamw", "adam", "sgd", "rmsprop", "lion", "lamb", "muon", "adafactor"),
        "optimizer; the first four with the semantics of PyTorch, the others with optax's",
    ),
    "optim.lr": Field(2.5e-4, ABOVE_0, "peak learning rate", number=True),
    "optim.schedule": Field(
        "cosine", choice("cosine", "step", "multistep"), "learning rate schedule"
    ),
    "optim.warmup_epochs": Field(0.0, FROM_0, "linear warm-up, in epochs"),
    "optim.warmup_steps": Field(0, integer(0), "the same, in steps"),
    "optim.warmup_lr": Field(1e-6, FROM_0, "learning rate at the first warm-up step", number=True),
    "optim.min_lr": Field(1e-5, FROM_0, "cosine: final learning rate", number=True),
    "optim.step_size": Field(30, integer(1), "step: epochs between decays"),
    "optim.milestones": Field((), numbers_from(0, "epochs"), "multistep: epochs of the decays"),
    "optim.gamma": Field(0.1, ABOVE_0, "step, multistep: factor of a decay", number=True),
    "optim.momentum": Field(0.9, RATE, "momentum of sgd and rmsprop", number=True),
    "optim.weight_decay": Field(
        0.05, FROM_0, "weight decay, applied to every parameter", number=True
    ),
    "optim.no_decay": Field(
        "", PATTERN, "regular expression of parameters without weight decay, such as scale|bias"
    ),
    "optim.layer_decay": Field(
        1.0, POSITIVE_FRACTION, "learning rate of a block relative to that of the next one"
    ),
    "optim.clip": Field(1.0, FROM_0, "maximum norm of the gradient; 0 for no clipping"),
    "train.epochs": Field(1, integer(0), "length of the run, in epochs"),
    "train.steps": Field(0, integer(0), "the same, in steps"),
    "train.batch_size": Field(256, integer(1), "samples per step, over all devices"),
    "train.accumulate": Field(1, integer(1), "micro-batches per step, to save memory"),
    "train.remat": Field(
        False,
        FLAG,
        "repeat each block's forward pass in the backward pass, to save memory",
        free=True,
    ),
    "train.ema": Field(
        0.0,
        RATE,
        "decay per step of the exponential moving average of the weights, such as 0.9998, which "
        "evaluation, prediction and export then use; 0 for none",
    ),
    "train.dispatch": Field(
        "auto",
        choice("auto", "scan", "single"),
        "scan: many steps per dispatch, with the data set in device memory; single: one step per "
        "dispatch; auto: scan on an accelerator if the data set fits a quarter of its "
        "memory, else single",
        free=True,
    ),
    "train.dispatch_steps": Field(
        16, integer(1), "maximum steps per dispatch with scan", free=True
    ),
    "train.log_steps": Field(50, integer(1), "steps between two records of the log", free=True),
    "train.on_nonfinite": Field(
        "stop",
        choice("stop", "skip"),
        "what to do when the loss or gradient is NaN or infinite",
        free=True,
    ),
    "train.max_skipped": Field(
        10, integer(1), "number of skipped steps above which the run stops", free=True
    ),
    "train.eval_epochs": Field(
        1.0,
        FROM_0,
        "epochs between evaluations, 0 for every step; the last step is always evaluated",
        free=True,
    ),
    "train.eval_steps": Field(0, integer(0), "the same, in steps", free=True),
    "train.checkpoint_epochs": Field(
        1.0, FROM_0, "epochs between checkpoints, 0 for every step", free=True
    ),
    "train.checkpoint_steps": Field(0, integer(0), "the same, in steps", free=True),
    "train.patience": Field(
        0,
        integer(0),
        "evaluations without a better eval.metric after which a run ends; 0 for no early end",
        free=True,
    ),
    "train.tracker": Field(
        "none",
        choice("none", "wandb", "mlflow"),
        "where records are written to as well: Weights & Biases or MLflow, if installed",
        free=True,
    ),
    "train.keep": Field(
        2, integer(1), "newest checkpoints to keep, in addition to the best", free=True
    ),
    "parallel.fsdp": Field(
        False, FLAG, "shard parameters, optimizer state and class means over the devices", free=True
    ),
    "parallel.members": Field(
        "auto",
        choice("auto", "together", "alone"),
        "how the members of a set train: together in one program, or alone, one after the other; "
        "auto: together on an accelerator",
        free=True,
    ),
    "parallel.member_parts": Field(
        0,
        integer(0),
        "device groups when members train together, each training its share; 0: the most that "
        "divide both members and devices",
        free=True,
    ),
    "parallel.heartbeat_seconds": Field(
        60, integer(1), "seconds without a heartbeat before a process counts as lost", free=True
    ),
    "eval.batch_size": Field(500, integer(1), "samples per evaluation step", free=True),
    "eval.metric": Field(
        "acc",
        choice("acc", "auc"),
        "metric that selects the best checkpoint; auc if the task reports it",
    ),
}
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
      ConfigError: listing the fields that differ and are neither free (`Field.free`) nor `allowed`.
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
