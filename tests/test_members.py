"""The runs that --seeds and --sweep name."""

import pytest

from dnrt_jax import members
from dnrt_jax.config import default, flatten, validate
from dnrt_jax.runtime.errors import ConfigError


def named(seeds=None, *sweeps):
    return {member.name: member for member in members.of_command(default(), seeds, sweeps)}


def test_seeds_are_members_that_differ_in_the_seed_alone():
    found = named("0,1,12")
    assert list(found) == ["seed0", "seed1", "seed12"]
    for name, member in found.items():
        changed = {"seed": int(name.removeprefix("seed"))}
        assert flatten(member.config) == flatten(default()) | changed
        validate(member.config)


def test_a_sweep_and_seeds_are_all_combinations_by_setting():
    found = named("0,1", "optim.lr=1e-3,0.0003", "arr.weight=0,5")
    assert len(found) == 8
    member = found["lr=0.0003,arr.weight=5,seed=1"]
    assert member.setting == "lr=0.0003,arr.weight=5"
    values = flatten(member.config)
    assert [values[name] for name in ("optim.lr", "arr.weight", "seed")] == [0.0003, 5, 1]
    settings = members.by_setting(list(found.values()))
    assert settings["lr=0.001,arr.weight=0"] == [
        "lr=0.001,arr.weight=0,seed=0",
        "lr=0.001,arr.weight=0,seed=1",
    ]


def test_a_sweep_without_seeds_takes_that_of_the_config():
    assert list(named(None, "arr.momentum=0.1,0.2")) == [
        "arr.momentum=0.1,seed=42",
        "arr.momentum=0.2,seed=42",
    ]


def test_long_seeds_are_told_apart_and_values_of_one_name_are_refused():
    assert list(named("20240101,20240102")) == ["seed20240101", "seed20240102"]
    for seeds, sweep, said in (
        ("0,0", (), "given twice"),
        ("0,1e999", (), "each must be"),
        (None, ["optim.lr=0.12345671,0.12345672"], "given twice, in six digits"),
    ):
        with pytest.raises(ConfigError, match=said):
            named(seeds, *sweep)


def test_a_command_that_names_none_is_the_run_itself():
    config = default()
    assert members.of_command(config, None, []) == [("", "", config)]
