"""Graphs for node classification, from DATA_DIR/NAME.npz in the layout of DGraph-Fin.

Arrays: x [N, F]; y [N], classes from 0, or -1 for none; edge_index [E, 2]; train_mask, valid_mask
and test_mask, indices of labelled nodes, or bool[N]. `synthetic` is a random graph of DGraph's
size.
"""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnrt_jax.data.reading import reading
from dnrt_jax.runtime.errors import DataError, DataNotFoundError

SPLITS = ("train", "valid", "test")
KEYS = ("x", "y", "edge_index", *(f"{split}_mask" for split in SPLITS))
DGRAPH = {"nodes": 3_700_550, "edges": 4_300_999, "normal": 1_210_092, "fraud": 15_509}


class GraphData(NamedTuple):
    """A graph. Edges are symmetric, unique, and sorted by receiver."""

    features: np.ndarray  # f32[N, F]
    senders: np.ndarray  # i32[E]
    receivers: np.ndarray  # i32[E]
    labels: np.ndarray  # i32[N], in 0 .. K-1 for the nodes of the splits
    splits: dict[str, np.ndarray]  # {"train", "valid", "test": i32[n]}, disjoint
    class_names: tuple[str, ...]  # K


def load(name: str, data_dir: str | Path, *, features: str, self_loops: bool) -> GraphData:
    """Reads and checks the graph `name`.

    Args:
      features: "raw"; "rows" (normalised to sum 1 per node); "zscore" (columns standardised).
      self_loops: whether to add a self-loop to every node.

    Raises:
      DataNotFoundError: if there is no such file.
      DataError: if the file is damaged or invalid.
    """
    if name == "synthetic":
        return prepare(synthetic(), name, features=features, self_loops=self_loops)
    folder = Path(data_dir).expanduser()
    path = folder / f"{name}.npz"
    with reading(path):
        arrays = _read(path)
    return prepare(arrays, str(path), features=features, self_loops=self_loops)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise DataNotFoundError(
            f"{path}: no such file; a graph is an .npz with x, y, edge_index and the masks, in "
            "DATA_DIR or --config.data.dir (DGraph-Fin must be downloaded by hand from "
            "dgraph.xinye.com)"
        )
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path}: not an .npz file")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files if key in KEYS}
        except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            pickled = "Object arrays" in str(error)
            reason = "it holds pickled objects" if pickled else "damaged"
            raise DataError(f"{path}: {reason}") from None


def prepare(
    arrays: dict[str, np.ndarray], where: str, *, features: str = "raw", self_loops: bool = False
) -> GraphData:
    """Checks the arrays of a file and builds the graph; `where` names the file in errors.

    Raises:
      DataError: if an array is missing or invalid.
    """
    try:
        x, labels = _checked_nodes(arrays)
        edges = _checked_edges(arrays["edge_index"], len(x))
        splits = {split: _checked_split(split, arrays, labels) for split in SPLITS}
        num_classes = _checked_classes(splits, labels)
    except _Wrong as problem:
        raise DataError(f"{where}: {problem}") from None
    senders, receivers = _both_ways(edges, len(x), self_loops)
    return GraphData(
        _scaled(x, features),
        senders,
        receivers,
        labels.astype(np.int32),
        {split: nodes.astype(np.int32) for split, nodes in splits.items()},
        tuple(f"class {k}" for k in range(num_classes)),
    )


class _Wrong(Exception):
    """An invalid array; the message does not have the file name yet."""


def _check(good: bool, problem: str) -> None:
    if not good:
        raise _Wrong(problem)


def _checked_nodes(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Features f32[N, F] and labels [N]."""
    missing = [key for key in KEYS if key not in arrays]
    _check(not missing, f"no array {', '.join(missing)} in it")
    x, labels = arrays["x"], arrays["y"].reshape(-1)
    numbers = x.ndim == 2 and x.dtype.kind in "fiub"
    _check(numbers, f"x is {x.dtype}{list(x.shape)}, not numbers [N, F]")
    _check(labels.shape == (len(x),), f"y has {labels.size} labels for {len(x)} nodes")
    _check(labels.dtype.kind in "iu", f"y is {labels.dtype}, not integers")
    x = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    _check(not bad.size, f"x is not finite at {bad.size} nodes, as {bad[:1]}")
    return x, labels


def _checked_edges(edges: np.ndarray, count: int) -> np.ndarray:
    pairs = edges.ndim == 2 and edges.shape[1] == 2 and edges.dtype.kind in "iu"
    _check(pairs, f"edge_index is {edges.dtype}{list(edges.shape)}, not integers [E, 2]")
    _check(len(edges) > 0, "a graph without edges")
    out = np.flatnonzero((edges < 0).any(1) | (edges >= count).any(1))
    _check(not out.size, f"edge {edges[out[:1]].tolist()} is not between two of {count} nodes")
    return edges


def _checked_split(split: str, arrays: dict[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The nodes of a split; all must be labelled."""
    name, count = f"{split}_mask", len(labels)
    nodes = _nodes(arrays[name], count)
    _check(nodes.dtype.kind in "iu", f"{name} is {nodes.dtype}, not indices of nodes")
    _check(nodes.size > 0, f"{name} names no node")
    flags = len(nodes) == count > 2 and np.isin(nodes, (0, 1)).all()
    _check(not flags, f"{name} is {nodes.dtype}[N] of 0 and 1; give bool[N] or indices of nodes")
    inside = nodes.min() >= 0 and nodes.max() < count
    _check(inside, f"{name} names nodes beyond 0 .. {count - 1}")
    unlabelled = nodes[labels[nodes] < 0]
    _check(not unlabelled.size, f"{name} names unlabelled nodes, as {unlabelled[:1]}")
    return nodes.astype(np.int64)


def _checked_classes(splits: dict[str, np.ndarray], labels: np.ndarray) -> int:
    """The number of classes; checks that each has a training node and that splits are disjoint."""
    together = np.concatenate(list(splits.values()))
    twice = np.flatnonzero(np.bincount(together, minlength=len(labels)) > 1)
    _check(not twice.size, f"the masks overlap: {twice.size} nodes occur twice, as {twice[:1]}")
    num_classes = int(labels[together].max()) + 1
    absent = np.flatnonzero(np.bincount(labels[splits["train"]], minlength=num_classes) == 0)
    _check(not absent.size, f"no training node is of class {absent[:1]}")
    _check(num_classes > 1, "all nodes are of one class")
    return num_classes


def _nodes(mask: np.ndarray, count: int) -> np.ndarray:
    if mask.dtype == bool and mask.shape == (count,):
        return np.flatnonzero(mask)
    return mask.reshape(-1)


def _scaled(x: np.ndarray, how: str) -> np.ndarray:
    if how == "rows":
        sums = x.sum(1, keepdims=True)
        return x / np.where(sums == 0, 1, sums)
    if how == "zscore":
        std = x.std(0, dtype=np.float64)
        return ((x - x.mean(0, dtype=np.float64)) / np.where(std == 0, 1, std)).astype(np.float32)
    return x


def _both_ways(edges: np.ndarray, count: int, self_loops: bool) -> tuple[np.ndarray, np.ndarray]:
    senders, receivers = edges.astype(np.int64).T
    keys = np.concatenate([receivers * count + senders, senders * count + receivers])
    keys = keys[keys // count != keys % count]
    if self_loops:
        keys = np.concatenate([keys, np.arange(count) * (count + 1)])
    receivers, senders = np.divmod(np.unique(keys), count)
    return senders.astype(np.int32), receivers.astype(np.int32)


def synthetic(
    nodes: int = DGRAPH["nodes"],
    edges: int = DGRAPH["edges"],
    normal: int = DGRAPH["normal"],
    fraud: int = DGRAPH["fraud"],
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The arrays of a random graph, by default with DGraph-Fin's size, class balance and splits.

    For measurements of speed and memory: edges are random, and the 17 features of frauds are
    slightly shifted.
    """
    rng = np.random.default_rng(seed)
    labels = np.full(nodes, -1)
    labelled = rng.permutation(nodes)[: normal + fraud]
    labels[labelled] = np.arange(normal + fraud) < fraud
    x = rng.standard_normal((nodes, 17), np.float32) + 0.3 * (labels == 1)[:, None]
    train, valid, test = np.split(
        rng.permutation(labelled), [int(0.7 * len(labelled)), int(0.85 * len(labelled))]
    )
    return {
        "x": x.astype(np.float32),
        "y": labels,
        "edge_index": rng.integers(0, nodes, (edges, 2)),
        "train_mask": train,
        "valid_mask": valid,
        "test_mask": test,
    }


def neighbour_starts(graph: GraphData) -> np.ndarray:
    """The index of the first edge of each receiver, i64[N + 1]."""
    return np.searchsorted(graph.receivers, np.arange(len(graph.features) + 1))


def sample_neighbours(
    senders: np.ndarray,
    starts: np.ndarray,
    seeds: np.ndarray,
    fanout: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples `fanout[0]` neighbours of each seed, `fanout[1]` of each of those, and so on.

    `senders` are those of all edges, `starts` is from `neighbour_starts`. Sampling is uniform with
    replacement. The result is a tree: a node that is drawn twice occurs twice.

    Returns:
      nodes i32[n], with the seeds first; senders and receivers i32[n - B], indices into `nodes`,
      sorted by receiver. n depends only on the number of seeds and `fanout`: for nodes without
      neighbours, the entries are padding with receiver n.
    """
    layer, nodes, receivers, missing = seeds, [seeds], [], []
    offset = 0
    for width in fanout:
        degree = (starts[layer + 1] - starts[layer])[:, None]
        drawn = starts[layer][:, None] + (rng.random((len(layer), width)) * degree).astype(np.int64)
        none = np.broadcast_to(degree == 0, drawn.shape).reshape(-1)
        drawn = senders[np.minimum(drawn, len(senders) - 1)].reshape(-1)
        receivers.append(offset + np.repeat(np.arange(len(layer)), width))
        missing.append(none)
        offset += len(layer)
        layer = drawn
        nodes.append(layer)
    found = np.concatenate(nodes).astype(np.int32)
    to = np.where(np.concatenate(missing), len(found), np.concatenate(receivers))
    order = np.argsort(to, kind="stable")
    own = np.arange(len(seeds), len(found))
    return found, own[order].astype(np.int32), to[order].astype(np.int32)
