"""Multiply-accumulates are counted as one does by hand."""

from typing import get_args

import jax
import jax.numpy as jnp
import pytest

from dnrt_jax import models
from dnrt_jax.models.formulation import Formulation
from dnrt_jax.runtime.flops import (
    PEAK_FLOPS,
    MultiplyAccumulates,
    multiply_accumulates,
    of_image_model,
    utilization,
)


def test_dense_layers_and_products_of_activations_are_told_apart():
    def attend(w, x):
        y = x.reshape(-1, 8) @ w
        return jnp.einsum("bnd,bmd->bnm", x, x), y

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 16), (2, 5, 8))]
    assert multiply_accumulates(attend, *shapes) == MultiplyAccumulates(10 * 8 * 16, 2 * 25 * 8)


def test_a_loop_counts_every_turn():
    def loop(w, x):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.dot)(x, w), None), x, length=7)[0]

    assert multiply_accumulates(loop, jnp.ones((4, 4)), jnp.ones((2, 4))).layers == 7 * 2 * 4 * 4


@pytest.mark.parametrize(("groups", "expected"), [(1, 6 * 6 * 8 * 4 * 9), (4, 6 * 6 * 8 * 1 * 9)])
def test_a_convolution_by_groups(groups, expected):
    def convolve(x, k):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    shapes = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 4 // groups, 8))
    assert multiply_accumulates(convolve, *shapes).layers == expected


def test_resnet18_as_published():
    model = models.create("resnet18", num_classes=1000, act="relu")
    assert of_image_model(model).total == 1_814_073_344  # torchvision's page: 1.81 G


def test_mobilenet_v2_as_published():
    """Whose depthwise convolutions are written as products."""
    model = models.create("mobilenet_v2", num_classes=1000, act="relu")
    assert of_image_model(model).total == 300_774_272  # torchvision's page: 0.3 G


def test_attention_counts_however_it_is_written():
    model = models.create("vit_tiny_patch4_32", num_classes=10, depth=1, dtype="bfloat16")
    counted = [of_image_model(model.clone(formulation=name)) for name in get_args(Formulation)]
    assert len(set(counted)) == 1
    assert counted[0].products == 2 * 65 * 65 * 192


def test_utilization_counts_three_passes_over_all_devices(monkeypatch):
    assert utilization(10**9, 1000.0) is None  # of a CPU no peak is known
    monkeypatch.setitem(PEAK_FLOPS, jax.devices()[0].device_kind, 1e12)
    assert utilization(10**9, 1000.0) == pytest.approx(6 / jax.device_count())


def test_a_training_step_takes_three_forward_passes():
    model = models.create("vit_tiny_patch4_32", num_classes=10, act="gelu", depth=2)
    shape = (1, 32, 32, 3)
    variables = model.init(jax.random.key(0), jnp.zeros(shape))
    loss = lambda variables, x: model.apply(variables, x).sum()
    counted = multiply_accumulates(jax.grad(loss), variables, jnp.zeros(shape)).total
    assert counted == pytest.approx(3 * of_image_model(model).total, rel=0.02)
