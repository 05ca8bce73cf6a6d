import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_files import assert_close, below, load

from dnrt_jax import arr, convert, models
from dnrt_jax.runtime.errors import ModelError

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize(("file", "act"), [("vit_raa", "raa"), ("vit_raa2", "raa_relu")])
@pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-6), ("float32", 1e-4)])
def test_logits_responses_losses_and_gradients_are_the_authors(file, act, dtype, relative):
    golden = load(file)
    kwargs = TINY | {"num_classes": 7, "act": act}
    model = models.create("vit_tiny_patch4_32", **kwargs)
    labels = golden["labels"].astype(np.int32)
    weights = {name: value.astype(dtype) for name, value in below(golden, "param").items()}
    params = convert.from_torch(weights, "vit_tiny_patch4_32", **kwargs)["params"]

    def loss_fn(params):
        images = golden["images"].astype(dtype)
        logits, recorded = model.apply({"params": params}, images, mutable=["responses"])
        responses = recorded["responses"]
        targets, _ = arr.update(arr.init(responses, 7), responses, labels, momentum=0.1)
        loss_ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        loss_arr = arr.loss(responses, targets)
        values = {"logits": logits, "loss_ce": loss_ce, "loss_arr": loss_arr}
        values |= {"responses": responses, "targets": targets}
        return loss_ce + float(golden["arr_coef"]) * loss_arr, values

    with jax.enable_x64(dtype == "float64"):
        (loss, values), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    assert_close(loss, golden["loss"], relative)
    for name in ("logits", "loss_ce", "loss_arr"):
        assert_close(values[name], golden[name], relative)
    for name in ("responses", "targets"):
        blocks = [values[name][f"blocks_{i}"]["response"] for i in range(3)]
        assert_close(np.stack(blocks), golden[name], relative)
    grads = convert.to_torch({"params": grads})
    for name, wanted in below(golden, "grad").items():
        assert_close(grads[name], wanted, relative)


@pytest.mark.parametrize(("act", "count"), [("gelu", 5_362_762), ("raa", 5_371_990)])
def test_vit_tiny_has_the_parameters_of_the_reference(act, count):
    model = models.create("vit_tiny_patch4_32", num_classes=10, act=act)
    shapes = convert.shapes(model)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


OPTIONS = {
    "average pooling": {"global_pool": "avg"},
    "no class token": {"global_pool": "avg", "class_token": False},
    "norm before pooling": {"global_pool": "avg", "fc_norm": False},
    "norm after the token": {"fc_norm": True},
    "pre-norm": {"pre_norm": True},
    "no position for the class token": {"no_embed_class": True},
    "layer scale": {"init_values": 1e-5},
    "no qkv bias": {"qkv_bias": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_change_the_parameters_as_in_timm(options):
    kwargs = TINY | {"depth": 1, "num_classes": 7}
    names = lambda **extra: set(
        convert.to_torch(
            jax.tree.map(
                lambda x: np.zeros(x.shape),
                convert.shapes(models.create("vit_tiny_patch4_32", **kwargs, **extra)),
            )
        )
    )
    changed = names() ^ names(**options)
    wanted = {
        "global_pool": {"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"},
        "class_token": {"cls_token"},
        "fc_norm": {"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"},
        "pre_norm": {"patch_embed.proj.bias", "norm_pre.weight", "norm_pre.bias"},
        "no_embed_class": set(),
        "init_values": {"blocks.0.ls1.gamma", "blocks.0.ls2.gamma"},
        "qkv_bias": {"blocks.0.attn.qkv.bias"},
    }
    expected = set()
    for option in options:
        expected ^= wanted[option]
    assert changed == expected


def test_dropout_and_drop_path_act_in_training_alone():
    rates = {"drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.5}
    model = models.create("vit_tiny_patch4_32", num_classes=7, **(TINY | {"depth": 2}), **rates)
    images = jnp.ones((2, 16, 16, 3))
    variables = model.init(jax.random.key(0), images)
    run = lambda train, seed: model.apply(
        variables, images, train=train, rngs={"dropout": jax.random.key(seed)}
    )
    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert not np.allclose(run(True, 0), run(True, 1))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"global_pool": "token", "class_token": False}, "needs class_token=True"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"num_heads": 5}, "not a multiple of num_heads=5"),
        ({"image_size": 18}, "image_size=18"),
        ({"patch_size": 5}, "not a multiple of patch_size=5"),
        ({"embed_dm": 8}, "'embed_dm'; did you mean 'embed_dim'"),
        ({"act": "geluu"}, "'geluu'; did you mean 'gelu'"),
    ],
)
def test_what_cannot_be_is_named(kwargs, message):
    def build():
        model = models.create("vit_tiny_patch4_32", **(TINY | {"num_classes": 7} | kwargs))
        model.init(jax.random.key(0), jnp.ones((1, 16, 16, 3)))

    with pytest.raises(ModelError, match=message):
        build()
