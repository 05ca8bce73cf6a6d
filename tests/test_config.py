import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dnrt_jax import config as schema

CONFIGS = [
    path.stem
    for path in (Path(__file__).parent.parent / "configs").glob("*.py")
    if path.stem not in ("base", "__init__")
]

# Thirty mistakes: the field, its value, and what the answer must say.
MISTAKES = [
    ("optim.lrr", 1.0, "did you mean optim.lr?"),
    ("optim.learning_rate", 1.0, "no such field"),
    ("model.depht", 3, "did you mean model.depth?"),
    ("train.batchsize", 3, "did you mean train.batch_size?"),
    ("arr.lambda", 3.0, "no such field"),
    ("augment.flip", 0.5, "did you mean data.flip?"),
    ("optim.lr", 0.0, "above 0"),
    ("optim.lr", -1.0, "above 0"),
    ("optim.lr", float("nan"), "above 0"),
    ("optim.lr", "fast", "above 0"),
    ("optim.lr", True, "above 0"),
    ("optim.name", "adamm", "one of 'adamw', 'adam', 'sgd', 'rmsprop'"),
    ("optim.schedule", "linear", "one of 'cosine'"),
    ("optim.momentum", 1.0, "below 1"),
    ("optim.milestones", (3, -1), "epochs"),
    ("model.name", "vit_tiny_patch4_23", "did you mean vit_tiny_patch4_32?"),
    ("model.act", "geluu", "did you mean gelu?"),
    ("model.dtype", "float16", "one of 'float32', 'bfloat16'"),
    ("model.depth", 0, "a whole number from 1"),
    ("model.depth", 2.5, "a whole number from 1"),
    ("model.drop_path_rate", 1.0, "below 1"),
    ("arr.weight", -1.0, "from 0"),
    ("arr.momentum", 1.5, "from 0 to 1"),
    ("arr.rule", "mean", "one of 'sequential', 'centroid'"),
    ("data.image_size", 0, "a whole number from 1"),
    ("data.eval_resize", 16, "below image_size=32"),
    ("data.std", (0.0,), "above 0"),
    ("data.std", (0.5, 0.5), "as many values as mean"),
    ("data.crop_area", (0.5, 2.0), "at most 1"),
    ("data.flip", 2, "from 0 to 1"),
    ("train.batch_size", 0, "a whole number from 1"),
    ("train.epochs", 0, "length of the run"),
    ("seed", -1, "a whole number from 0"),
]


@pytest.mark.parametrize(("name", "value", "answer"), MISTAKES)
def test_a_mistake_is_answered_in_one_line_that_names_the_field(name, value, answer):
    values = schema.default().to_dict()
    section, _, key = name.rpartition(".")
    (values.setdefault(section, {}) if section else values)[key] = value
    with pytest.raises(schema.ConfigError) as error:
        schema.validate(ConfigDict(values))
    message = str(error.value)
    assert message.startswith(f"config.{name}")
    assert answer in message
    assert "\n" not in message


def test_a_missing_field_is_named():
    values = schema.default().to_dict()
    del values["arr"]["rule"]
    with pytest.raises(schema.ConfigError, match=r"config.arr.rule: missing"):
        schema.validate(ConfigDict(values))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid_and_says_how_to_run_it(name):
    module = importlib.import_module(f"configs.{name}")
    schema.validate(module.get_config())
    assert f"--config=configs/{name}.py" in module.__doc__
    assert "Expected:" in module.__doc__
    assert "Cost:" in module.__doc__


def test_every_field_has_a_valid_default_and_an_explanation():
    schema.validate(schema.default())
    assert all(help_text for _, _, help_text in schema.FIELDS.values())


def test_json_keeps_every_value_and_type():
    config = importlib.import_module("configs.cifar10").get_config()
    again = schema.from_json(schema.to_json(config))
    assert schema.flatten(again) == schema.flatten(config)


def test_a_resumed_run_may_log_otherwise_but_not_be_another():
    old, new = schema.default(), schema.default()
    new.train.log_steps = 7
    schema.check_resume(old, new, ())
    new.arr.momentum = 0.2
    with pytest.raises(schema.ConfigError, match=r"arr.momentum was 0.1, is 0.2; .*--allow_change"):
        schema.check_resume(old, new, ())
    schema.check_resume(old, new, ("arr.momentum",))


def test_steps_win_over_epochs():
    assert schema.steps(2.5, 0, 10) == 25
    assert schema.steps(2.5, 7, 10) == 7


@pytest.mark.parametrize("name", schema.FIELDS)
def test_a_resumed_run_keeps_what_its_weights_depend_on(name):
    old, new = schema.default(), schema.default()
    section, _, key = name.rpartition(".")
    (new[section] if section else new).update({key: _another(name)})
    if name in schema.FREE_ON_RESUME:
        schema.check_resume(old, new, ())
        return
    with pytest.raises(schema.ConfigError, match=rf"{name} was .*, is .*; choose"):
        schema.check_resume(old, new, ())
    schema.check_resume(old, new, (name,))
    schema.check_resume(old, schema.from_json(schema.to_json(old)), ())


def _another(name):
    """A value of the field that is not its default."""
    default, rule, _ = schema.FIELDS[name]
    candidates = {
        float: (0.25, 0.75),
        int: (3, 4),
        bool: (True, False),
        tuple: ((0.3,), (0.4, 0.6)),
    }
    known = candidates.get(rule.type, ("stop", "skip", "other"))
    return next(value for value in known if value != default)
