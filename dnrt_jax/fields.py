"""Config fields, and the rules that check and parse their values."""

import ast
import math
import numbers
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A rule for values: type, predicate, the rule in words, and the options of a choice."""

    type: type
    test: Callable[[Any], bool]
    expected: str
    options: tuple[Any, ...] = ()

    def fits(self, value: Any) -> bool:
        accepts = {float: numbers.Real, int: numbers.Integral, tuple: (tuple, list)}
        if isinstance(value, bool) != (self.type is bool):
            return False
        if not isinstance(value, accepts.get(self.type, self.type)):
            return False
        return self.test(value)  # NaN fails every comparison

    def read(self, text: str) -> Any:
        """Parses `text` of the command line.

        Raises:
          ValueError: if the text does not have this type, or its value fails the test.
        """
        value = self._parse(text)
        if not self.fits(value):
            raise ValueError(text)
        return value

    def _parse(self, text: str) -> Any:
        if self.type is bool:
            known = {"true": True, "false": False, "1": True, "0": False}
            if text.lower() not in known:
                raise ValueError(text)
            return known[text.lower()]
        if self.type is int:
            return int(text) if text.lstrip("+-").isdecimal() else _whole(float(text))
        if self.type is tuple:
            value = ast.literal_eval(text) if text.strip() else ()
            return tuple(value) if isinstance(value, tuple | list) else (value,)
        return self.type(text)


def _whole(x: float) -> int:
    if x != int(x):
        raise ValueError(x)
    return int(x)


@dataclass(frozen=True)
class Field:
    """A config field.

    free: it does not affect the weights, so it may change on resume.
    number: it enters the training program as a number alone, so runs that differ in it may share
      one program.
    """

    default: Any
    rule: Rule
    help: str
    free: bool = False
    number: bool = False


def number(low: float, high: float = float("inf"), *, open_low: bool = False) -> Rule:
    words = f"a number {'above' if open_low else 'from'} {low:g}"
    if high != float("inf"):
        words += f", up to {high:g}" if open_low else f" to {high:g}"
    above = lambda x: low < x if open_low else low <= x
    return Rule(float, lambda x: math.isfinite(x) and above(x) and x <= high, words)


def integer(low: int, high: int | None = None) -> Rule:
    words = f"a whole number from {low}" + ("" if high is None else f" to {high}")
    return Rule(int, lambda x: low <= x and (high is None or x <= high), words)


def choice(*options: Any) -> Rule:
    words = f"one of {', '.join(map(repr, options))}"
    return Rule(type(options[0]), lambda x: x in options, words, options)


def numbers_from(low: float, words: str) -> Rule:
    good = lambda xs: all(_is_number(x) and x >= low for x in xs)
    return Rule(tuple, good, words)


def integers_from(low: int, words: str) -> Rule:
    good = lambda xs: all(isinstance(x, int) and _is_number(x) and x >= low for x in xs)
    return Rule(tuple, good, words)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


TEXT = Rule(str, lambda x: True, "text")
PATTERN = Rule(str, _is_pattern, "a regular expression")
NAME = Rule(str, bool, "a name")
FLAG = Rule(bool, lambda x: True, "True or False")
ABOVE_0 = number(0, open_low=True)
FROM_0 = number(0)
FRACTION = number(0, 1)
POSITIVE_FRACTION = number(0, 1, open_low=True)
RATE = Rule(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")
RANGE = Rule(
    tuple,
    lambda x: len(x) == 2 and all(map(_is_number, x)) and 0 < x[0] <= x[1],
    "two numbers, (low, high) above 0",
)


def rule_of(name: str, annotation: Any) -> Rule | None:
    """The rule of a dataclass field, from its type annotation; None for unsupported types.

    Integers must be >= 1, floats in [0, 1) if the name ends in "_rate", and > 0 otherwise.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):  # an optional type
        (annotation,) = (a for a in arguments if a is not type(None))
        return rule_of(name, annotation)
    if origin is typing.Literal:
        return choice(*arguments)
    if origin is tuple:
        if typing.get_origin(arguments[0]) is tuple:
            each = integers_from(1, "")
            good = lambda xs: all(each.fits(x) for x in xs)
            return Rule(tuple, good, "tuples of whole numbers from 1, as ((1,), (2, 3))")
        if arguments[0] is int:
            return integers_from(1, "whole numbers from 1, as (1, 2)")
        return numbers_from(0, "numbers from 0, as (0.5, 1.0)")
    if annotation is float:
        return RATE if name.endswith("_rate") else ABOVE_0
    return {bool: FLAG, int: integer(1), str: NAME}.get(annotation)
