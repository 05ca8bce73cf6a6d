"""The diagnostics of responses are their definitions, whatever the batches."""

import jax
import numpy as np
import pytest

from dnrt_jax import arr
from dnrt_jax.training import diagnostics

K, D, N = 4, 6, 60


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K - 1, N).astype(np.int32)  # the last class never occurs
    x = rng.standard_normal((N, D)) + 2 * labels[:, None] + 5
    responses = {"blocks_0": {"response": x.astype(np.float32)}}
    other = {"blocks_1": {"response": (x * 3).astype(np.float32)}}
    start = arr.init(responses | other, K)
    _, centroids = arr.update(start, responses | other, labels, momentum=0.3)
    return centroids, responses | other, labels


def figures(data, size):
    centroids, responses, labels = data
    added = {}
    for start in range(0, N, size):
        rows = np.arange(start, start + size)
        part = jax.tree.map(lambda x, rows=rows: x[np.minimum(rows, N - 1)], responses)
        found = diagnostics.sums(centroids, part, part, labels[np.minimum(rows, N - 1)], rows < N)
        added = {k: added.get(k, 0) + np.asarray(v, np.float64) for k, v in found.items()}
    return diagnostics.summary(added, np.bincount(labels, minlength=K))


def test_they_are_their_definitions(data):
    centroids, responses, labels = data
    x = responses["blocks_0"]["response"].astype(np.float64)
    means = np.stack([x[labels == k].mean(0) if (labels == k).any() else x[0] for k in range(K)])
    values = figures(data, N)
    name = lambda figure: f"responses/blocks_0/{figure}"
    within = np.sqrt(np.square(x - means[labels]).mean())
    between = np.sqrt(np.square(means[labels] - x.mean(0)).mean())
    running = np.asarray(centroids.mean["blocks_0"]["response"], np.float64)[: K - 1]
    nearest = np.square(x[:, None] - running).sum(-1).argmin(1)
    expected = {
        "norm": np.sqrt(np.square(x).mean(1)).mean(),
        "within": within,
        "between": between,
        "ratio": within / between,
        "probe": (nearest == labels).mean(),
    }
    for figure, value in expected.items():
        assert values[name(figure)] == pytest.approx(value, rel=1e-5), figure


def test_a_layer_of_several_responses_is_told_by_their_names():
    x = np.ones((2, D))
    responses = {"block": {"first": x, "second": x}, "head": {"response": x}, "response": x}
    names = ["block/first", "block/second", "head", "response"]
    assert diagnostics.layer_names(responses) == names


def test_batches_add_up_and_padding_counts_nothing(data):
    whole = figures(data, N)
    assert figures(data, 16) == pytest.approx(whole, rel=1e-5)


def test_a_scale_moves_the_sizes_and_neither_ratio_nor_probe(data):
    values = figures(data, N)
    for figure, factor in (("norm", 3), ("within", 3), ("between", 3), ("ratio", 1), ("probe", 1)):
        small, large = (values[f"responses/blocks_{i}/{figure}"] for i in (0, 1))
        assert large == pytest.approx(factor * small, rel=1e-5), figure


def test_responses_that_are_close_to_each_other_and_far_from_zero_tell_their_class(data):
    labels = data[2]
    direction = np.random.default_rng(1).standard_normal((K, D))
    x = {"blocks_0": {"response": (1000 + 0.01 * direction[labels]).astype(np.float32)}}
    _, centroids = arr.update(arr.init(x, K), x, labels, momentum=1.0)
    assert figures((centroids, x, labels), N)["responses/blocks_0/probe"] == 1


def test_equal_responses_have_no_spread_and_no_nan(data):
    centroids, responses, labels = data
    same = jax.tree.map(np.ones_like, responses)
    found = diagnostics.sums(centroids, same, same, labels, np.ones(N, bool))
    values = diagnostics.summary(found, np.bincount(labels, minlength=K))
    # The root of a difference of float32 sums, each of about 1.
    assert values["responses/blocks_0/within"] == pytest.approx(0, abs=1e-2)
    assert all(np.isfinite(value) for value in values.values())
