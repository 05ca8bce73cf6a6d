"""A dense layer and RAA in one equals the two layers; the two layers can be had."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnrt_jax import models, raa
from dnrt_jax.models.dense_raa import _apply, dense_raa


@pytest.mark.parametrize("formulation", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(
    ("dtype", "relative"), [("float64", 1e-13), ("float32", 3e-6), ("bfloat16", 0.05)]
)
def test_values_and_gradients_are_those_of_the_layers(dtype, relative, formulation):
    with jax.enable_x64(dtype == "float64"):
        shapes = ((40, 16), (16, 32), (32,), (32,), (), (40, 32))
        keys = jax.random.split(jax.random.key(0), len(shapes))
        parameter = jnp.promote_types(dtype, jnp.float32)
        dtypes = (dtype, dtype, dtype, parameter, parameter, dtype)
        *args, g = (
            jax.random.normal(*three) / 2 for three in zip(keys, shapes, dtypes, strict=True)
        )
        layers = lambda u, kernel, bias, w, b: raa(u @ kernel + bias, w, b)
        fused = partial(dense_raa, formulation=formulation)
        (wanted, of_layers), (y, of_fused) = (jax.vjp(f, *args) for f in (layers, fused))
        for ours, theirs in zip((y, *of_fused(g)), (wanted, *of_layers(g)), strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
            assert np.abs(ours - theirs).max() <= relative * np.abs(theirs).max()


def test_the_shift_of_bfloat16_on_a_tpu_is_that_of_float32():
    shapes = ((40, 16), (16, 32), (32,), (32,), ())
    keys = jax.random.split(jax.random.key(0), len(shapes))
    u, kernel, bias, w, b = map(jax.random.normal, keys, shapes)
    layer = [x.astype(jnp.bfloat16) for x in (u, kernel, bias)]
    on_tpu, on_cpu = (_apply(*layer, w, b, formulation)[2] for formulation in ("tpu", "cpu"))
    assert on_tpu.dtype == jnp.float32
    np.testing.assert_allclose(on_tpu, on_cpu, rtol=0, atol=1e-6 * np.abs(on_cpu).max())


VIT = {"image_size": 8, "embed_dim": 12, "depth": 1}


@pytest.mark.slow
def test_a_vit_whose_layers_are_collected_is_the_same_vit():
    model = models.create("vit_tiny_patch4_32", num_classes=3, **VIT)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = model.init(jax.random.key(1), x)["params"]
    params = jax.tree.map(
        lambda p: p + 0.05 * jax.random.normal(jax.random.key(2), p.shape), params
    )

    def loss(params, collected):
        mutable = ["intermediates"] if collected else ["responses"]
        y, state = model.apply(
            {"params": params}, x, mutable=mutable, capture_intermediates=collected
        )
        assert ("'fc1'" in str(jax.tree.structure(state))) == collected
        return (y**2).sum()

    fused, apart = (jax.value_and_grad(loss)(params, collected) for collected in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), fused, apart)


ZOO = {
    "vit_tiny_patch4_32": VIT,
    "deit_tiny_patch4_32": VIT,
    "cait_xxs24_patch4_32": {**VIT, "depth_token_only": 1, "num_heads": 2},
    "pvt_tiny_32": {
        "image_size": 4,
        "embed_dims": (4, 6),
        "depths": (1, 1),
        "num_heads": (1, 2),
        "mlp_ratios": (2, 2),
        "sr_ratios": (2, 1),
    },
    "tnt_s_patch4_32": {**VIT, "inner_dim": 4},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ZOO])
def test_forward_mode_goes_through_a_transformer_that_is_not_fused(name):
    with jax.enable_x64(True):
        fused = models.create(name, num_classes=3, **ZOO[name])
        apart = fused.clone(fused=False)
        size = fused.image_size
        x = jax.random.normal(jax.random.key(0), (2, size, size, 3), "float64")
        leaves, tree = jax.tree.flatten(jax.eval_shape(fused.init, jax.random.key(1), x)["params"])
        keys = iter(jax.random.split(jax.random.key(2), 2 * len(leaves)))
        drawn = lambda: tree.unflatten(
            [jax.random.normal(next(keys), p.shape, "float64") / 4 for p in leaves]
        )
        params, direction = drawn(), drawn()
        loss = lambda model: lambda params: (model.apply({"params": params}, x) ** 2).sum()

        value, slope = jax.jvp(loss(apart), (params,), (direction,))
        (of_apart, grads), of_fused = (jax.value_and_grad(loss(m))(params) for m in (apart, fused))
        products = jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-9)
        np.testing.assert_allclose(of_apart, value, rtol=1e-12)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
        jax.tree.map(close, of_fused, (of_apart, grads))
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(loss(fused), (params,), (direction,))
