"""Random input, seeded: a right answer or one line, never a traceback, never a wrong success.

100 cases of each, the same every time.
"""

import ast
import contextlib
import io
import re

import jax
import numpy as np
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import ROOT

from dnrt_jax import convert, models
from dnrt_jax.common_fields import FIELDS
from dnrt_jax.config import fields_of, flatten, validate
from dnrt_jax.config_file import load
from dnrt_jax.data import decode
from dnrt_jax.runtime import weight_files

seeded = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=5000,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def misspelt(draw, names):
    name = draw(st.sampled_from(names))
    at = draw(st.integers(0, len(name) - 1))
    return name[:at] + draw(st.text("abcdelmopr._", max_size=2)) + name[at + 1 :]


NAMES = st.one_of(st.sampled_from(list(FIELDS)), misspelt(list(FIELDS)))
VALUES = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.floats(0, 2), max_size=3).map(tuple),
    st.sampled_from(["sgd", "gelu", "cosine", "vit_tiny_patch4_32", "random_resized"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8),
)


def attempt(call, *arguments):
    """(result, None), or (None, the one line that refuses it)."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return call(*arguments), None
    except ValueError as error:
        return None, str(error)
    except SystemExit:
        return None, errors.getvalue().removeprefix("error: ").removesuffix("\n")


DIGITS = str(ROOT / "configs" / "digits.py")


def config_of(name, text):
    config = load(DIGITS, {name: text})
    validate(config)
    return config


@seeded
@given(NAMES, VALUES)
def test_an_override_is_taken_as_it_was_told_or_refused_in_one_line(name, value):
    config, refusal = attempt(config_of, name, str(value))
    if config is None:
        assert re.match(r"config[.:]", refusal)
        assert len(refusal.splitlines()) == 1
        return
    found, field = flatten(config)[name], fields_of(config)[name]
    if str(value) == "None":
        assert found == field.default
    elif isinstance(found, str):
        assert found == str(value)
    else:
        told = ast.literal_eval(str(value).capitalize())
        assert found == (told if isinstance(told, tuple | bool) else type(found)(told))


@st.composite
def mutated(draw, whole: bytes):
    """`whole` with a few bytes changed, cut out or put in, or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "truncate"]))
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 30))]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=30))
        elif kind == "truncate":
            del content[at:]
    return bytes(content)


def _saved(kind):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@seeded
@given(st.sampled_from(decode.FORMATS).map(_saved).flatmap(mutated))
def test_a_damaged_image_is_an_image_or_refused_in_one_line(content):
    decoded, refusal = attempt(decode.decode, content, "this.jpg")
    if decoded is None:
        assert refusal.startswith("this.jpg: ")
        assert len(refusal.splitlines()) == 1
    else:
        assert decoded.dtype == np.uint8
        assert decoded.shape[2:] == (3,)


MLP = models.create("mlp", num_classes=3, act="gelu", image_size=2, embed_dim=4, depth=1)
VARIABLES = MLP.init(jax.random.key(0), np.zeros((1, 2, 2, 3), np.float32))
TENSORS = convert.to_torch({"params": VARIABLES["params"]})


@seeded
@given(mutated(safetensors.numpy.save(TENSORS)))
def test_damaged_weights_are_refused_unless_only_values_differ(content):
    folder = ROOT / ".pytest_cache"
    folder.mkdir(exist_ok=True)
    path = folder / "fuzzed.safetensors"
    path.write_bytes(content)
    state_dict, refusal = attempt(weight_files.read, path)
    if state_dict is None:
        assert refusal.startswith(f"{path}: ")
        return
    _, refusal = attempt(convert.fit, state_dict, MLP)
    shapes = lambda tensors: {name: value.shape for name, value in tensors.items()}
    assert (refusal is None) == (shapes(state_dict) == shapes(TENSORS))
