"""Fused models under `jax.shard_map`: the gradients are those of the layers on the whole batch."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dnrt_jax import models
from tests.models.test_dense_raa import VIT
from tests.models.test_formulations import QUICK, drawn
from tests.models.test_norm_raa import SMALL

MODELS = {"vit_tiny_patch4_32": VIT, "cifar_resnet18": SMALL}


@cache
def case(name):
    """(model, parameters, images, the loss's gradients layer by layer, without `jax.shard_map`)."""
    model = models.create(name, num_classes=3, **MODELS[name])
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3), "float64")
    params = drawn(model, x)
    # The mean over two halves, as each device normalises by the statistics of its own images.
    of_halves = jax.vmap(partial(loss_of, model.clone(fused=False)), (None, 0))
    whole = lambda params: jnp.mean(of_halves(params, x.reshape(2, 2, 8, 8, 3)))
    return model, params, x, jax.jit(jax.grad(whole), compiler_options=QUICK)(params)


def loss_of(model, params, x):
    """A loss that depends on the output and on all responses."""
    stats = jax.eval_shape(model.init, jax.random.key(1), x).get("batch_stats", {})
    stats = jax.tree.map(lambda stat: jnp.ones(stat.shape, stat.dtype), stats)
    variables = {"params": params, "batch_stats": stats}
    y, new = model.apply(variables, x, train=True, mutable=["batch_stats", "responses"])
    return sum((a**3).mean() for a in jax.tree.leaves((y, new["responses"])))


@pytest.mark.parametrize("formulation", ["cpu", "gpu", "tpu", "tpu5"])
@pytest.mark.parametrize("name", MODELS)
def test_two_devices_have_the_gradients_of_the_whole_batch(name, formulation):
    with jax.enable_x64(True):
        model, params, x, wanted = case(name)
        loss = partial(loss_of, model.clone(formulation=formulation))
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
        mean = lambda params, x: jax.lax.pmean(loss(params, x), "data")
        step = jax.shard_map(jax.grad(mean), mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
        grads = jax.jit(step, compiler_options=QUICK)(params, x)
        largest = max(np.abs(g).max() for g in jax.tree.leaves(wanted))
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * largest)
        jax.tree.map(close, grads, wanted)
