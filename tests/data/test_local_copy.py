"""Data sets in a bucket are copied to the disk once, whole, and as far as there is room."""

import multiprocessing
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from buckets import BUCKET, Fault
from making import pets, write_archive

from dnrt_jax.data import datasets, local_copy
from dnrt_jax.runtime import bucket, storage
from dnrt_jax.runtime.errors import DataError, DataNotFoundError


@pytest.fixture
def source(store, tmp_path, monkeypatch):
    """A folder for data sets in a bucket; copies lie below tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local_copy.of.cache_clear()
    yield storage.path(f"gs://{BUCKET}/{tmp_path.name}")
    while local_copy._in_use:
        local_copy._in_use.pop().close()


def put(source, files):
    for name, data in files.items():
        storage.write(source / name, data)


def load(source, name="pets", split="train"):
    folder = datasets.local_dir(name, str(source))
    return datasets.load(name, folder, split, image_size=6)


def downloads(store):
    return [request for request in store.requests if "alt=media" in request]


def test_an_image_folder_is_copied_once_and_read(source, store, tmp_path):
    put(source, {f"pets/{name}": data for name, data in pets().items()})
    put(source, {"pets2/train/cat/0.png": b"another data set", "pets.md": b"not one"})
    dataset = load(source)
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset) == 6
    assert len(downloads(store)) == 12
    local_copy.of.cache_clear()  # as another process
    assert len(load(source, split="test")) == 6
    assert len(downloads(store)) == 12


def test_an_archive_and_a_graph_are_found(source, tmp_path):
    archive = write_archive(tmp_path / "pets.tar", pets())
    put(source, {"pets.tar": archive.read_bytes(), "graph.npz": b"x"})
    np.testing.assert_array_equal(load(source).labels, [0, 0, 0, 1, 1, 1])
    assert (datasets.local_dir("graph", str(source)) / "graph.npz").read_bytes() == b"x"


def test_nothing_there_names_the_bucket(source):
    with pytest.raises(DataNotFoundError, match=f"data.name=pets: nothing found in {source}: exp"):
        load(source)


def test_what_changed_in_the_bucket_is_copied_again_and_the_rest_is_not(source, store):
    put(source, {f"pets/{name}": data for name, data in pets().items()})
    load(source)
    storage.remove_file(source / "pets/train/cat/0.png")
    put(source, {"pets/train/cat/1.png": pets()["train/dog/1.png"]})
    store.requests.clear()
    local_copy.of.cache_clear()
    assert len(load(source)) == 5
    assert len(downloads(store)) == 1


def test_an_interrupted_copy_goes_on_where_it_was(source, store, impatient, monkeypatch):
    monkeypatch.setattr(bucket, "PIECE", 1000)
    content = np.random.default_rng(0).bytes(9500)
    put(source, {"big.npz": content})
    store.faults += [Fault("none", "alt=media", 5), Fault("status", "alt=media", 6, 403)]
    with pytest.raises(OSError, match="no permission"):
        datasets.local_dir("big", str(source))
    store.faults.clear()
    store.requests.clear()
    folder = datasets.local_dir("big", str(source))
    assert (folder / "big.npz").read_bytes() == content
    assert len(downloads(store)) == 5
    assert sorted(p.name for p in folder.iterdir()) == [local_copy.INDEX, "big.npz"]


@pytest.mark.parametrize("kind", ["wrong byte down", "cut download", "shorten download"])
def test_a_faulty_download_is_repeated(source, store, impatient, kind):
    put(source, {"big.npz": bytes(range(200))})
    store.faults.append(Fault(kind, "alt=media"))
    folder = datasets.local_dir("big", str(source))
    assert (folder / "big.npz").read_bytes() == bytes(range(200))


def test_processes_of_a_host_copy_once(source, store):
    put(source, {f"pets/{name}": data for name, data in pets().items()})
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        first, second = pool.starmap(datasets.local_dir, [("pets", str(source))] * 2, chunksize=1)
    assert first == second
    assert len(downloads(store)) == 12


def test_room_is_made_of_what_is_not_in_use_or_the_line_says_how_much_is_missing(
    source, monkeypatch
):
    put(source, {"old.npz": bytes(600), "used.npz": bytes(600), "new.npz": bytes(700)})
    old, used = (datasets.local_dir(name, str(source)) for name in ("old", "used"))
    local_copy._in_use[-2].close()  # as if its process had ended

    def usage(path):
        used = sum(p.stat().st_size for p in old.parent.rglob("*.npz"))
        return SimpleNamespace(total=2000, free=2000 - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    datasets.local_dir("new", str(source))
    assert not old.exists()
    assert used.exists()
    put(source, {"large.npz": bytes(1900)})
    with pytest.raises(DataError, match=r"1\.9e-06 GB do not fit in .*; set XDG_CACHE_HOME"):
        datasets.local_dir("large", str(source))
