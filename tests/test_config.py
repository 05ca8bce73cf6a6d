"""Configs: mistakes answered by name, other models, values from the command line, resumption."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dnrt_jax import models, tasks
from dnrt_jax.config import (
    check_resume,
    default,
    duration,
    fields_of,
    flatten,
    from_json,
    model_fields,
    to_json,
    validate,
)
from dnrt_jax.config_file import load, override
from dnrt_jax.runtime.errors import ConfigError

ROOT = Path(__file__).parent.parent
CONFIGS = [p.stem for p in (ROOT / "configs").glob("*.py") if not p.stem.startswith("base")]
FIELDS = fields_of(default())

# Thirty mistakes: the field, its value, and what the answer must say.
MISTAKES = [
    ("optim.lrr", 1.0, "did you mean optim.lr?"),
    ("optim.learning_rate", 1.0, "did you mean optim.lr?"),
    ("model.depht", 3, "did you mean model.depth?"),
    ("train.batchsize", 3, "did you mean train.batch_size?"),
    ("arr.lambda", 3.0, "did you mean arr.weight?"),
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
    ("model.name", "vit_tiny_patch4_23", "did you mean 'vit_tiny_patch4_32'?"),
    ("model.act", "geluu", "did you mean 'gelu'?"),
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
    ("seed", 2**32, "a whole number from 0 to 4294967295"),
    ("train.eval_epochs", float("inf"), "a number from 0"),
    ("optim.lr", 1e-6, "so the rate would rise"),
    ("data.crop_area", ("a", "b"), "two numbers"),
    ("task", "image_clasification", "did you mean 'image_classification'?"),
    ("model.mlp_ratio", "wide", "a number above 0"),
    ("model.class_token", 1, "True or False"),
    ("model.global_pool", "max", "one of 'token', 'avg'"),
    ("eval.metric", "auc", "of images only 'acc'"),
]


@pytest.mark.parametrize(("name", "value", "answer"), MISTAKES)
def test_a_mistake_is_answered_in_one_line_that_names_the_field(name, value, answer):
    values = default().to_dict()
    section, _, key = name.rpartition(".")
    (values.setdefault(section, {}) if section else values)[key] = value
    with pytest.raises(ConfigError) as error:
        validate(ConfigDict(values))
    message = str(error.value)
    assert message.startswith(f"config.{name}")
    assert answer in message
    assert "\n" not in message


def test_a_missing_field_is_named():
    values = default().to_dict()
    del values["arr"]["rule"]
    with pytest.raises(ConfigError, match=r"config.arr.rule: missing"):
        validate(ConfigDict(values))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid_and_says_how_to_run_it(name):
    validate(load(str(ROOT / "configs" / f"{name}.py")))
    text = (ROOT / "configs" / f"{name}.py").read_text()
    for words in (f"--config=configs/{name}.py", "Expected:", "Cost:"):
        assert words in text


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_field_has_an_explanation_and_a_default_that_fits(task):
    for name, field in fields_of(default(task)).items():
        assert field.help, name
        assert field.default is None or field.rule.fits(field.default), name


@pytest.mark.parametrize("name", models.registry())
def test_every_field_of_every_model_can_be_set_by_its_text(name):
    config = default()
    config.model.name = name
    for field, about in model_fields(name).items():
        text = str(about.default)
        override(config, {field: text})
        assert config.model[field.removeprefix("model.")] == about.default


def test_json_keeps_every_value_and_type():
    config = load(str(ROOT / "configs" / "cifar10_cnn.py"), {"model.stage_sizes": "(1,1,1,1)"})
    again = from_json(to_json(config))
    assert flatten(again) == flatten(config)
    assert again.model.stage_sizes == (1, 1, 1, 1)


def test_another_model_drops_what_only_the_old_one_had_and_says_so(caplog):
    config = load(str(ROOT / "configs" / "cifar10.py"), {"model.name": "cifar_resnet18"})
    validate(config)
    assert "drop_path_rate" not in config.model
    assert caplog.messages == ["config: cifar_resnet18 has no model.drop_path_rate=0.1; left out"]


def test_another_model_keeps_what_it_has_too_and_what_the_user_sets_himself():
    path = str(ROOT / "configs" / "cifar10.py")
    config = load(path, {"model.depth": "3", "model.name": "deit_tiny_patch4_32"})
    assert (config.model.drop_path_rate, config.model.depth) == (0.1, 3)
    with pytest.raises(ConfigError, match=r"config.model.patch_size: no such field"):
        load(path, {"model.name": "cifar_resnet18", "model.patch_size": "4"})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.first_stride", "4", 4),
        ("optim.milestones", "(60.0,120.0)", (60.0, 120.0)),
        ("optim.milestones", "60,120", (60, 120)),
        ("optim.lr", "1e-3", 1e-3),
        ("train.steps", "1e3", 1000),
        ("parallel.fsdp", "true", True),
        ("data.crop", "none", "none"),
        ("data.rand_augment", "none", ""),
        ("optim.clip", "none", 1.0),
        ("model.drop_path_rate", "none", 0.0),
    ],
)
def test_a_text_on_the_command_line_is_read_by_the_rule_of_its_field(name, text, value):
    config = load(str(ROOT / "configs" / "cifar10.py"), {"model.name": "tnt_s_patch4_32"})
    assert flatten(override(config, {name: text}))[name] == value
    validate(config)


def test_none_resets_the_model_and_the_task():
    config = load(str(ROOT / "configs" / "cora.py"), {})
    assert override(config, {"task": "none", "model.name": "none"}).task == default().task
    assert config.model.name == default().model.name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("optim.lr", "fast"),
        ("train.steps", "2.5"),
        ("model.depth", "four"),
        ("data.mean", "__import__('os')"),
        ("parallel.fsdp", "perhaps"),
        ("optim.milestones", "(1,"),
        ("train.steps", "inf"),
        ("train.epochs", "1e999"),
        ("data.mean", "{[]}"),
    ],
)
def test_a_text_that_stands_for_no_value_is_answered(name, text):
    with pytest.raises(ConfigError, match=rf"^config.{name}=.*: must be "):
        override(default(), {name: text})


def test_a_file_may_import_its_neighbours_wherever_it_lies(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "shared.py").write_text("LR = 0.5")
    text = "from dnrt_jax.config import default\nfrom mine.shared import LR\n"
    text += "def get_config(name='a'):\n    c = default()\n    c.optim.lr = LR\n"
    (folder / "exp.py").write_text(text + "    c.data.name = name\n    return c\n")
    assert load(str(folder / "exp.py")).optim.lr == 0.5
    assert load(f"{folder}/exp.py:b").data.name == "b"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("import nothing_of_that_name", "line 1: No module named 'nothing_of_that_name'"),
        ("def get_config(:", "line"),
        ("x = 1", "get_config"),
        ("def get_config():\n    return 1", "gives no ml_collections.ConfigDict"),
        ("def get_config():\n    return 1 / 0", "line 2: division by zero"),
    ],
)
def test_a_config_file_that_fails_is_named_with_the_line(tmp_path, text, answer):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(str(tmp_path / "bad.py"))
    assert str(error.value).startswith("--config=")
    assert answer in str(error.value)


def test_a_resumed_run_may_log_otherwise_but_not_be_another():
    old, new = default(), default()
    new.train.log_steps = 7
    check_resume(old, new, ())
    new.arr.momentum = 0.2
    with pytest.raises(ConfigError, match=r"arr.momentum was 0.1, is 0.2; .*--allow_change"):
        check_resume(old, new, ())
    check_resume(old, new, ("arr.momentum",))


def test_a_model_field_at_its_default_is_as_good_as_not_set():
    old, new = default(), default()
    new.model.depth = 12
    check_resume(old, new)


def test_steps_win_over_epochs():
    assert duration(2.5, 0, 10) == 25
    assert duration(2.5, 7, 10) == 7


@pytest.mark.parametrize("name", [n for n in FIELDS if n not in ("model.name", "task")])
def test_a_resumed_run_keeps_what_its_weights_depend_on(name):
    old, new = default(), default()
    section, _, key = name.rpartition(".")
    (new[section] if section else new).update({key: _another(name)})
    if FIELDS[name].free:
        check_resume(old, new)
        return
    with pytest.raises(ConfigError, match=rf"{name} was .*, is .*; choose"):
        check_resume(old, new)
    check_resume(old, new, (name,))
    check_resume(old, from_json(to_json(old)))


def _another(name):
    """A value of the field that is not its default."""
    default, rule = FIELDS[name].default, FIELDS[name].rule
    candidates = {
        float: (0.25, 0.75),
        int: (3, 4),
        bool: (True, False),
        tuple: ((0.3,), (0.4, 0.6)),
    }
    known = rule.options or candidates.get(rule.type, ("stop", "skip", "other"))
    return next(value for value in known if value != default)
