"""Training on a packed state is training on the tree of parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnrt_jax import models
from dnrt_jax.config import default
from dnrt_jax.runtime.sharding import make_mesh, split
from dnrt_jax.training import optim, packed
from dnrt_jax.training.dispatch import train_steps
from dnrt_jax.training.packed import Packing
from dnrt_jax.training.state import create_state
from dnrt_jax.training.step import TrainStep

CLASSES, SAMPLES, STEPS, BATCH = 3, 16, 3, 8
SHAPE = (4, 4, 1)
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than running


def build(optimizer, dtype):
    """(step, state) of a tiny MLP with RAA and ARR, of `dtype`."""
    c = default()
    c.optim.update({"name": optimizer, "clip": 0.5, "weight_decay": 0.1})
    model = models.create("mlp", num_classes=CLASSES, image_size=4, embed_dim=8, depth=2)
    tx = optim.create(c.optim, 1e-2)
    example, key = jnp.zeros((1, *SHAPE)), jax.random.key(0)
    state = create_state(model, tx, example, key, num_classes=CLASSES, use_arr=True)
    wide = lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x
    step = TrainStep(model, tx, c, lambda _, images: images, [], jax.random.key(1))
    return step, jax.tree.map(wide, state)


def check_round_trip(packing, state):
    same = packing.unpack(packing.pack(state))
    assert jax.tree.map(lambda x: x.dtype, same) == jax.tree.map(lambda x: x.dtype, state)
    jax.tree.map(np.testing.assert_array_equal, same, state)


@pytest.mark.parametrize("vectors_apart", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
def test_what_is_packed_is_unpacked_as_it_was(optimizer, vectors_apart):
    _, state = build(optimizer, "float32")
    packing = Packing(jax.eval_shape(lambda: state), vectors_apart)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    small = packing.pack(state)
    assert [x.shape for x in jax.tree.leaves(small.params)] == [(count,)]
    assert {x.shape for x in jax.tree.leaves(small.opt_state)} <= {(), (count,)}
    check_round_trip(packing, state)


@pytest.mark.parametrize("vectors_apart", [False, True])
@pytest.mark.parametrize("large", [0, 100])
def test_large_parameters_stay_as_they_are(monkeypatch, large, vectors_apart):
    monkeypatch.setattr(packed, "LARGE", large)
    _, state = build("adamw", "float32")
    shapes = [x.shape for x in jax.tree.leaves(state.params) if x.size >= large]
    packing = Packing(jax.eval_shape(lambda: state), vectors_apart)
    vector, alone = packing.pack(state).params
    assert [x.shape for x in alone] == shapes
    assert vector.size == sum(x.size for x in jax.tree.leaves(state.params) if x.size < large)
    check_round_trip(packing, state)


def test_parameters_of_several_dtypes_keep_them():
    _, state = build("adamw", "float32")
    narrow = lambda x: x.astype(jnp.bfloat16) if x.ndim == 2 else x
    state = jax.tree.map(narrow, state)
    check_round_trip(Packing(jax.eval_shape(lambda: state)), state)


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("optimizer", "dtype", "within"),
    [
        ("adamw", "float64", 1e-12),
        slow("adamw", "float32", 1e-5),
        slow("adam", "float64", 1e-12),
        slow("sgd", "float64", 1e-12),
        slow("rmsprop", "float64", 1e-12),
    ],
)
def test_steps_on_a_packed_state_are_those_on_the_tree(monkeypatch, optimizer, dtype, within):
    monkeypatch.setattr(packed, "LARGE", 100)  # so that some stay as they are
    with jax.enable_x64(dtype == "float64"):
        step, state = build(optimizer, dtype)
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((SAMPLES, *SHAPE)).astype(dtype)
        label = rng.integers(0, CLASSES, SAMPLES).astype(np.int32)
        order = rng.integers(0, SAMPLES, (STEPS, BATCH)), np.ones((STEPS, BATCH), bool)
        one_device = split(make_mesh(jax.devices()[:1]))
        of_one = lambda step: lambda _, state, batch: step(state, batch)
        tree = jax.jit(train_steps(of_one(step), one_device), compiler_options=QUICK)
        wanted, values = tree({}, state, {"inputs": inputs, "label": label}, *order, STEPS)
        # The samples lie flat, as on a device.
        flat = {"inputs": inputs.reshape(SAMPLES, -1), "label": label}
        packing = Packing(jax.eval_shape(lambda: state))
        step = of_one(dataclasses.replace(step, unravel=packing.unravel))
        ours = packing.around(train_steps(step, one_device, SHAPE))
        ours = jax.jit(ours, compiler_options=QUICK)({}, state, flat, *order, STEPS)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=within, atol=within)
    jax.tree.map(close, ours, (wanted, values))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), wanted.params, state.params)
    assert min(jax.tree.leaves(moved)) > 1e-4
