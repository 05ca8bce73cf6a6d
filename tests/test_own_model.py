"""What docs/own_model.md shows is run on eight devices and equals one device."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnrt_jax import arr

ROOT = Path(__file__).parent.parent


def block(page, marker):
    found = re.search(
        rf"<!-- {marker} -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL
    )
    assert found, marker
    return found[1]


@pytest.fixture(scope="module")
def names():
    """What the README's example leaves, and a batch that is not all ones."""
    names: dict = {}
    exec(block("README.md", "example"), names)
    x = jax.random.normal(jax.random.key(1), (16, 16))
    return names | {"x": x, "labels": jnp.arange(16) % 5}


def one_device(names):
    def loss_fn(params):
        logits, state = names["net"].apply({"params": params}, names["x"], mutable=["responses"])
        recorded = state["responses"]
        targets, after = arr.update(names["centroids"], recorded, names["labels"], momentum=0.1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, names["labels"])
        return losses.mean() + 20.0 * arr.loss(recorded, targets), after

    (loss, after), grads = jax.value_and_grad(loss_fn, has_aux=True)(names["params"])
    return loss, after, grads


def shown(names, *markers, change=lambda code: code):
    """What the step of the page gives for the batch."""
    assert jax.device_count() == 8
    names = dict(names)
    for marker in markers:
        exec(change(block("docs/own_model.md", marker)), names)
    x, labels = names["x"], names["labels"]
    if markers[-1] == "pmap":
        x, labels = x.reshape(8, 2, -1), labels.reshape(8, 2)
    return names["step"](names["params"], names["centroids"], x, labels)


def largest_difference(a, b):
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max() / jnp.abs(b).max(), a, b)
    return max(jax.tree.leaves(differences))


@pytest.mark.parametrize("markers", [("jit",), ("shard_map",), ("shard_map", "pmap")])
def test_loss_centroids_and_gradients_on_eight_devices_are_those_of_one(names, markers):
    expected, actual = one_device(names), shown(names, *markers)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected
    )


WITHOUT_CHECK = lambda code: code.replace("out_specs=P())", "out_specs=P(), check_vma=False)")
MEAN = lambda code: code.replace("return loss, centroids, grads", REDUCED.format("pmean"))
SUM = lambda code: code.replace("return loss, centroids, grads", REDUCED.format("psum"))
LOCAL = lambda code: code.replace('jax.lax.pmean(loss, "data")', "loss")
REDUCED = 'return loss, centroids, jax.lax.{}(grads, "data")'


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ([MEAN], True),
        ([SUM], False),
        ([WITHOUT_CHECK], False),
        ([WITHOUT_CHECK, MEAN], True),
        ([WITHOUT_CHECK, SUM], False),
    ],
    ids=["mean", "sum", "unchecked", "unchecked mean", "unchecked sum"],
)
def test_the_page_is_right_about_reducing_gradients_in_shard_map(names, changes, right):
    def change(code):
        for one in changes:
            assert one(code) != code
            code = one(code)
        return code

    *_, grads = shown(names, "shard_map", change=change)
    off = largest_difference(grads, one_device(names)[2])
    assert (off < 1e-5) if right else (off > 0.5)


def test_the_page_is_right_that_pmap_wants_the_mean_and_not_the_sum(names):
    sums = lambda code: code.replace("pmean(grads", "psum(grads")
    *_, grads = shown(names, "shard_map", "pmap", change=sums)
    eighth = jax.tree.map(lambda g: g / 8, grads)
    assert largest_difference(eighth, one_device(names)[2]) < 1e-5


def test_the_page_is_right_that_a_task_loss_of_each_device_is_too_large(names):
    weightless = lambda code: LOCAL(code).replace("+ 20.0 *", "+ 0.0 *")
    of_page = lambda code: code.replace("+ 20.0 *", "+ 0.0 *")
    # The loss is then another on each device, so it is no output.
    unsaid = lambda code: weightless(code).replace("return loss, centroids, grads", "return grads")
    grads = shown(names, "shard_map", change=unsaid)
    *_, right = shown(names, "shard_map", change=of_page)
    assert largest_difference(jax.tree.map(lambda g: g / 8, grads), right) < 1e-5
