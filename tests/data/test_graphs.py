import pickle

import numpy as np
import pytest

from dnrt_jax.data import graphs
from dnrt_jax.runtime.errors import DataError, DataNotFoundError


@pytest.fixture
def arrays():
    """Eight nodes, of which the last has no edges and no label."""
    return {
        "x": np.random.default_rng(0).random((8, 3), np.float32),
        "y": np.array([0, 1, 0, 1, 0, 1, 0, -1]),
        "edge_index": np.array([[0, 1], [1, 2], [2, 1], [3, 3], [4, 5], [5, 6], [0, 6]]),
        "train_mask": np.array([0, 1]),
        "valid_mask": np.array([2, 3]),
        "test_mask": np.array([4, 5]),
    }


def edges_of(graph):
    return set(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))


def test_edges_go_both_ways_once_without_loops_and_are_sorted(arrays):
    graph = graphs.prepare(arrays, "g")
    one_way = {(0, 1), (1, 2), (4, 5), (5, 6), (0, 6)}
    assert edges_of(graph) == one_way | {(b, a) for a, b in one_way}
    assert len(graph.senders) == 10
    assert (np.diff(graph.receivers) >= 0).all()


def test_self_loops_are_one_a_node(arrays):
    loops = edges_of(graphs.prepare(arrays, "g", self_loops=True)) - edges_of(
        graphs.prepare(arrays, "g")
    )
    assert loops == {(i, i) for i in range(8)}


def test_features_are_scaled_as_told(arrays):
    arrays["x"][:, 2], arrays["x"][7] = 1, 0
    scaled = graphs.prepare(arrays, "g", features="zscore").features
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-6)
    rows = graphs.prepare(arrays, "g", features="rows").features
    np.testing.assert_allclose(rows.sum(1), [1] * 7 + [0], atol=1e-6)


def test_masks_are_indices_or_booleans(arrays):
    before = graphs.prepare(arrays, "g").splits["train"]
    arrays["train_mask"] = np.isin(np.arange(8), arrays["train_mask"])
    np.testing.assert_array_equal(graphs.prepare(arrays, "g").splits["train"], before)
    arrays["train_mask"] = before.astype(np.uint64)
    np.testing.assert_array_equal(graphs.prepare(arrays, "g").splits["train"], before)


MISTAKES = {
    "an edge out of range": ({"edge_index": np.array([[0, 8]])}, "edge [[0, 8]] is not between"),
    "a negative edge": ({"edge_index": np.array([[-1, 2]])}, "edge [[-1, 2]] is not between"),
    "edges the other way round": ({"edge_index": np.zeros((2, 9), int)}, "not integers [E, 2]"),
    "no edges": ({"edge_index": np.zeros((0, 2), int)}, "a graph without edges"),
    "overlapping masks": ({"valid_mask": np.array([1, 2])}, "the masks overlap: 1 nodes"),
    "an unlabelled node in a mask": ({"test_mask": np.array([4, 7])}, "names unlabelled nodes"),
    "a node beyond the graph": ({"test_mask": np.array([4, 8])}, "test_mask names nodes beyond"),
    "a mask of fractions": ({"test_mask": np.array([4.5])}, "test_mask is float64, not indices"),
    "a mask of zeros and ones": (
        {"train_mask": np.arange(8, dtype=np.uint8) % 2},
        "train_mask is uint8[N] of 0 and 1; give bool[N] or indices of nodes",
    ),
    "an empty mask": ({"train_mask": np.zeros(0, int)}, "train_mask names no node"),
    "a feature that is not finite": (
        {"x": np.full((8, 3), np.nan, np.float32)},
        "x is not finite at 8",
    ),
    "labels of another length": ({"y": np.zeros(7, int)}, "y has 7 labels for 8 nodes"),
    "labels that are fractions": ({"y": np.zeros(8)}, "y is float64, not integers"),
    "words for features": ({"x": np.array([["a"] * 3] * 8)}, "not numbers [N, F]"),
    "one class": ({"y": np.zeros(8, int)}, "all nodes are of one class"),
    "a class without training": ({"train_mask": np.array([0])}, "no training node is of class [1]"),
}


@pytest.mark.parametrize(("change", "answer"), MISTAKES.values(), ids=MISTAKES)
def test_a_bad_graph_is_one_line_with_the_file(arrays, change, answer, tmp_path):
    np.savez(tmp_path / "g.npz", **(arrays | change))
    with pytest.raises(DataError) as error:
        graphs.load("g", tmp_path, features="raw", self_loops=False)
    assert str(error.value).startswith(f"{tmp_path / 'g.npz'}: ")
    assert answer in str(error.value)
    assert "\n" not in str(error.value)


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def objects(arrays):
    return arrays | {"x": np.array([Hostile()], object)}


def damaged(path, arrays):
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "answer"),
    [
        (lambda path, arrays: path.write_bytes(b"no zip"), "not an .npz file"),
        (lambda path, arrays: path.write_bytes(b""), "not an .npz file"),
        (lambda path, arrays: path.write_bytes(pickle.dumps(Hostile())), "not an .npz file"),
        (lambda path, arrays: damaged(path, arrays), "damaged"),
        (lambda path, arrays: np.savez(path, **objects(arrays)), "it holds pickled objects"),
        (lambda path, arrays: np.savez(path, x=arrays["x"]), "no array y, edge_index"),
    ],
)
def test_a_file_that_is_no_graph_is_one_line_and_runs_nothing(arrays, tmp_path, write, answer):
    write(tmp_path / "g.npz", arrays)
    with pytest.raises(DataError, match=answer):
        graphs.load("g", tmp_path, features="raw", self_loops=False)


def test_a_missing_graph_names_the_file_and_where_it_is_from(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"dgraphfin.npz: no such file; .* by hand"):
        graphs.load("dgraphfin", tmp_path, features="raw", self_loops=False)


def test_a_folder_for_a_graph_is_named(tmp_path):
    (tmp_path / "g.npz").mkdir()
    with pytest.raises(DataError, match=r"g\.npz cannot be read \(Is a directory\)"):
        graphs.load("g", tmp_path, features="raw", self_loops=False)


def test_the_made_up_graph_has_the_counts_it_is_told():
    arrays = graphs.synthetic(nodes=1000, edges=1200, normal=300, fraud=30)
    graph = graphs.prepare(arrays, "synthetic")
    assert arrays["edge_index"].shape == (1200, 2)
    assert np.bincount(graph.labels + 1).tolist() == [670, 300, 30]
    assert [len(graph.splits[s]) for s in graphs.SPLITS] == [230, 50, 50]


def test_sampled_neighbours_are_neighbours_and_nodes_without_any_have_none(arrays):
    graph = graphs.prepare(arrays, "g")
    edges, starts = edges_of(graph), graphs.neighbour_starts(graph)
    seeds = np.array([0, 7, 5])
    nodes, senders, receivers = graphs.sample_neighbours(
        graph.senders, starts, seeds, (4, 2), np.random.default_rng(0)
    )
    assert nodes.shape == (3 + 12 + 24,)
    assert senders.shape == receivers.shape == (36,)
    np.testing.assert_array_equal(nodes[:3], seeds)
    assert (np.diff(receivers) >= 0).all()
    real = receivers < len(nodes)
    assert {(nodes[s], nodes[r]) for s, r in zip(senders[real], receivers[real], strict=True)} <= (
        edges
    )
    degree = np.bincount(receivers[real], minlength=len(nodes))
    np.testing.assert_array_equal(degree[:3], [4, 0, 4])


def test_sampling_is_uniform(arrays):
    graph = graphs.prepare(arrays, "g")
    nodes, _, _ = graphs.sample_neighbours(
        graph.senders,
        graphs.neighbour_starts(graph),
        np.array([6]),
        (10_000,),
        np.random.default_rng(0),
    )
    drawn = np.bincount(nodes[1:], minlength=8)
    assert set(np.flatnonzero(drawn)) == {0, 5}
    assert abs(drawn[0] - 5000) < 250  # five standard deviations
