"""The NNX face equals the Linen one, and its example trains."""

import inspect
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dnrt_jax
from dnrt_jax import arr
from dnrt_jax import nnx as face

D = 5


@pytest.mark.parametrize("base", ["gelu", "relu"])
@pytest.mark.parametrize("shift", ["vector", "scalar", "element"])
def test_values_and_gradients_are_those_of_linen(base, shift):
    x = jax.random.normal(jax.random.key(0), (3, 2, D))
    linen, layer = dnrt_jax.RAA(base, shift), face.RAA(D, base=base, shift=shift, rngs=nnx.Rngs(0))
    params = linen.init(jax.random.key(0), x)["params"]
    zero = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    assert jax.tree.map(lambda p: (p.shape, p.dtype, p.any().item()), zero) == jax.tree.map(
        lambda p: (p.shape, p.dtype, False), params
    )
    params = jax.tree.map(lambda p: p + jax.random.normal(jax.random.key(1), p.shape) / 3, params)
    nnx.update(layer, params)

    squares = lambda y: (y**2).sum()
    value, grads = jax.value_and_grad(lambda p: squares(linen.apply({"params": p}, x)))(params)
    same, of_nnx = nnx.value_and_grad(lambda layer: squares(layer(x)))(layer)
    np.testing.assert_array_equal(same, value)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(of_nnx), grads)


def test_zero_shift_is_gelu():
    x = jnp.linspace(-3, 3, D)
    np.testing.assert_allclose(face.RAA(D)(x), nn.gelu(x, approximate=False), atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"base": "elu"}, "base"), ({"shift": 0}, "shift")]
)
def test_an_unknown_form_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=f"RAA.{message}=.*choose"):
        face.RAA(D, **kwargs)


def test_responses_are_a_tree_by_module_and_name_and_leave_the_model():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(D, D, rngs=rngs) for _ in range(2)])

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
                face.record(layer, x)
            face.record(self, x.mean(0, keepdims=True), "mean")
            return x

    net = Net(nnx.Rngs(0))
    y = net(jnp.ones((4, D)))
    found = face.responses(net)
    assert jax.tree.map(jnp.shape, found) == {
        "layers": {0: {"response": (4, D)}, 1: {"response": (4, D)}},
        "mean": (1, D),
    }
    np.testing.assert_array_equal(found["layers"][1]["response"], y)
    assert face.responses(net) == {}


def test_a_response_replaces_no_layer():
    layer = nnx.Linear(D, D, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Linear\.kernel exists"):
        face.record(layer, jnp.ones((4, D)), "kernel")


def test_record_and_module_are_of_one_framework():
    layer, x = nnx.Linear(D, D, rngs=nnx.Rngs(0)), jnp.ones((4, D))
    with pytest.raises(TypeError, match=r"Linear is no flax\.linen\.Module; take dnrt_jax\.nnx\."):
        dnrt_jax.record(layer, x)  # pyright: ignore
    with pytest.raises(TypeError, match=r"Dense is no nnx\.Module; take dnrt_jax\.record"):
        face.record(nn.Dense(D), x)  # pyright: ignore


def test_the_example_of_the_docstring_trains_with_arr():
    doc = inspect.getdoc(face) or ""
    code = textwrap.dedent(doc.split("\n\n", 1)[1])
    labels = jnp.arange(16) % 4
    x = 3 * jax.nn.one_hot(labels, 16) + jax.random.normal(jax.random.key(0), (16, 16))
    names = {
        "arr": arr,
        "jax": jax,
        "nnx": nnx,
        "optax": optax,
        "RAA": face.RAA,
        "record": face.record,
        "responses": face.responses,
        "x": x,
        "labels": labels,
    }
    exec(code, names)
    net = names["net"]
    assert np.isfinite(names["loss"])
    assert (names["centroids"].count[:4] == 50 * 4).all()
    assert net.act.w[...].any()
    assert net.act.b[...] != 0
    assert (net(x).argmax(1) == labels).all()
