"""A run means the same on any number of devices, however its state is laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnrt_jax import arr, experiment
from dnrt_jax.benchmark import hlo
from dnrt_jax.config import default, validate
from dnrt_jax.data.datasets import Dataset
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.sharding import (
    check_batch,
    make_mesh,
    replicated,
    split,
    state_shardings,
)
from dnrt_jax.tasks.image_classification import ImageClassification

VIT = {"name": "vit_tiny_patch4_32", "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
CNN = {"name": "cifar_resnet32", "stage_sizes": (1, 1), "widths": (8, 16)}
STEPS = 50


def config_of(model, **values):
    c = default()
    c.model.update(model)
    c.data.update({"image_size": 8, "eval_resize": 8, "flip": 0.5, "crop": "pad", "pad": 1})
    c.train.update({"batch_size": 16, "steps": STEPS})
    c.optim.update({"lr": 1e-3, "warmup_steps": 3})
    c.eval.batch_size = 16
    for name, value in values.items():
        section, key = name.split("__")
        c[section][key] = value
    validate(c)
    return c


def train(config, devices, steps=STEPS, name="loss"):
    """(final state, `name` of each step) on the first `devices` devices."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 56).astype(np.int32)
    images = rng.integers(0, 128, (56, 8, 8, 1)) + 40 * labels[:, None, None, None]
    data = Dataset(images.astype(np.uint8), labels, ("a", "b", "c"))
    task = ImageClassification(config, data, data)
    built = experiment.build(config, task, make_mesh(jax.devices()[:devices]))
    dispatch, state, losses = built.dispatch(), built.create(), []
    for start in range(0, steps, 4):  # of four steps an epoch
        state, values = dispatch.run(state, start, min(4, steps - start))
        losses += values()[name].tolist()
    return jax.device_get(state), np.asarray(losses)


@pytest.fixture(scope="module")
def alone():
    found = {}

    def get(name, model):
        if name not in found:
            found[name] = train(config_of(model), 1)
        return found[name]

    return get


def largest_difference(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return max(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() for a, b in pairs)


@pytest.mark.parametrize(
    ("devices", "name", "model", "fsdp"),
    [
        pytest.param(devices, name, model, fsdp, marks=[] if quick else pytest.mark.slow)
        for devices in (2, 4, 8)
        for name, model in (("vit", VIT), ("cnn", CNN))
        for fsdp in (False, True)
        for quick in [(devices, name, fsdp) == (8, "cnn", True)]
    ],
)
def test_many_devices_equal_one(alone, devices, name, model, fsdp):
    state, losses = train(config_of(model, parallel__fsdp=fsdp), devices)
    expected, expected_losses = alone(name, model)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert largest_difference(state.centroids, expected.centroids) < 1e-6


def test_fsdp_splits_parameters_optimiser_and_centroids():
    shapes = {"kernel": jnp.zeros((48, 64)), "bias": jnp.zeros(6), "step": jnp.int32(0)}
    mesh = make_mesh()
    placed = state_shardings(mesh, shapes, True)
    assert placed["kernel"].shard_shape((48, 64)) == (48, 8)
    assert placed["bias"] == placed["step"] == replicated(mesh)
    placed = state_shardings(mesh, shapes, False)
    assert set(placed.values()) == {replicated(mesh)}


# ARR's gradient is a sign: where a response meets its mean, the last digit of a sum decides it.
# With parts on several devices that happens after some twenty steps; without ARR it never does.
@pytest.mark.parametrize(
    ("rule", "arr_weight", "steps", "relative"),
    [
        pytest.param("sequential", 20.0, 20, 2e-6, marks=pytest.mark.slow),
        ("centroid", 20.0, 20, 1e-6),
        pytest.param("sequential", 0.0, STEPS, 1e-5, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_accumulation_is_the_large_batch(devices, rule, arr_weight, steps, relative):
    whole = config_of(VIT, arr__weight=arr_weight, arr__rule=rule)
    parts = config_of(VIT, arr__weight=arr_weight, arr__rule=rule, train__accumulate=4)
    name = "loss_arr" if arr_weight else "loss"
    expected, expected_losses = train(whole, 1, steps, name)
    state, losses = train(parts, devices, steps, name)
    np.testing.assert_allclose(losses, expected_losses, rtol=relative)
    assert largest_difference(state.params, expected.params) < 1e-4
    if arr_weight:
        assert largest_difference(state.centroids, expected.centroids) < 1e-6


def test_a_batch_that_does_not_divide_is_answered_with_one_that_does():
    with pytest.raises(ConfigError, match="batch_size=20 does not divide over 8 devices; try 16"):
        check_batch("train.batch_size", 20, 8)
    with pytest.raises(ConfigError, match=r"over 2 devices x config.train.accumulate=4; try 64"):
        check_batch("train.batch_size", 60, 2, 4)


K, J, D, B = 1000, 12, 192, 64


def moved_bytes(rule):
    """Bytes in the results of every collective of the compiled update, by kind."""
    mesh = make_mesh()
    whole, parts = replicated(mesh), split(mesh)
    place = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
    responses = tuple(jax.ShapeDtypeStruct((B, D), jnp.float32, sharding=parts) for _ in range(J))
    centroids = jax.tree.map(
        lambda x: place(x, whole), jax.eval_shape(lambda r: arr.init(r, K), responses)
    )
    labels = jax.ShapeDtypeStruct((B,), jnp.int32, sharding=parts)

    def step(centroids, responses, labels):
        targets, centroids = arr.update(centroids, responses, labels, momentum=0.1, rule=rule)
        return arr.loss(responses, targets), centroids

    compiled = jax.jit(step, out_shardings=whole).lower(centroids, responses, labels).compile()
    return {kind: size for kind, (_, size) in hlo.collectives_of(compiled.as_text()).items()}


def test_the_centroid_rule_moves_class_sums_and_counts_only():
    moved = moved_bytes("centroid")
    assert set(moved) == {"all-reduce"}
    assert moved["all-reduce"] <= 1.05 * K * (D * J + 1) * 4


def test_the_sequential_rule_gathers_responses_and_targets_and_no_class_means():
    moved = moved_bytes("sequential")
    assert sum(moved.values()) <= 1.05 * 2 * B * J * D * 4
