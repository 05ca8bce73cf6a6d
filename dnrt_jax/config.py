"""The schema of a run: every field with its default, what it may be, and what it means.

`default()` is where a config file starts; `validate()` answers a bad config in one line before any
device is touched. A duration has two fields, in epochs and in steps; steps, where set, win.
"""

import difflib
import json
import numbers
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

Config = Any  # an ml_collections.ConfigDict, whose fields no type checker can know


class Rule(NamedTuple):
    """What a value must be: its type, a test, and the test in words."""

    type: type
    test: Callable[[Any], bool]
    expected: str


def _number(low: float, high: float = float("inf"), open_low: bool = False) -> Rule:
    words = f"a number {'above' if open_low else 'from'} {low:g}"
    words += (
        "" if high == float("inf") else f" to {high:g}" if not open_low else f", up to {high:g}"
    )
    return Rule(float, lambda x: (low < x if open_low else low <= x) and x <= high, words)


def _integer(low: int) -> Rule:
    return Rule(int, lambda x: x >= low, f"a whole number from {low}")


def _choice(*options: Any) -> Rule:
    words = f"one of {', '.join(map(repr, options))}"
    return Rule(type(options[0]), lambda x: x in options, words)


def _numbers(low: float, words: str) -> Rule:
    good = lambda xs: all(isinstance(x, int | float) and x >= low for x in xs)
    return Rule(tuple, good, words)


TEXT = Rule(str, lambda x: True, "text")
NAME = Rule(str, bool, "a name")
FLAG = Rule(bool, lambda x: True, "True or False")
ABOVE_0 = _number(0, open_low=True)
FROM_0 = _number(0)
FRACTION = _number(0, 1)
RATE = Rule(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")
RANGE = Rule(tuple, lambda x: len(x) == 2 and 0 < x[0] <= x[1], "two numbers, (low, high) above 0")

# A model field that is None keeps the model's own default.
FIELDS: dict[str, tuple[Any, Rule, str]] = {
    "seed": (42, _integer(0), "of parameters, data order, augmentation and dropout"),
    "init_from": ("", TEXT, "weights to start from: .safetensors, .pth, a run; empty for none"),
    "model.name": ("vit_tiny_patch4_32", NAME, "see docs/models.md"),
    "model.act": ("raa", NAME, "activation; see dnrt_jax.activations.names()"),
    "model.dtype": ("float32", _choice("float32", "bfloat16"), "of the computation"),
    "model.patch_size": (None, _integer(1), "pixels"),
    "model.embed_dim": (None, _integer(1), "width"),
    "model.depth": (None, _integer(1), "blocks"),
    "model.num_heads": (None, _integer(1), "attention heads"),
    "model.mlp_ratio": (None, ABOVE_0, "hidden width of the MLP, in widths"),
    "model.class_token": (None, FLAG, "prepend a class token"),
    "model.global_pool": (None, _choice("token", "avg"), "what the head reads"),
    "model.init_values": (None, ABOVE_0, "layer scale at the start; None for none"),
    "model.drop_rate": (None, RATE, "dropout"),
    "model.attn_drop_rate": (None, RATE, "dropout of attention weights"),
    "model.drop_path_rate": (None, RATE, "stochastic depth of the last block"),
    "data.name": ("digits", NAME, "digits, cifar10, cifar100, imagenet1k, tfds:NAME or a folder's"),
    "data.dir": ("", TEXT, "where data sets lie; empty: $DATA_DIR, else ./data"),
    "data.image_size": (32, _integer(1), "pixels that the model sees"),
    "data.eval_resize": (32, _integer(1), "pixels before the centre crop at evaluation"),
    "data.mean": ((0.5,), _numbers(0, "numbers in 0..1, one a channel"), "of the pixels"),
    "data.std": ((0.5,), _numbers(1e-6, "numbers above 0, one a channel"), "of the pixels"),
    "data.crop": ("none", _choice("none", "pad", "random_resized"), "at training"),
    "data.crop_area": ((0.08, 1.0), RANGE, "random resized crop: share of the image"),
    "data.crop_aspect": ((3 / 4, 4 / 3), RANGE, "random resized crop: width by height"),
    "data.interpolation": (
        "random",
        _choice("random", "bilinear", "bicubic"),
        "of that crop, and of RandAugment",
    ),
    "data.pad": (4, _integer(1), "pixels, with crop='pad'"),
    "data.flip": (0.0, FRACTION, "probability of a horizontal flip"),
    "data.rand_augment": ("", TEXT, "timm's notation, as rand-m9-mstd0.5-inc1; empty for none"),
    "data.erase": (0.0, FRACTION, "probability of random erasing, with noise"),
    "data.mixup": (0.0, FROM_0, "alpha of mixup; 0 for none"),
    "data.cutmix": (0.0, FROM_0, "alpha of cutmix; with mixup too, one of them by chance"),
    "data.imbalance": (0, _integer(0), "long tail: largest class by smallest; 0 for none"),
    "data.on_error": (
        "stop",
        _choice("stop", "skip"),
        "on a broken image: stop, or skip up to 1% of the split, at least one",
    ),
    "data.features": (
        "raw",
        _choice("raw", "rows", "zscore"),
        "of a graph's nodes: as they are, rows that add up to 1, or columns standardised",
    ),
    "data.self_loops": (False, FLAG, "a graph: every node is its own neighbour too"),
    "data.fanout": (
        (),
        Rule(tuple, lambda x: all(isinstance(n, int) and n > 0 for n in x), "numbers from 1"),
        "a graph: neighbours drawn a layer, as (10, 10); empty for all of the graph at once",
    ),
    "data.loader": (
        "auto",
        _choice("auto", "memory", "stream"),
        "auto: stream what is above 4 GiB",
    ),
    "data.workers": (0, _integer(0), "processes that decode a stream; 0: a thread"),
    "loss.name": (
        "cross_entropy",
        _choice("cross_entropy", "balanced_softmax"),
        "balanced_softmax: with the log counts of the classes added at training",
    ),
    "loss.label_smoothing": (0.0, RATE, "of the cross-entropy; ARR keeps the hard labels"),
    "arr.weight": (20.0, FROM_0, "lambda of eq. 5; 0 turns ARR off"),
    "arr.momentum": (0.1, FRACTION, "m of eq. 3, the weight of a new sample"),
    "arr.rule": ("sequential", _choice("sequential", "centroid"), "see dnrt_jax.arr.update"),
    "arr.target": ("updated", _choice("updated", "previous"), "see dnrt_jax.arr.update"),
    "arr.average": ("layer", _choice("layer", "width"), "see dnrt_jax.arr.loss"),
    "optim.name": ("adamw", _choice("adamw", "adam", "sgd", "rmsprop"), "with torch's semantics"),
    "optim.lr": (2.5e-4, ABOVE_0, "peak learning rate"),
    "optim.schedule": ("cosine", _choice("cosine", "step", "multistep"), "of the rate"),
    "optim.warmup_epochs": (0.0, FROM_0, "linear warm-up"),
    "optim.warmup_steps": (0, _integer(0), "the same, in steps"),
    "optim.warmup_lr": (1e-6, FROM_0, "rate at the first step of a warm-up"),
    "optim.min_lr": (1e-5, FROM_0, "cosine: floor"),
    "optim.step_size": (30, _integer(1), "step: epochs between drops"),
    "optim.milestones": ((), _numbers(0, "epochs"), "multistep: epochs of the drops"),
    "optim.gamma": (0.1, ABOVE_0, "step, multistep: factor of a drop"),
    "optim.momentum": (0.9, RATE, "sgd, rmsprop"),
    "optim.weight_decay": (0.05, FROM_0, "on every parameter"),
    "optim.clip": (1.0, FROM_0, "largest norm of the gradient; 0 for no clipping"),
    "train.epochs": (1, _integer(0), "length of the run"),
    "train.steps": (0, _integer(0), "the same, in steps"),
    "train.batch_size": (256, _integer(1), "images, or drawn nodes, a step, over all devices"),
    "train.accumulate": (1, _integer(1), "parts of a batch, one after the other, for memory"),
    "train.dispatch_steps": (16, _integer(1), "steps a dispatch to the device"),
    "train.log_steps": (50, _integer(1), "between two records in the log"),
    "train.on_nonfinite": ("stop", _choice("stop", "skip"), "at a loss or gradient of NaN or Inf"),
    "train.max_skipped": (10, _integer(1), "steps of a run; one more stops it"),
    "train.eval_epochs": (1.0, FROM_0, "between two evaluations; the last step has one too"),
    "train.eval_steps": (0, _integer(0), "the same, in steps"),
    "train.checkpoint_epochs": (1.0, FROM_0, "between two checkpoints"),
    "train.checkpoint_steps": (0, _integer(0), "the same, in steps"),
    "train.keep": (2, _integer(1), "newest checkpoints kept, beside the best"),
    "parallel.fsdp": (False, FLAG, "split parameters, optimiser state and centroids over devices"),
    "parallel.heartbeat_seconds": (60, _integer(1), "silence after which a process counts as lost"),
    "eval.batch_size": (500, _integer(1), "images a step"),
    "eval.metric": ("acc", _choice("acc", "auc"), "whose best checkpoint is kept; auc: of graphs"),
}


class ConfigError(ValueError):
    """A config that cannot run. The message is one line: the field, its value, the remedy."""


def default() -> Config:
    """A config with every field at its default."""
    tree: dict[str, Any] = {}
    for name, (value, rule, _) in FIELDS.items():
        value = placeholder(rule.type) if value is None else value
        section, _, key = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = value
    return ConfigDict(tree)


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": value}: a nested config by dotted names."""
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def nearest(name: str, known) -> str:
    """A hint "; did you mean ...?" for a misspelt name, or nothing."""
    tails = {k.split(".")[-1]: k for k in known}
    near = difflib.get_close_matches(name, list(known), 1, 0.75)
    near = near or [tails[t] for t in difflib.get_close_matches(name.split(".")[-1], tails, 1)]
    return f"; did you mean {near[0]}?" if near else ""


def validate(config: Config) -> None:
    """Checks names, types and values.

    Raises:
      ConfigError: naming the first bad field.
    """
    flat = flatten(config)
    known = dict.fromkeys([*FIELDS, *model_fields(config)])
    for name, value in flat.items():
        if name not in known:
            raise ConfigError(f"config.{name}: no such field{nearest(name, known)}")
        if name in FIELDS:
            default_value, rule, _ = FIELDS[name]
            if value is None and default_value is None:
                continue
            if not _fits(value, rule):
                raise ConfigError(f"config.{name}={value!r}: must be {rule.expected}")
    if missing := FIELDS.keys() - flat.keys():
        raise ConfigError(f"config.{min(missing)}: missing; start from dnrt_jax.config.default()")
    _validate_together(config)


def _fits(value: Any, rule: Rule) -> bool:
    accepts = {float: numbers.Real, int: numbers.Integral, tuple: (tuple, list)}
    if isinstance(value, bool) != (rule.type is bool):
        return False
    if not isinstance(value, accepts.get(rule.type, rule.type)):
        return False
    return rule.test(value)  # NaN fails every comparison


def model_fields(config: Config) -> list[str]:
    """The fields of the chosen model, as config names.

    Raises:
      ConfigError: for an unknown model.
    """
    from dnrt_jax import models  # imports JAX: not before somebody asks

    name = config.get("model", {}).get("name", "")
    known = sorted(models.registry())
    if name not in known:
        hint = nearest(str(name), known) or f"; known: {', '.join(known)}"
        raise ConfigError(f"config.model.name={name!r}: no such model{hint}")
    return [f"model.{field}" for field in models.fields(name) if field not in NOT_CONFIGURED]


def takes_graph(config: Config) -> bool:
    """Whether the model is one of graphs."""
    from dnrt_jax import models

    return "image_size" not in models.fields(config.model.name)


# What may change between two starts of a run, because it changes no weight.
FREE_ON_RESUME = (
    "data.dir",
    "data.workers",
    "eval.batch_size",
    "parallel.fsdp",
    "parallel.heartbeat_seconds",
    "train.dispatch_steps",
    "train.log_steps",
    "train.on_nonfinite",
    "train.max_skipped",
    "train.eval_epochs",
    "train.eval_steps",
    "train.checkpoint_epochs",
    "train.checkpoint_steps",
    "train.keep",
)


def check_resume(old: Config, new: Config, allowed: Iterable[str]) -> None:
    """Raises a ConfigError if `new` may not go on with a run of `old`, listing the fields."""
    before, after = flatten(old), flatten(new)
    changed = [
        f"{name} was {before.get(name)!r}, is {after.get(name)!r}"
        for name in sorted(before.keys() | after)
        if before.get(name) != after.get(name) and name not in (*FREE_ON_RESUME, *allowed)
    ]
    if changed:
        raise ConfigError(
            f"this folder holds a run of another config: {'; '.join(changed)}; choose another "
            "--workdir, or go on with --allow_change=FIELD"
        )


NOT_CONFIGURED = ("num_classes", "image_size", "dtype")  # from the data, data.*, and model.dtype


def model_kwargs(config: Config) -> dict[str, Any]:
    """What the model section hands to `models.create` beside name and activation."""
    given = {k: v for k, v in config.model.items() if v is not None}
    return {k: v for k, v in given.items() if k not in ("name", "act", "dtype")}


def _validate_together(config: Config) -> None:
    from dnrt_jax import activations

    if config.model.act not in activations.names():
        known = activations.names()
        hint = nearest(config.model.act, known) or f"; known: {', '.join(known)}"
        raise ConfigError(f"config.model.act={config.model.act!r}: no such activation{hint}")
    allowed = model_fields(config)
    for key in model_kwargs(config):
        if f"model.{key}" not in allowed:
            raise ConfigError(f"config.model.{key}: {config.model.name} has no such field")
    data, train = config.data, config.train
    _validate_graph(config)
    if data.eval_resize < data.image_size:
        raise ConfigError(
            f"config.data.eval_resize={data.eval_resize}: below image_size={data.image_size}"
        )
    if len(data.mean) != len(data.std) or not data.mean:
        raise ConfigError(
            f"config.data.std={tuple(data.std)}: needs as many values as mean={tuple(data.mean)}"
        )
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"config.train.accumulate={train.accumulate}: does not divide {train.batch_size=}"
        )
    if data.crop_area[1] > 1:
        raise ConfigError(f"config.data.crop_area={tuple(data.crop_area)}: a share is at most 1")
    if not (train.epochs or train.steps):
        raise ConfigError("config.train.epochs=0: give the length of the run, in epochs or steps")


GRAPH_FIELDS = ("data.features", "data.self_loops", "data.fanout")
ANY_FIELDS = ("data.name", "data.dir")


def _validate_graph(config: Config) -> None:
    """Fields that would say nothing, with this kind of model, are mistakes."""
    graph, name = takes_graph(config), config.model.name
    for field, value in flatten(config).items():
        if not field.startswith("data.") or field in ANY_FIELDS or value == FIELDS[field][0]:
            continue
        if graph != (field in GRAPH_FIELDS):
            kinds = ("images", "a graph") if graph else ("graphs", "images")
            raise ConfigError(f"config.{field}={value!r}: for {kinds[0]}; {name} takes {kinds[1]}")
    if graph and config.train.accumulate > 1:
        raise ConfigError(f"config.train.accumulate={config.train.accumulate}: not for graphs")
    if config.data.fanout and name != "graphsage":
        raise ConfigError(f"config.data.fanout: {name} needs all of a node's neighbours")
    if config.data.fanout and len(config.data.fanout) != (config.model.depth or 2):
        raise ConfigError(
            "config.data.fanout: needs a number for each of config.model.depth layers"
        )
    if config.eval.metric == "auc" and not graph:
        raise ConfigError(f"config.eval.metric='auc': of graphs; {name} takes images")


def to_json(config: Config) -> str:
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> Config:
    """The inverse of `to_json`, on top of the defaults."""
    config = default()
    for name, value in flatten(json.loads(text)).items():
        section, _, key = name.rpartition(".")
        value = tuple(value) if isinstance(value, list) else value
        (config[section] if section else config)[key] = value
    return config


def steps(epochs: float, steps: int, epoch_steps: int) -> int:
    """A duration in steps, from its two fields: `steps` where set, else `epochs`."""
    return steps or round(epochs * epoch_steps)
