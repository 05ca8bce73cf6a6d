"""DeiT, CaiT, PVT, TNT and the MLP: public weights, and what sets each of them apart."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import FOLDER, assert_close, load

from dnrt_jax import convert, models
from dnrt_jax.models import attention, cait, layers, pvt, tnt
from dnrt_jax.runtime.errors import ModelError

ZOO = json.loads((FOLDER / "zoo.json").read_text())
PUBLIC = [
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "cait_xxs24_224",
    "pvt_tiny",
    "tnt_s_patch16_224",
]

# Small enough to compile in seconds.
TINY = {
    "deit_tiny_patch4_32": {"image_size": 8, "embed_dim": 12, "depth": 2},
    "cait_xxs24_patch4_32": {"image_size": 8, "embed_dim": 8, "depth": 2, "depth_token_only": 1},
    "pvt_tiny_32": {
        "image_size": 4,
        "embed_dims": (4, 6),
        "depths": (1, 2),
        "num_heads": (1, 2),
        "mlp_ratios": (2, 2),
        "sr_ratios": (2, 1),
    },
    "tnt_s_patch4_32": {"image_size": 8, "embed_dim": 12, "inner_dim": 4, "depth": 2},
    "mlp": {"image_size": 4, "embed_dim": 8, "depth": 2},
}


def public_weights(name):
    """The state dict that the golden logits were computed with, in float32."""
    state_dict = {}
    for tensor, shape, is_norm_scale in ZOO[name]["tensors"]:
        bits = np.random.PCG64(zlib.crc32(tensor.encode()))
        noise = np.random.Generator(bits).standard_normal(shape)
        if tensor in ("pos_embed", "cls_token", "dist_token"):
            value = 0.2 * noise
        elif len(shape) > 1:
            value = noise / np.sqrt(np.prod(shape[1:]))
        else:
            value = 1 + 0.1 * noise if is_norm_scale else 0.02 * noise
        state_dict[tensor] = value.astype(np.float32)
    return state_dict


def randomized(tree, seed=0):
    """The tree with every leaf drawn anew, so that no gate is closed and no bias is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), tree)


def parameters(module, *args):
    """Random parameters of the module that can be called with `args`."""
    init = lambda key: module.init(key, *args)
    return randomized(jax.eval_shape(init, jax.random.key(0))["params"])


def run(module, params, *args, **kwargs):
    return jax.jit(lambda params: module.apply({"params": params}, *args, **kwargs))(params)


def tiny(name, **kwargs):
    model = models.create(name, num_classes=3, **{**TINY[name], **kwargs})
    images = jax.random.normal(jax.random.key(1), (4, model.image_size, model.image_size, 3))
    return model, parameters(model, images), images


@pytest.mark.parametrize("name", PUBLIC)
def test_public_weights_go_in_and_out_bit_for_bit(name):
    state_dict = public_weights(name)
    variables = convert.from_torch(state_dict, name, num_classes=1000, act="gelu")
    assert sum(x.size for x in jax.tree.leaves(variables)) == ZOO[name]["params"]
    back = convert.to_torch(variables)
    assert back.keys() == state_dict.keys()
    bits = lambda x: (x.shape, x.dtype, x.tobytes())
    assert all(bits(back[key]) == bits(value) for key, value in state_dict.items())


@pytest.mark.parametrize("name", PUBLIC)
def test_logits_equal_the_public_model(name):
    expected = load("zoo_logits")[name]
    size = ZOO[name]["image_size"]
    images = np.random.Generator(np.random.PCG64(11)).standard_normal((2, size, size, 3))
    variables = convert.from_torch(public_weights(name), name, num_classes=1000, act="gelu")
    model = models.create(name, num_classes=1000, act="gelu")
    logits = run(model, variables["params"], jnp.asarray(images, jnp.float32))
    assert_close(logits, expected, 5e-6)


@pytest.mark.parametrize("name", TINY)
def test_only_training_drops(name):
    rates = {"drop_rate", "attn_drop_rate", "drop_path_rate"} & set(models.fields(name))
    model, params, images = tiny(name)
    dropping = model.clone(**dict.fromkeys(rates, 0.3))
    program = lambda model: jax.jit(model.apply).lower({"params": params}, images).as_text()
    assert program(dropping) == program(model)
    train = jax.jit(
        lambda key: dropping.apply({"params": params}, images, True, rngs={"dropout": key}),
        compiler_options={"xla_backend_optimization_level": 0},  # compiling is all the work here
    )
    one, again, two = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert (one != two).any()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("deit_tiny_patch16_224", (96, 384)),
        ("cait_xxs24_224", (96, 384)),
        ("pvt_tiny", (64, 288)),
        ("tnt_s_patch16_224", (96, 384)),
        ("mlp", (8, 64)),
    ],
)
def test_other_image_sizes(name, sizes):
    for size in sizes:
        model = models.create(name, num_classes=3, image_size=size)
        images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        assert logits.shape == (2, 3)


@pytest.mark.parametrize("depth", [1, 4, 8, 12, 27])
def test_the_ramp_of_drop_path_keeps_as_many_branches_as_the_authors_linspace(depth):
    # They differ in the last bit of float64; what is kept is drawn, and scaled, in float32.
    for rate in np.arange(1000) / 1000:
        ours, theirs = layers.drop_path_rates(rate, depth), np.linspace(0, rate, depth)
        np.testing.assert_array_equal(np.float32(1 - np.array(ours)), np.float32(1 - theirs))
    assert layers.drop_path_rates(0.1, 3) == [0, 0.05, 0.1]


def test_plain_deit_is_vit():
    sizes = {**TINY["deit_tiny_patch4_32"], "num_classes": 3}
    deit = models.create("deit_tiny_patch4_32", distilled=False, **sizes)
    vit = models.create("vit_tiny_patch4_32", **sizes)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = parameters(deit, images)
    assert np.array_equal(run(deit, params, images), run(vit, params, images))


def test_talking_heads_that_stay_silent_are_plain_attention():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    talking, plain = cait.TalkingHeadsAttention(2), attention.Attention(2)
    params = parameters(plain, x, False)
    silent = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
    y = run(talking, {**params, "proj_l": silent, "proj_w": silent}, x, False)
    np.testing.assert_allclose(y, run(plain, params, x, False), atol=1e-6)


def test_spatial_reduction_by_one_is_plain_attention():
    x = jax.random.normal(jax.random.key(0), (2, 4, 8))
    reduced, plain = pvt.SpatialReductionAttention(2, sr_ratio=1), attention.Attention(2)
    params = parameters(plain, x, False)
    half = lambda part: jax.tree.map(lambda p: p[..., part], params["qkv"])
    split = {"q": half(slice(8)), "kv": half(slice(8, None)), "proj": params["proj"]}
    y = run(reduced, split, x, False)
    np.testing.assert_allclose(y, run(plain, params, x, False), atol=1e-6)


def test_class_attention_leaves_the_patch_tokens_alone():
    model, params, images = tiny("cait_xxs24_patch4_32")
    _, both = run(model, params, images, mutable=["responses"])
    alone = model.clone(depth_token_only=0)
    patches_only = {k: v for k, v in params.items() if not k.startswith("blocks_token_only")}
    _, patches = run(alone, patches_only, images, mutable=["responses"])
    assert len(patches["responses"]) == model.depth
    for name, block in patches["responses"].items():
        np.testing.assert_allclose(block["response"], both["responses"][name]["response"], 1e-5)


def test_inner_attention_stays_inside_its_patch():
    block = tnt.Block(num_heads_inner=2, num_heads=2, act="gelu")
    pixels = jax.random.normal(jax.random.key(0), (2 * 3, 4, 4))  # 2 images of 3 patches
    patches = jax.random.normal(jax.random.key(1), (2, 1 + 3, 8))
    params = parameters(block, pixels, patches, False)
    apply = jax.jit(lambda pixels: block.apply({"params": params}, pixels, patches, False))
    before, after = apply(pixels), apply(pixels.at[1].set(pixels[1, ::-1]))
    same_pixels, same_patches = (
        np.isclose(a, b, atol=1e-6).all((1, 2)).tolist() for a, b in zip(before, after, strict=True)
    )
    assert same_pixels == [True, False, True, True, True, True]
    assert same_patches == [False, True]


def test_pixel_tokens_follow_the_rows_of_their_patch():
    embed = tnt.PixelEmbed(inner_dim=1, patch_size=2, first_stride=1)
    identity = jnp.zeros((7, 7, 1, 1)).at[3, 3].set(1.0)
    params = {"proj": {"kernel": identity, "bias": jnp.zeros(1)}}
    tokens = run(embed, params, jnp.arange(16.0).reshape(1, 4, 4, 1))[..., 0]
    assert tokens.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_mlp_reads_its_features_in_the_order_of_torch():
    model, params, images = tiny("mlp", act="relu", depth=1)
    weights = convert.to_torch({"params": params})
    x = np.asarray(images).transpose(0, 3, 1, 2).reshape(4, -1)
    x = np.maximum(x @ weights["layers.0.weight"].T + weights["layers.0.bias"], 0)
    expected = x @ weights["head.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(run(model, params, images), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("deit_tiny_patch4_32", {"image_size": 30}, "multiple of patch_size=4"),
        ("deit_tiny_patch4_32", {"num_heads": 5}, "multiple of num_heads=5"),
        ("cait_xxs24_patch4_32", {"num_heads": 5}, "multiple of num_heads=5"),
        ("pvt_tiny_32", {"num_heads": (3, 2, 5, 8)}, "multiple of num_heads=3"),
        ("pvt_tiny_32", {"depths": (2, 2)}, r"depths=\(2, 2\).* one value per stage"),
        ("pvt_tiny_32", {"num_heads": 2}, "num_heads=2, .* one value per stage"),
        ("pvt_tiny_32", {"sr_ratios": (8, 4, 2, 2)}, "the last"),
        ("pvt_tiny_32", {"sr_ratios": (5, 4, 2, 1)}, "map_side=32 is not a multiple of sr_ratio=5"),
        ("pvt_tiny_32", {"image_size": 30}, "map_side=30 is not a multiple of sr_ratio=8"),
        ("tnt_s_patch4_32", {"image_size": 30}, "image_size=30 is not a multiple of patch_size=4"),
        ("tnt_s_patch4_32", {"first_stride": 3}, "patch_size=4 is not a multiple of first_stride"),
        (
            "tnt_s_patch4_32",
            {"num_heads_inner": 5},
            "inner_dim=24 is not a multiple of num_heads_inner=5",
        ),
        ("deit_tiny_patch4_32", {"mlp_ratio": 0.001}, "mlp_ratio=0.001: times 192 channels"),
        ("cait_xxs24_patch4_32", {"mlp_ratio": 0.001}, "mlp_ratio=0.001: times 192 channels"),
        ("tnt_s_patch4_32", {"mlp_ratio": 0.001}, "mlp_ratio=0.001: times 384 channels"),
        ("pvt_tiny_32", {"mlp_ratios": (0, 1, 1, 1)}, "mlp_ratio=0: times 64 channels"),
    ],
)
def test_sizes_that_do_not_fit_are_named(name, kwargs, message):
    model = models.create(name, num_classes=3, **kwargs)
    with pytest.raises(ModelError, match=message):
        convert.shapes(model)
