"""Every command that README and docs show exists, with every flag, and its config is valid."""

import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
from runs import ROOT

from dnrt_jax import config as schema

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    found = []
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.split("  #")[0] for line in lines if line.startswith("python ")]
    return sorted(set(found))


@cache
def helped(*program):
    done = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_there_are_commands():
    assert len(commands()) > 25


@pytest.mark.parametrize("command", commands())
def test_a_command_exists_with_its_flags(command):
    _, *words = shlex.split(command)
    program = words[:2] if words[0] == "-m" else words[:1]
    rest = words[len(program) :]
    if program[1:] == ["pytest"]:
        targets = [word for word in rest if word.startswith("tests")]
        assert all((ROOT / target).exists() for target in targets)
        return
    if program[1:] == ["dnrt_jax.benchmark"]:
        program.append(rest.pop(0))
    flags = [word.split("=")[0] for word in rest if word.startswith("--")]
    plain = [flag for flag in flags if not flag.startswith("--config.")]
    for flag in plain:
        assert re.search(rf"(^|\s|\[){flag}\b", helped(*program)), flag
    if program[1:] == ["dnrt_jax.main"]:
        check_config([word for word in rest if word.startswith("--config")])


def check_config(words):
    (spec,) = (word.split("=", 1)[1] for word in words if word.startswith("--config="))
    file, _, argument = spec.partition(":")
    names = {"__name__": "config", "__file__": str(ROOT / file)}
    exec((ROOT / file).read_text(), names)
    config = names["get_config"](*[argument] if argument else [])
    for word in words:
        if word.startswith("--config."):
            name, value = word.removeprefix("--config.").split("=", 1)
            assert name in schema.FIELDS
            kind = schema.FIELDS[name][1].type
            config.update_from_flattened_dict({name: value if kind is str else kind(float(value))})
    schema.validate(config)


def test_a_mistake_would_be_found():
    with pytest.raises(AssertionError):
        test_a_command_exists_with_its_flags("python -m dnrt_jax.predict --weigths=x IMAGE")
    with pytest.raises(schema.ConfigError):
        check_config(["--config=configs/digits.py", "--config.model.act="])
