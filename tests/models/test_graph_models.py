"""Graph models against dense matrices, and the properties of a function on graphs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnrt_jax import arr, models
from dnrt_jax.data import graphs
from dnrt_jax.models.gcn import GraphConv
from dnrt_jax.models.graph import Graph, sum_neighbours
from dnrt_jax.models.graphsage import SageConv

N, F = 12, 5


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(1)
    edges = rng.integers(0, N - 1, (20, 2))  # the last node has no edges
    return {
        "x": rng.standard_normal((N, F)).astype(np.float32),
        "y": np.arange(N) % 3,
        "edge_index": edges,
        "train_mask": np.arange(6),
        "valid_mask": np.arange(6, 9),
        "test_mask": np.arange(9, N),
    }


def graph_of(arrays, nodes=range(N)):
    data = graphs.prepare(arrays, "g")
    return Graph(data.features, data.senders, data.receivers, np.array(nodes, np.int32))


def adjacency(graph):
    matrix = np.zeros((N, N))
    matrix[graph.receivers, graph.senders] = 1
    return matrix


def layer(module, graph, seed=0):
    variables = module.init(jax.random.key(seed), graph, graph.features)
    return variables["params"], module.apply(variables, graph, graph.features)


@pytest.mark.parametrize("width", [2, 9])  # narrower and wider than the input
def test_a_gcn_layer_is_the_normalised_adjacency_times_x_times_w(arrays, width):
    graph = graph_of(arrays)
    params, out = layer(GraphConv(width), graph)
    looped = adjacency(graph) + np.eye(N)
    scale = np.diag(looped.sum(1) ** -0.5)
    expected = scale @ looped @ scale @ graph.features @ params["Dense_0"]["kernel"]
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("width", [2, 9])
def test_a_graphsage_layer_adds_the_mean_of_the_neighbours(arrays, width):
    graph = graph_of(arrays)
    params, out = layer(SageConv(width), graph)
    matrix = adjacency(graph)
    mean = matrix @ graph.features / np.maximum(matrix.sum(1, keepdims=True), 1)
    own, neighbours = params["own"], params["neighbours"]
    expected = graph.features @ own["kernel"] + own["bias"] + mean @ neighbours["kernel"]
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.fixture(scope="module", params=["gcn", "graphsage"])
def network(request, arrays):
    """apply(graph) -> logits, of a network whose RAA shifts are not zero."""
    model = models.create(request.param, num_classes=3, act="raa", embed_dim=8, depth=3)
    variables = model.init(jax.random.key(0), graph_of(arrays))
    params = jax.tree.map(lambda x: x + 0.1, variables["params"])
    return lambda graph, **kwargs: model.apply({"params": params}, graph, **kwargs)


def test_a_hub_in_half_precision_adds_all_of_its_neighbours():
    """Added in bfloat16, ones would end at 256."""
    count = 4001
    leaves = np.arange(1, count, dtype=np.int32)
    hub = np.zeros_like(leaves)
    total = sum_neighbours(
        Graph(np.ones((count, 2)), leaves, hub, hub[:1]), jnp.ones((count, 2), jnp.bfloat16)
    )
    assert total.dtype == jnp.bfloat16
    assert total[0].tolist() == [4000, 4000]


def test_renaming_the_nodes_renames_the_logits(network, arrays):
    new = np.random.default_rng(0).permutation(N)  # node i becomes new[i]
    old = np.argsort(new)
    renamed = arrays | {"x": arrays["x"][old], "edge_index": new[arrays["edge_index"]]}
    logits = network(graph_of(arrays))
    np.testing.assert_allclose(network(graph_of(renamed))[new], logits, rtol=1e-5, atol=1e-5)
    assert np.ptp(logits, axis=0).min() > 1e-2


def test_the_order_and_direction_of_edges_do_not_matter(network, arrays):
    order = np.random.default_rng(0).permutation(len(arrays["edge_index"]))
    other = arrays | {"edge_index": arrays["edge_index"][order][:, ::-1]}
    np.testing.assert_allclose(network(graph_of(other)), network(graph_of(arrays)), atol=1e-5)
    graph = graph_of(arrays)
    within = np.lexsort((-graph.senders, graph.receivers))  # reversed within each receiver
    turned = graph._replace(senders=graph.senders[within], receivers=graph.receivers[within])
    np.testing.assert_allclose(network(turned), network(graph), atol=1e-5)


def test_only_the_nodes_asked_about_answer_and_are_recorded(network, arrays):
    everywhere = network(graph_of(arrays))
    asked = graph_of(arrays, [4, 1])
    logits, state = network(asked, mutable=["responses"])
    np.testing.assert_allclose(logits, everywhere[np.array([4, 1])], atol=1e-6)
    responses = jax.tree.leaves(state["responses"])
    assert [r.shape for r in responses] == [(2, 8), (2, 8)]  # J = depth - 1
    centroids = arr.init(state["responses"], num_classes=3)
    labels = np.array([1, 1])
    _, centroids = arr.update(centroids, state["responses"], labels, momentum=0.1)
    assert centroids.count.tolist() == [0, 2, 0]


def test_a_receiver_beyond_the_graph_is_no_edge(network, arrays):
    graph = graph_of(arrays)
    padded = graph._replace(
        senders=np.append(graph.senders, np.int32(3)),
        receivers=np.append(graph.receivers, np.int32(N)),
    )
    np.testing.assert_array_equal(network(padded), network(graph))


def test_all_neighbours_sampled_equal_the_whole_graph(arrays):
    """A sample that happens to have each neighbour once, as a tree, gives the graph's logits."""
    data = graphs.prepare(arrays | {"edge_index": np.array([[0, 1], [2, 3], [4, 5]])}, "g")
    model = models.create("graphsage", num_classes=3, act="raa", embed_dim=8, depth=3)
    seeds = np.array([0, 3, 4, 11])
    whole = Graph(data.features, data.senders, data.receivers, seeds)
    variables = model.init(jax.random.key(0), whole)
    nodes, senders, receivers = graphs.sample_neighbours(
        data.senders, graphs.neighbour_starts(data), seeds, (1, 1, 1), np.random.default_rng(0)
    )
    part = Graph(data.features[nodes], senders, receivers, np.arange(4, dtype=np.int32))
    logits = model.apply(variables, part)
    np.testing.assert_allclose(logits, model.apply(variables, whole), atol=1e-6)
