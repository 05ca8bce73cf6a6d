"""What every model promises. A new one is a line in ZOO and a line in docs/models.md."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dnrt_jax import arr, models
from dnrt_jax.runtime.errors import ModelError
from dnrt_jax.runtime.sharding import make_mesh, replicated, split

NUM_CLASSES, BATCH = 3, 16

# The fields that make each model small enough to compile in a second or two.
VIT = {"image_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1}
CAIT = {**VIT, "depth_token_only": 1, "num_heads": 2}
PVT = {
    "image_size": 8,
    "patch_size": 2,
    "embed_dims": (4, 6),
    "depths": (1, 1),
    "num_heads": (1, 2),
    "mlp_ratios": (2, 2),
    "sr_ratios": (2, 1),
}
TNT = {**VIT, "inner_dim": 4, "first_stride": 2}
VGG = {"image_size": 16, "widths": ((4,), (6, 8)), "hidden_dim": 10, "pool_size": 2}
RESNET = {"image_size": 16, "stage_sizes": (1, 1), "widths": (4, 6)}
MOBILENET_V1 = {"image_size": 16, "stage_sizes": (1, 1), "widths": (4, 6)}
MOBILENET_V2 = {
    "image_size": 16,
    "expansions": (1, 2),
    "widths": (4, 6),
    "stage_sizes": (1, 1),
    "strides": (1, 2),
    "stem_width": 4,
    "last_width": 10,
}
SHUFFLENET = {"image_size": 16, "stage_sizes": (2,), "widths": (24,), "stem_width": 6}
ALEXNET = {"image_size": 64, "widths": (4, 5, 6, 7, 8), "hidden_dim": 10, "pool_size": 1}
ZOO = {
    "vit_tiny_patch16_224": VIT,
    "vit_tiny_patch4_32": VIT,
    "deit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "deit_tiny_patch4_32": VIT,
    "cait_xxs24_224": CAIT,
    "cait_xxs24_patch4_32": CAIT,
    "pvt_tiny": PVT,
    "pvt_tiny_32": PVT,
    "tnt_s_patch16_224": TNT,
    "tnt_s_patch4_32": TNT,
    "mlp": {"image_size": 4, "embed_dim": 8, "depth": 2},
    "alexnet": ALEXNET,
    "cifar_alexnet": {**ALEXNET, "image_size": 16},
    "vgg11": VGG,
    "vgg11_bn": VGG,
    "cifar_vgg11_bn": VGG,
    "resnet18": {**RESNET, "image_size": 32},
    "cifar_resnet18": RESNET,
    "cifar_resnet32": RESNET,
    "mobilenet_v1": MOBILENET_V1,
    "cifar_mobilenet": MOBILENET_V1,
    "mobilenet_v2": MOBILENET_V2,
    "cifar_mobilenet_v2": MOBILENET_V2,
    "shufflenet_v1": {**SHUFFLENET, "image_size": 32},
    "cifar_shufflenet": SHUFFLENET,
    "shufflenet_v2_x1_0": {**SHUFFLENET, "image_size": 32, "last_width": 10},
    "cifar_shufflenet_v2": {**SHUFFLENET, "last_width": 10},
}


# Compiling is all the work here, so let XLA do little of it.
QUICK = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"] = False


class Case(NamedTuple):
    """A small model and what its training step takes."""

    model: nn.Module
    variables: dict
    images: np.ndarray
    labels: np.ndarray
    centroids: arr.Centroids


@cache
def case(model):
    variables, responses = traced(model)
    rng = np.random.default_rng(0)
    size = model.image_size

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return noise / np.sqrt(np.prod(leaf.shape[:-1]))
        return {"scale": 1.0, "var": 1.0}.get(path[-1].key, 0.0) + 0.1 * np.abs(noise)

    images = rng.standard_normal((BATCH, size, size, 3), np.float32)
    labels = rng.integers(NUM_CLASSES, size=BATCH)
    centroids = arr.init(responses, NUM_CLASSES)._replace(count=np.full(NUM_CLASSES, 5))
    return Case(model, jax.tree_util.tree_map_with_path(draw, variables), images, labels, centroids)


def traced(model):
    """The variables and the responses of a model as trees of shapes."""
    image = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
    variables = dict(jax.eval_shape(model.init, jax.random.key(0), image))
    return variables, variables.pop("responses")


def tiny(name, **kwargs):
    return case(models.create(name, num_classes=NUM_CLASSES, **ZOO[name], **kwargs))


@cache
def jitted(model):
    """variables, centroids, images, labels, key -> what training and evaluation give, by name."""

    def loss(params, variables, centroids, images, labels, key):
        logits, updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats", "responses"],
        )
        responses = updates["responses"]
        targets, centroids = arr.update(centroids, responses, labels, momentum=0.1)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        value = arr.loss(responses, targets) - log_p.mean()
        return value, {
            "responses": responses,
            "centroids": centroids,
            "batch_stats": updates.get("batch_stats", {}),
        }

    def step(variables, centroids, images, labels, key):
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(
            variables["params"], variables, centroids, images, labels, key
        )
        logits = model.apply(variables, images)
        return {"loss": value, "grads": grads, "logits": logits, **rest}

    return jax.jit(step, compiler_options=QUICK)


@cache
def outcome(model):
    """What a step gives on one device."""
    c = case(model)
    return jitted(model)(c.variables, c.centroids, c.images, c.labels, jax.random.key(0))


def image_models():
    return {name for name in models.registry() if "image_size" in models.fields(name)}


def test_the_list_holds_the_whole_zoo():
    assert ZOO.keys() == image_models()


def by_architecture():
    """Every model: on each run of the tests one of each architecture, the others with the long."""
    seen, found = set(), []
    for name in ZOO:
        architecture = type(models.create(name, num_classes=1))
        found.append(pytest.param(name, marks=pytest.mark.slow) if architecture in seen else name)
        seen.add(architecture)
    return found


def a_few(names):
    """A transformer, one of two streams and a CNN on each run of the tests."""
    usual = ("vit_tiny_patch4_32", "tnt_s_patch4_32", "cifar_resnet18")
    return [pytest.param(n, marks=[] if n in usual else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", by_architecture())
def test_logits_are_float32_of_batch_by_classes(name):
    logits = outcome(tiny(name).model)["logits"]
    assert logits.shape == (BATCH, NUM_CLASSES)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("name", by_architecture())
def test_every_gradient_is_finite_and_every_raa_parameter_gets_one(name):
    grads = traverse_util.flatten_dict(outcome(tiny(name).model)["grads"], sep="/")
    assert all(np.isfinite(g).all() for g in grads.values())
    assert [path for path, g in grads.items() if path[-2:] in ("/w", "/b") and not g.any()] == []


@pytest.mark.parametrize("name", by_architecture())
def test_evaluation_is_deterministic_and_knows_one_image_at_a_time(name):
    c = tiny(name)
    out = jitted(c.model)(
        c.variables, c.centroids, c.images[::-1], c.labels[::-1], jax.random.key(1)
    )
    np.testing.assert_allclose(
        out["logits"][::-1], outcome(c.model)["logits"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", by_architecture())
def test_eight_devices_equal_one(name):
    c = tiny(name)
    mesh = make_mesh()
    assert mesh.size == 8
    state = jax.device_put((c.variables, c.centroids), replicated(mesh))
    batch = jax.device_put((c.images, c.labels), split(mesh))
    eight = jitted(c.model)(*state, *batch, jax.random.key(0))
    for part, one in outcome(c.model).items():
        largest = max((np.abs(x).max() for x in jax.tree.leaves(one)), default=0)
        for a, b in zip(jax.tree.leaves(eight[part]), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest, err_msg=part)


@pytest.mark.parametrize("name", a_few(ZOO))
def test_bfloat16_trains_float32_parameters(name):
    exact = outcome(tiny(name).model)
    rough = outcome(tiny(name, dtype=jnp.bfloat16).model)
    assert {g.dtype for g in jax.tree.leaves(rough["grads"])} == {jnp.dtype("float32")}
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(rough["grads"]))
    assert rough["logits"].dtype == rough["loss"].dtype == jnp.float32
    assert 0 < abs(rough["loss"] - exact["loss"]) < 0.05 * abs(exact["loss"])


@pytest.mark.parametrize("name", a_few(n for n in ZOO if "remat" in models.fields(n)))
def test_repeating_the_forward_pass_changes_no_value_and_costs_nothing_when_off(name):
    c = tiny(name)
    arguments = (c.variables, c.centroids, c.images, c.labels, jax.random.key(0))
    again = jitted(c.model.clone(remat=True))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, again(*arguments), outcome(c.model))
    assert "remat" in str(again.trace(*arguments).jaxpr)
    assert "remat" not in str(jitted(c.model).trace(*arguments).jaxpr)


@pytest.mark.parametrize("name", ZOO)
def test_images_of_another_size_are_refused(name):
    c = tiny(name)
    with pytest.raises(ModelError, match=f"the model has image_size={c.model.image_size}"):
        jax.eval_shape(c.model.apply, c.variables, c.images[:, 1:])


def documented():
    """The table of docs/models.md: its rows by model, without the name."""
    lines = (Path(__file__).parents[2] / "docs" / "models.md").read_text().splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| `")]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}


def test_the_docs_hold_the_whole_zoo():
    assert documented().keys() == image_models()


@pytest.mark.parametrize("name", ZOO)
def test_sites_and_parameters_are_those_of_the_docs(name):
    raa_sites, arr_sites, j, parameters, raa_parameters = documented()[name]
    image_size = models.create(name, num_classes=1).image_size
    num_classes = 1000 if image_size == 224 else 10
    variables, responses = traced(models.create(name, num_classes=num_classes))
    params = traverse_util.flatten_dict(variables["params"])

    shifts = {path[:-1]: leaf.shape for path, leaf in params.items() if path[-1] == "w"}
    assert int(raa_sites.split(":")[0]) == len(shifts)
    assert all(len(shape) == 1 and params[*site, "b"].shape == () for site, shape in shifts.items())
    of_raa = sum(width + 1 for (width,) in shifts.values())
    assert raa_parameters == f"{of_raa:,}"
    assert parameters == f"{sum(p.size for p in params.values()) - of_raa:,}"

    widths = [r.shape[1] for r in jax.tree.leaves(responses)]
    groups = re.findall(r"(\d+)×(\d+)", arr_sites)
    assert sorted(widths) == [int(d) for n, d in groups for _ in range(int(n))]
    assert int(j) == len(widths) >= 1
