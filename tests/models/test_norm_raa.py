"""Batch norm, a shortcut and RAA in one equal the layers; the layers can be had."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnrt_jax import models, raa
from dnrt_jax.models.conv import BatchNorm
from dnrt_jax.models.norm_raa import norm_raa
from tests.models.test_formulations import QUICK

EPSILON = 1e-5
WITHIN = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.05}


def layers(x, shortcut, scale, bias, w, b):
    """(out, pooled, new averages), of today's batch norm and RAA one after the other."""
    norm = BatchNorm(use_running_average=False)
    start = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": start}
    y, new = norm.apply(variables, x.astype(scale.dtype), mutable=["batch_stats"])
    y = y if shortcut is None else y + shortcut.astype(y.dtype)
    return raa(y, w, b).astype(x.dtype), y.mean((1, 2)), new["batch_stats"]


def drawn(dtype, with_shortcut):
    """Arguments far from their initial values; the norm's input has a mean."""
    parameter = jnp.promote_types(dtype, jnp.float32)
    shapes = ((4, 6, 5, 8),) * 2 + ((8,),) * 3 + ((),)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    dtypes = (dtype,) * 2 + (parameter,) * 4
    args = [jax.random.normal(*three) for three in zip(keys, shapes, dtypes, strict=True)]
    args[0] += 1
    return [args[0], args[1] if with_shortcut else None, *(arg / 2 for arg in args[2:])]


@pytest.mark.parametrize("formulation", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("with_shortcut", [True, False])
@pytest.mark.parametrize("dtype", WITHIN)
def test_values_gradients_and_statistics_are_those_of_the_layers(dtype, with_shortcut, formulation):
    with jax.enable_x64(dtype == "float64"):
        args = drawn(dtype, with_shortcut)
        g, dpooled = jnp.cos(args[0]), jnp.sin(args[0][:, 0, 0]).astype(args[2].dtype)

        def fused(*args):
            y = norm_raa(*args, EPSILON, formulation)
            return y.out, y.pooled, {"mean": 0.1 * y.mean, "var": 0.9 + 0.1 * y.var}

        def of(function):
            def run(*args):
                outs, vjp, stats = jax.vjp(lambda *a: _split(function(*a)), *args, has_aux=True)
                return outs, vjp((g, dpooled)), stats

            return jax.jit(run, compiler_options=QUICK)(*args)

        leaves = zip(jax.tree.leaves(of(fused)), jax.tree.leaves(of(layers)), strict=True)
        for ours, theirs in leaves:
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
            assert np.abs(ours - theirs).max() <= WITHIN[dtype] * np.abs(theirs).max()


def _split(three):
    return three[:2], three[2]


SMALL = {"image_size": 8, "stage_sizes": (1, 1), "widths": (4, 6)}


@pytest.fixture(scope="module")
def both():
    """Losses of a ResNet that is fused and of one that is not, and their parameters, in float64."""
    with jax.enable_x64(True):
        fused = models.create("cifar_resnet18", num_classes=3, **SMALL)
        x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3), "float64")
        variables = jax.eval_shape(fused.init, jax.random.key(1), x)
        averages = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), variables["batch_stats"])
        leaves, tree = jax.tree.flatten(variables["params"])
        keys = jax.random.split(jax.random.key(2), len(leaves))
        draw = lambda key, p: jax.random.normal(key, p.shape, "float64") / 3
        params = tree.unflatten(map(draw, keys, leaves))

        def loss_of(model):
            def loss(params):
                given = {"params": params, "batch_stats": averages}
                mutable = ["batch_stats", "responses"]
                y, new = model.apply(given, x, train=True, mutable=mutable)
                return (y**2).sum() + sum(
                    (r**3).sum() for r in jax.tree.leaves(new["responses"])
                ), new

            return loss

        yield loss_of(fused), loss_of(fused.clone(fused=False)), params


def test_a_resnet_is_the_same_fused_and_layer_by_layer(both):
    fused, apart, params = both
    with jax.enable_x64(True):
        step = lambda loss: jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)(params)
        (grads, new), (wanted, averages) = step(fused), step(apart)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        jax.tree.map(close, new, averages)
        largest = max(np.abs(g).max() for g in jax.tree.leaves(wanted))
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * largest)
        jax.tree.map(close, grads, wanted)


@pytest.mark.slow
def test_forward_mode_goes_through_a_resnet_that_is_not_fused(both):
    fused, apart, params = both
    with jax.enable_x64(True):
        slope = jax.jvp(lambda p: apart(p)[0], (params,), (params,))[1]
        grads = jax.grad(lambda p: fused(p)[0])(params)
        products = jax.tree.map(lambda g, p: (g * p).sum(), grads, params)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-9)
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(lambda p: fused(p)[0], (params,), (params,))
