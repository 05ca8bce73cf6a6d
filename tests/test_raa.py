import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import assert_close, below, load

import dnrt_jax
from dnrt_jax import RAA, raa, raa_relu
from dnrt_jax import nnx as face

GOLDEN = load("raa")
FORMS = sorted({name.split("/")[0] for name in GOLDEN})


def parameters(form):
    """(w, b) of the authors' parameters, in the layout of `raa`."""
    p = below(GOLDEN, f"{form}/param")
    if "shift" in p:
        return None, p["shift"][0]
    if not p:
        return None, np.float64(0)
    w, b = p["shift_proj_weight"], p["shift_proj_bias"]
    return (w.T, b) if len(w) > 1 else (w[0], b[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-6), ("float32", 1e-4)])
def test_values_and_gradients_are_the_authors(form, dtype, relative):
    with jax.enable_x64(dtype == "float64"):
        activate = raa_relu if "2" in form or form == "ReLU" else raa
        cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)
        x, (w, b), cotangent = cast(
            (GOLDEN[f"{form}/x"], parameters(form), GOLDEN[f"{form}/cotangent"])
        )
        y, vjp = jax.vjp(activate, x, w, b)
        grad_x, grad_w, grad_b = vjp(cotangent)
    assert y.dtype == dtype
    assert_close(y, GOLDEN[f"{form}/y"], relative)
    assert_close(grad_x, GOLDEN[f"{form}/grad_x"], relative)
    wanted = below(GOLDEN, f"{form}/grad")
    if "shift" in wanted:
        assert_close(grad_b[None], wanted["shift"], relative)
    elif wanted:
        grad_w = grad_w.T if grad_w.ndim == 2 else grad_w[None]
        assert_close(grad_w, wanted["shift_proj_weight"], relative)
        assert_close(jnp.atleast_1d(grad_b), wanted["shift_proj_bias"], relative)


@pytest.fixture(scope="module")
def x():
    return 3 * jax.random.normal(jax.random.key(0), (4, 6))


def test_zero_shift_is_gelu_and_relu(x):
    w, b = jnp.zeros(6), jnp.zeros(())
    np.testing.assert_allclose(raa(x, w, b), jax.nn.gelu(x, approximate=False), atol=1e-6)
    np.testing.assert_array_equal(raa_relu(x, w, b), jax.nn.relu(x))


def test_bfloat16_is_the_float32_result_rounded(x):
    x = x.astype(jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (6,))
    for activate in (raa, raa_relu):
        y = activate(x, w, 0.3)
        assert y.dtype == jnp.bfloat16
        exact = activate(x.astype(jnp.float32), w, 0.3)
        np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("layer", [RAA(), RAA("relu"), face.RAA(4), face.RAA(4, base="relu")])
def test_integers_are_activated_as_float32(layer):
    if isinstance(layer, nn.Module):
        layer = layer.bind({"params": {"w": jnp.zeros(4), "b": jnp.zeros(())}})
    whole = jnp.array([[-2, -1, 1, 2]])
    y = layer(whole)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, layer(whole.astype(jnp.float32)))


@pytest.mark.parametrize("activate", [raa, raa_relu, lambda x, w, b: face.RAA(len(w))(x)])
@pytest.mark.parametrize("w", [jnp.zeros(5), jnp.zeros((5, 5))])
def test_a_width_that_is_not_that_of_w_is_named(x, activate, w):
    with pytest.raises(ValueError, match=r"RAA: w is \[5.*\], x is \[4, 6\]"):
        activate(x, w, 0.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_have_their_own_dtype_whatever_the_default(x, dtype):
    options = {} if dtype == jnp.float32 else {"param_dtype": dtype}
    with jax.enable_x64(True):
        linen = RAA(**options).init(jax.random.key(0), x)["params"]
        of_nnx = nnx.to_pure_dict(nnx.state(face.RAA(6, **options), nnx.Param))
    for params in (linen, of_nnx):
        assert {p.dtype for p in params.values()} == {jnp.dtype(dtype)}


def test_leading_dimensions_are_a_batch(x):
    w = jax.random.normal(jax.random.key(1), (6,))
    image = jnp.stack([x, -x]).reshape(2, 2, 2, 6)
    np.testing.assert_array_equal(raa(image, w, 0.1)[0].reshape(4, 6), raa(x, w, 0.1))


@pytest.mark.parametrize("w", [jnp.ones(6), jnp.ones((6, 6)), None])
def test_an_empty_batch_is_empty(w):
    assert raa(jnp.zeros((0, 6)), w, 0.0).shape == (0, 6)
    assert raa(jnp.zeros((2, 0, 6)), w, 0.0).shape == (2, 0, 6)


@pytest.mark.parametrize(
    ("shift", "shapes"),
    [
        ("vector", {"w": (6,), "b": ()}),
        ("scalar", {"b": ()}),
        ("element", {"w": (6, 6), "b": (6,)}),
    ],
)
@pytest.mark.parametrize("base", ["gelu", "relu"])
def test_the_layer_starts_at_zero(x, shift, shapes, base):
    layer = RAA(base=base, shift=shift)
    params = layer.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == shapes
    assert all((p == 0).all() for p in params.values())
    plain = {"gelu": raa, "relu": raa_relu}[base](x, None, 0.0)
    np.testing.assert_allclose(layer.apply({"params": params}, x), plain, atol=1e-7)


@pytest.mark.parametrize("field", ["base", "shift"])
def test_an_unknown_form_is_refused(x, field):
    with pytest.raises(ValueError, match=f"RAA.{field}='geluu'"):
        RAA(**{field: "geluu"}).init(jax.random.key(0), x)


def test_the_package_exports_the_function_not_the_file():
    assert callable(dnrt_jax.raa)
    assert list(inspect.signature(dnrt_jax.raa).parameters) == ["x", "w", "b"]
