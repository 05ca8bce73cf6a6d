"""The formulations of a transformer for CPU, GPU and TPU are one function of one set of weights."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnrt_jax import models
from dnrt_jax.experiment import formulation_of
from dnrt_jax.models import attention, vit
from dnrt_jax.runtime.sharding import make_mesh
from tests.models.test_dense_raa import ZOO

QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than running
WITHIN = {"float64": 1e-12, "float32": 1e-5}


def block(formulation, **fields):
    """A block of an odd number of tokens, heads of 8 features."""
    attend = partial(attention.Attention, 2, formulation=formulation, **fields)
    return vit.Block(attend, "raa", mlp_ratio=2.0, formulation=formulation, **fields)


def drawn(module, x, *args):
    """Parameters far from their initial values."""
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(1), x, *args), x)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    draw = lambda key, leaf: jax.random.normal(key, leaf.shape, x.dtype) / 4
    return tree.unflatten(map(draw, keys, leaves))


def of(module, params, x, *args):
    """The output, and the gradients of its squares' sum."""

    def loss(params):
        y = module.apply({"params": params}, x, *args)
        return (y.astype(x.dtype) ** 2).sum(), y

    step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
    grads, y = step(params)
    return y, grads


def assert_close(ours, theirs, within):
    (y, grads), (wanted, wanted_grads) = ours, theirs
    np.testing.assert_allclose(y, wanted, rtol=0, atol=within * np.abs(wanted).max())
    # Some gradients are 0 but for rounding, as that of a bias of the keys.
    largest = max(np.abs(g).max() for g in jax.tree.leaves(wanted_grads))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=within * largest)
    jax.tree.map(close, grads, wanted_grads)


@cache
def reference(dtype):
    """(parameters, input, output and gradients) of a block, as formulated for the CPU."""
    x = jax.random.normal(jax.random.key(0), (3, 5, 16), dtype)
    params = drawn(block("cpu"), x, True)
    return params, x, of(block("cpu"), params, x, True)


@pytest.mark.parametrize("formulation", ["gpu", "tpu", "tpu5"])
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_block_is_the_same_in_every_formulation(dtype, formulation):
    with jax.enable_x64(True):
        params, x, wanted = reference(dtype)
        assert_close(of(block(formulation), params, x, True), wanted, WITHIN[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("name", ZOO)
def test_a_model_is_the_same_in_every_formulation(name, dtype):
    with jax.enable_x64(True):
        model = models.create(name, num_classes=3, **ZOO[name])
        x = jax.random.normal(jax.random.key(0), (2, model.image_size, model.image_size, 3), dtype)
        params = drawn(model, x)
        wanted = of(model, params, x)
        for formulation in ("gpu", "tpu", "tpu5"):
            ours = of(model.clone(formulation=formulation), params, x)
            assert_close(ours, wanted, WITHIN[dtype])


@pytest.fixture
def cudnn(monkeypatch):
    """cuDNN's attention by its definition, as there is no GPU; which lengths it was given."""
    given = []

    def defined(q, k, v, *, query_seq_lengths=None, key_value_seq_lengths=None, implementation):
        assert implementation == "cudnn"
        assert (query_seq_lengths is None) == (key_value_seq_lengths is None)
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0, "odd lengths are refused"
        given.append((q.shape[1], k.shape[1], key_value_seq_lengths is not None))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        if key_value_seq_lengths is not None:
            real = jnp.arange(k.shape[1]) < key_value_seq_lengths[:, None, None, None]
            logits = jnp.where(real, logits, -jnp.inf)
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)

    monkeypatch.setattr(jax.nn, "dot_product_attention", defined)
    return given


def test_a_block_with_the_attention_of_cudnn_is_the_same(monkeypatch, cudnn):
    monkeypatch.setattr(attention.MultiHead, "_cudnn", lambda self, d: self.formulation == "gpu")
    with jax.enable_x64(True):
        params, x, wanted = reference("float64")
        assert_close(of(block("gpu"), params, x, True), wanted, 1e-12)
    assert set(cudnn) == {(6, 6, True)}, "five tokens and one that is masked"


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_model_is_the_same_with_the_attention_of_cudnn(monkeypatch, cudnn, name):
    monkeypatch.setattr(attention.MultiHead, "_cudnn", lambda self, d: self.formulation == "gpu")
    with jax.enable_x64(True):
        model = models.create(name, num_classes=3, **ZOO[name])
        x = jax.random.normal(
            jax.random.key(0), (2, model.image_size, model.image_size, 3), "float64"
        )
        params = drawn(model, x)
        assert_close(of(model.clone(formulation="gpu"), params, x), of(model, params, x), 1e-12)
    assert cudnn


@pytest.mark.parametrize(
    ("fields", "is_used"),
    [
        ({"dtype": jnp.bfloat16}, True),
        ({"dtype": jnp.float16}, True),
        ({"dtype": "bfloat16"}, True),
        ({}, False),
        ({"dtype": jnp.bfloat16, "attn_drop_rate": 0.1}, False),
    ],
)
def test_cudnn_is_asked_for_what_it_can_do(cudnn, fields, is_used):
    x, rngs = jnp.ones((2, 4, 16)), {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    attend = attention.Attention(2, formulation="gpu", **fields)
    jax.eval_shape(lambda x: attend.init(rngs, x, True), x)
    assert cudnn == [(4, 4, False)] * is_used
    cudnn.clear()
    attend = attend.clone(num_heads=4)
    jax.eval_shape(lambda x: attend.init(rngs, x, True), x)
    assert not cudnn, "heads of 4 features"


class Device:
    def __init__(self, platform, capability=None, kind=""):
        self.platform, self.device_kind = platform, kind
        if capability:
            self.compute_capability = capability


@pytest.mark.parametrize(
    ("device", "formulation"),
    [
        (Device("cpu"), "cpu"),
        (Device("tpu", kind="TPU v4"), "tpu5"),
        (Device("tpu", kind="TPU v5 lite"), "tpu5"),
        (Device("tpu", kind="TPU v6 lite"), "tpu"),
        (Device("tpu", kind="TPU7x"), "tpu"),
        (Device("gpu", "9.0"), "gpu"),
        (Device("gpu", "10.0"), "gpu"),
        (Device("gpu", "7.5"), "cpu"),
        (Device("gpu", "gfx90a"), "cpu"),
    ],
)
def test_the_formulation_is_that_of_the_devices(device, formulation):
    mesh = make_mesh()
    assert formulation_of(mesh) == "cpu"

    class Mesh:
        devices = np.array([device])

    assert formulation_of(Mesh()) == formulation
