"""The CNNs: public weights, and the parts that are written otherwise than in torch.

`mobilenet_v1.{json,npz}` hold for timm's `mobilenetv1_100` (1.0.31) what `zoo.json` and
`zoo_logits.npz` hold for the others, made by the same rule.
"""

import json
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import FOLDER, assert_close, load

from dnrt_jax import convert, models
from dnrt_jax.models import conv
from dnrt_jax.runtime.errors import ModelError

ZOO = {
    **json.loads((FOLDER / "zoo.json").read_text()),
    "mobilenet_v1": json.loads((FOLDER / "mobilenet_v1.json").read_text()),
}
CIFAR = [
    "cifar_vgg11_bn",
    "cifar_resnet18",
    "cifar_resnet32",
    "cifar_mobilenet",
    "cifar_shufflenet",
]
IMAGENET = [
    "alexnet",
    "vgg11",
    "vgg11_bn",
    "resnet18",
    "mobilenet_v1",
    "mobilenet_v2",
    "shufflenet_v2_x1_0",
]
slow = pytest.mark.slow


def public_weights(name):
    """The state dict that the golden logits were computed with, in float32."""
    state_dict = {}
    for tensor, shape, is_norm_scale in ZOO[name]["tensors"]:
        noise = np.random.Generator(np.random.PCG64(zlib.crc32(tensor.encode())))
        value = noise.standard_normal(shape)
        if tensor.endswith("running_var"):
            value = 1 + 0.1 * np.abs(value)
        elif tensor.endswith("running_mean"):
            value = 0.1 * value
        elif len(shape) > 1:
            value = value / np.sqrt(np.prod(shape[1:]))
        else:
            value = 1 + 0.1 * value if is_norm_scale else 0.02 * value
        state_dict[tensor] = value.astype(np.float32)
    return state_dict


@pytest.mark.parametrize("name", [*CIFAR, *(pytest.param(name, marks=slow) for name in IMAGENET)])
def test_public_weights_give_the_public_logits_and_come_back_bit_for_bit(name):
    expected = {**load("zoo_logits"), **load("mobilenet_v1")}[name]
    act = "relu6" if name in ("mobilenet_v1", "mobilenet_v2") else "relu"
    kwargs = {"num_classes": expected.shape[1], "act": act}
    weights = public_weights(name)
    variables = convert.from_torch(weights, name, **kwargs)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == ZOO[name]["params"]
    back = convert.to_torch(variables)
    assert back.keys() == weights.keys()
    assert all(back[tensor].tobytes() == value.tobytes() for tensor, value in weights.items())

    size = ZOO[name]["image_size"]
    images = np.random.Generator(np.random.PCG64(11)).standard_normal((2, size, size, 3))
    apply = jax.jit(models.create(name, **kwargs).apply)
    assert_close(apply(variables, images.astype(np.float32)), expected, 5e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("kernel_size", "groups", "features"), [(1, 1, 4), (1, 3, 9), (3, 1, 4), (3, 6, 6), (5, 6, 6)]
)
def test_conv_is_the_convolution_of_flax(kernel_size, groups, features, stride):
    x = jax.random.normal(jax.random.key(0), (2, 5, 8, 6))
    ours = conv.Conv(features, kernel_size, stride, groups, use_bias=True)
    params = ours.init(jax.random.key(1), x)
    params = jax.tree.map(lambda p: p + 0.1, params)  # the bias starts at zero
    theirs = nn.Conv(
        features, (kernel_size,) * 2, stride, kernel_size // 2, feature_group_count=groups
    )
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel_size", "groups", "features"), [(1, 3, 9), (3, 6, 6), (5, 6, 6)])
def test_a_convolution_of_groups_is_the_same_on_every_platform(
    kernel_size, groups, features, stride
):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 7, 8, 6))
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, 6 // groups, features))
    forms = (conv.grouped_convolution, conv._convolution)
    ours, theirs = (jax.vjp(lambda x, k, f=f: f(x, k, stride, groups), x, kernel) for f in forms)
    assert_close(ours[0], theirs[0], 1e-6)
    for one, other in zip(*(vjp(jnp.ones_like(y)) for y, vjp in (ours, theirs)), strict=True):
        assert_close(one, other, 1e-5)


def test_running_statistics_move_by_a_tenth():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2)) + 5
    norm = conv.BatchNorm(use_running_average=False)
    _, stats = norm.init_with_output(jax.random.key(0), x)
    _, stats = norm.apply(stats, x, mutable=["batch_stats"])
    np.testing.assert_allclose(stats["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats["batch_stats"]["var"], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-4)


def test_adaptive_pooling_lets_windows_overlap():
    x = jnp.arange(3.0).reshape(1, 3, 1, 1)
    assert conv.adaptive_avg_pool(x, 2)[0, :, :, 0].tolist() == [[0.5, 0.5], [1.5, 1.5]]
    assert conv.adaptive_avg_pool(x[:, :1], 2)[0, :, :, 0].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_pooled_responses_of_half_precision_are_float32():
    x = jnp.full((1, 64, 64, 1), 1.001, jnp.bfloat16)
    pooled = conv.global_pool(x)
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, x[0, 0, 0, 0].astype(jnp.float32), rtol=1e-6)


def test_shuffled_channels_are_dealt_out_in_turn():
    x = jnp.array([1, 2, 3, 11, 12, 13])
    assert conv.channel_shuffle(x, 2).tolist() == [1, 11, 2, 12, 3, 13]


def test_flattened_maps_run_channel_by_channel():
    x = jnp.array([[[[1, 11], [2, 12]], [[3, 13], [4, 14]]]])
    assert conv.flatten(x).tolist() == [[1, 2, 3, 4, 11, 12, 13, 14]]


def test_padded_shortcuts_have_no_parameters():
    padded = convert.shapes(models.create("cifar_resnet32", num_classes=10))["params"]
    assert not [name for block in padded.values() for name in block if "downsample" in name]
    convolved = models.create("cifar_resnet32", num_classes=10, pad_shortcut=False)
    assert "downsample_0" in convert.shapes(convolved)["params"]["layer2_0"]


def test_only_the_blocks_of_resnet_change_their_activation():
    shapes = convert.shapes(models.create("cifar_resnet18", num_classes=10))["params"]
    assert {name for name, part in shapes.items() if "act1" in part} == {
        f"conv{stage}_x_{i}" for stage in (2, 3, 4, 5) for i in (0, 1)
    }
    assert not [name for name in shapes if name.startswith("act")]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vgg11", {"image_size": 16}, "image_size is too small"),
        ("alexnet", {"image_size": 32}, "image_size is too small"),
        ("alexnet", {"image_size": 4}, "image_size is too small"),
        ("cifar_alexnet", {"image_size": 2}, "image_size is too small"),
        ("alexnet", {"widths": (8, 8)}, "one width for each of 5"),
        ("cifar_resnet32", {"widths": (32, 16, 64)}, "16 follows 32; with pad_shortcut none"),
        ("cifar_resnet32", {"widths": (), "stage_sizes": ()}, "give each one value per stage"),
        ("cifar_mobilenet", {"widths": (), "stage_sizes": ()}, "give each one value per stage"),
        ("cifar_shufflenet", {"groups": 5}, "channels=24 is not a multiple of groups=5"),
        (
            "shufflenet_v1",
            {"widths": (241, 480, 960)},
            "features=217 is not a multiple of groups=3",
        ),
        ("cifar_shufflenet_v2", {"widths": (117, 232, 464)}, "117: each branch takes half"),
        ("cifar_shufflenet_v2", {"widths": (1, 2, 4)}, "1: each branch takes half"),
        ("resnet18", {"stage_sizes": (3, 4)}, "give each one value per stage"),
        ("cifar_mobilenet", {"widths": (8, 16)}, "give each one value per stage"),
        ("mobilenet_v2", {"strides": (1, 2)}, "give each one value per stage"),
        ("shufflenet_v1", {"stage_sizes": (4,)}, "give each one value per stage"),
        ("shufflenet_v2_x1_0", {"stage_sizes": (4,)}, "give each one value per stage"),
    ],
)
def test_sizes_that_do_not_fit_are_named(name, kwargs, message):
    model = models.create(name, num_classes=3, **kwargs)
    with pytest.raises(ModelError, match=message):
        convert.shapes(model)
