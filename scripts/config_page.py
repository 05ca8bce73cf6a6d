"""Writes docs/config.md, the reference of all config fields, from their definitions in the code.

python -m scripts.config_page
"""

import argparse
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dnrt_jax import models, tasks
from dnrt_jax.common_fields import FIELDS
from dnrt_jax.config import model_fields
from dnrt_jax.fields import Field

PAGE = Path(__file__).parent.parent / "docs" / "config.md"
HEAD = """\
# Config fields

Written by `python -m scripts.config_page` from the definitions in `dnrt_jax/common_fields.py`,
`dnrt_jax/tasks/` and `dnrt_jax/models/`: edit those, not this page.

A config file in `configs/` starts from `dnrt_jax.config.default()` and sets fields. On the command
line, `--config.FIELD=VALUE` sets a field and `--config.FIELD=none` resets it to its default. An
unknown field or an invalid value is reported in one line before training starts.

"On resume" says whether a run may be resumed with another value of the field; for other fields
`--allow_change=FIELD` is needed. "Sweep" marks the numbers that `--sweep=FIELD=X,Y` may vary. A
duration has two fields, in epochs and in steps; if the steps are not 0, they take precedence.

"""
MODELS = """\
## Fields of the models

A model adds its own fields to the section `model`, with the defaults below; the docstring of the
class explains them. They may not change on resume. `num_classes`, `image_size`, `dtype`, `remat`
and `formulation` are not listed: they are set from the data, `data.image_size`, `model.dtype`,
`train.remat` and the kind of device.

"""


def page() -> str:
    parts = [HEAD, "## All tasks\n\n", _fields(FIELDS)]
    for name in tasks.TASKS:
        parts += [f"\n## Task `{name}`\n\n", _fields(tasks.find(name).FIELDS)]
    return "".join([*parts, "\n", MODELS, *_architectures()])


def _fields(fields: dict[str, Field]) -> str:
    rows = (
        (
            f"`{name}`",
            _value(f.default),
            f.rule.expected,
            f.help,
            "may change" if f.free else "",
            "yes" if f.number else "",
        )
        for name, f in fields.items()
    )
    return _table(("field", "default", "value", "meaning", "on resume", "sweep"), rows)


def _architectures() -> Iterator[str]:
    """One table for each class of models: a row per field, a column of defaults per model."""
    classes: dict[type, list[str]] = {}
    for name in models.registry():
        classes.setdefault(type(models.create(name, num_classes=1)), []).append(name)
    for cls, names in classes.items():
        path = Path(inspect.getfile(cls)).relative_to(PAGE.parent.parent.resolve())
        yield f"### {cls.__name__}\n\n[`{path}`](../{path})\n\n"
        fields = [model_fields(name) for name in names]
        rows = (
            (f"`{field}`", about.rule.expected, *(_value(each[field].default) for each in fields))
            for field, about in fields[0].items()
        )
        yield _table(("field", "value", *(f"`{name}`" for name in names)), rows) + "\n"


def _value(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, tuple):
        value = tuple(round(x, 4) if isinstance(x, float) else x for x in value)
    return f"`{value}`"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    escape = lambda cell: cell.replace("|", r"\|")
    return "".join(f"| {' | '.join(map(escape, line))} |\n" for line in lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page().rstrip("\n") + "\n")
