"""A set of runs: what --seeds and --sweep name, each with its config and its folder."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from dnrt_jax.config import Config, fields_of, nearest, replaced
from dnrt_jax.fields import Field
from dnrt_jax.runtime.errors import ConfigError


class Member(NamedTuple):
    """A run of a set.

    name: its folder in that of the set, as seed0 or lr=0.001,seed=0; "" for a run by itself.
    setting: what it has in common with the members that differ in the seed alone, as lr=0.001.
    """

    name: str
    setting: str
    config: Config


def of_command(config: Config, seeds: str | None, sweeps: Sequence[str]) -> list[Member]:
    """The members that a command line names; the run of `config` if it names none.

    Args:
      seeds: as "0,1,2"; sweeps: each as "FIELD=VALUE,VALUE". All combinations are members.

    Raises:
      ConfigError: for a field that does not enter the training program as a number, or values that
        are invalid or repeated.
    """
    if seeds is None and not sweeps:
        return [Member("", "", config)]
    fields = fields_of(config)
    swept = dict(_sweep(text, fields) for text in sweeps)
    if len(swept) < len(sweeps):
        raise ConfigError(f"--sweep={sweeps[-1]}: a field is named twice; join its values")
    seed_list = [config.seed] if seeds is None else _values("seeds", "seed", seeds, fields["seed"])
    members = []
    for values in product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        setting = ",".join(f"{_short(name)}={_text(value)}" for name, value in chosen.items())
        for seed in seed_list:
            name = f"{setting},seed={seed}" if setting else f"seed{seed}"
            members.append(Member(name, setting, replaced(config, chosen | {"seed": seed})))
    return members


def by_setting(members: Sequence[Member]) -> dict[str, list[str]]:
    """The names of the members of each setting."""
    found: dict[str, list[str]] = {}
    for member in members:
        found.setdefault(member.setting, []).append(member.name)
    return found


def _sweep(text: str, fields: Mapping[str, Field]) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    if not equals:
        raise ConfigError(f"--sweep={text}: give a field and its values, as optim.lr=1e-3,1e-4")
    if name == "seed":
        raise ConfigError(f"--sweep={text}: give --seeds={values}")
    if name not in fields:
        raise ConfigError(f"--sweep={name}: no such field{nearest(name, fields)}")
    if not fields[name].number:
        can = ", ".join(field for field, about in fields.items() if about.number)
        raise ConfigError(
            f"--sweep={name}: changes the program, not only its numbers; give each value a run of "
            f"its own, by --config.{name}=VALUE and another --workdir; --sweep takes {can}"
        )
    return name, _values("sweep", name, values, fields[name])


def _values(option: str, name: str, text: str, field: Field) -> list[Any]:
    try:
        values = [field.rule.read(word) for word in text.split(",")]
    except (ValueError, SyntaxError, OverflowError):
        raise ConfigError(
            f"--{option}: {name}={text!r}: each must be {field.rule.expected}"
        ) from None
    if len(set(map(_text, values))) < len(values):
        digits = "" if option == "seeds" else ", in six digits"
        raise ConfigError(f"--{option}: {name}={text!r}: a value is given twice{digits}")
    return values


def _text(value: float) -> str:
    """Of a value, in names of folders."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _short(name: str) -> str:
    return name.removeprefix("optim.")
