import hashlib
import http.server
import os
import pickle
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from making import pets, write_archive, write_folder

from dnrt_jax.data import cifar, datasets
from dnrt_jax.runtime.errors import DataError, DataNotFoundError, DownloadError

PER_BATCH = {"cifar10": 10, "cifar100": 100}
FORM_NAMES = ("binary", "python")


def arrays(name: str, batch: int):
    """Pixels uint8[N, 3072] (planes) and labels of one made-up batch; every class once."""
    rng = np.random.default_rng(batch)
    count = PER_BATCH[name]
    return rng.integers(0, 256, (count, 3072), np.uint8), rng.permutation(count)


def class_names(name: str) -> list[str]:
    return [f"class{i}" for i in range(cifar.CLASSES[name])]


def content(name: str, form: cifar.Form) -> dict[str, bytes]:
    """The files of a published form, by name."""
    coarse = name == "cifar100"
    files = {}
    for i, batch in enumerate((*form.train, *form.test)):
        pixels, labels = arrays(name, i)
        if form.names.endswith("txt"):
            columns = [labels // 5, labels] if coarse else [labels]
            files[batch] = np.c_[*columns, pixels].astype(np.uint8).tobytes()
        else:
            key = "fine_labels" if coarse else "labels"
            batch_dict = {b"data": pixels, key.encode(): labels.tolist()}
            files[batch] = pickle.dumps(batch_dict, protocol=2)
    names = class_names(name)
    if form.names.endswith("txt"):
        files[form.names] = ("\n".join(names) + "\n\n").encode()
    else:
        key = b"fine_label_names" if coarse else b"label_names"
        files[form.names] = pickle.dumps({key: [n.encode() for n in names]}, protocol=2)
    return files


def put(root, name: str, form: cifar.Form, monkeypatch, files: dict[str, bytes] | None = None):
    """The form's archive in `root`, with a checksum that is right."""
    root.mkdir(exist_ok=True)
    path = write_archive(root / form.archive, files or content(name, form), f"{form.folder}/")
    form = form._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    forms = tuple(form if f.archive == form.archive else f for f in cifar.FORMS[name])
    monkeypatch.setitem(cifar.FORMS, name, forms)
    return path


def load(root, name="cifar10", split="train"):
    return datasets.load(name, root, split, image_size=32)


def expected(name: str, batches) -> np.ndarray:
    planes = np.concatenate([arrays(name, i)[0] for i in batches]).reshape(-1, 3, 32, 32)
    return planes.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("extracted", [False, True])
@pytest.mark.parametrize("form", [0, 1], ids=FORM_NAMES)
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_every_published_form_gives_the_same_arrays(tmp_path, monkeypatch, name, form, extracted):
    form = cifar.FORMS[name][form]
    if extracted:
        write_folder(tmp_path / name / form.folder, content(name, form))
    else:
        put(tmp_path, name, form, monkeypatch)
    train, test = load(tmp_path, name), load(tmp_path, name, "test")
    batches = len(form.train)
    np.testing.assert_array_equal(train.images, expected(name, range(batches)))
    np.testing.assert_array_equal(test.images, expected(name, [batches]))
    np.testing.assert_array_equal(test.labels, arrays(name, batches)[1])
    assert train.labels.dtype == np.int32
    assert train.class_names == tuple(class_names(name))


def test_a_folder_named_cifar10_serves_as_well(tmp_path):
    write_folder(tmp_path / "cifar10", pets())
    assert load(tmp_path).class_names == ("cat", "dog")
    write_archive(tmp_path / "cifar100.tar", pets(4))
    assert load(tmp_path, "cifar100").labels.size == 8


def test_an_altered_archive_is_refused(tmp_path, monkeypatch):
    path = put(tmp_path, "cifar10", cifar.FORMS["cifar10"][0], monkeypatch)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz: SHA-256 \w{64} instead of"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("form", "file", "data", "words"),
    [
        (0, "data_batch_3.bin", None, "data_batch_3.bin is missing"),
        (0, "data_batch_3.bin", b"\0" * 3000, "data_batch_3.bin is truncated"),
        (0, "data_batch_3.bin", b"", "data_batch_3.bin is truncated"),
        (0, "data_batch_3.bin", b"\x0a" + b"\0" * 3072, r"data_batch_3.bin: label 10 outside 0..9"),
        (0, "batches.meta.txt", b"one\ntwo\n", "batches.meta.txt: 2 class names instead of 10"),
        (0, "batches.meta.txt", b"a\n" * 10, "batches.meta.txt: 1 class names instead of 10"),
        (1, "data_batch_3", b"garbage", "data_batch_3 cannot be read"),
        (1, "data_batch_3", pickle.dumps([1]), "data_batch_3 is not a dictionary"),
        (1, "data_batch_3", pickle.dumps({b"data": [1], b"labels": [1]}), "instead of uint8"),
        (1, "batches.meta", pickle.dumps({}), "batches.meta: 0 class names"),
    ],
)
def test_a_bad_file_is_named(tmp_path, form, file, data, words):
    form = cifar.FORMS["cifar10"][form]
    files = content("cifar10", form) | {file: data}
    kept = {name: data for name, data in files.items() if data is not None}
    write_folder(tmp_path / form.folder, kept)
    with pytest.raises(DataError, match=words):
        load(tmp_path)


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_nothing(tmp_path, protocol):
    form = cifar.FORMS["cifar10"][1]
    ran = tmp_path / "ran"
    hostile = {b"data": Hostile(os.mkdir, (str(ran),))}
    files = content("cifar10", form) | {"data_batch_1": pickle.dumps(hostile, protocol)}
    write_folder(tmp_path / form.folder, files)
    with pytest.raises(DataError, match="mkdir, which is no array"):
        load(tmp_path)
    assert not ran.exists()


@contextmanager
def serving(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cifar, "HOST", "http://127.0.0.1:9")


def test_what_is_missing_is_downloaded_checked_and_kept(tmp_path, monkeypatch):
    put(tmp_path / "~kriz", "cifar10", cifar.FORMS["cifar10"][0], monkeypatch)
    data_dir = tmp_path / "new" / "data"
    with serving(tmp_path) as host:
        monkeypatch.setattr(cifar, "HOST", host)
        first = load(data_dir)
    assert [path.name for path in data_dir.iterdir()] == ["cifar-10-binary.tar.gz"]
    np.testing.assert_array_equal(load(data_dir).images, first.images)


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "~kriz").mkdir()
    (tmp_path / "~kriz" / "cifar-10-binary.tar.gz").write_bytes(b"half of it")
    with serving(tmp_path) as host:
        monkeypatch.setattr(cifar, "HOST", host)
        with pytest.raises(DataError, match="SHA-256"):
            load(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    with serving(tmp_path) as host:
        monkeypatch.setattr(cifar, "HOST", host)
        with pytest.raises(DownloadError, match="broke off"):
            load(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with serving(tmp_path) as host:
        monkeypatch.setattr(cifar, "HOST", host)
        with pytest.raises(DataError, match=r"/file/data cannot be written \(Not a directory\)"):
            load(tmp_path / "file" / "data")


def test_no_data_and_no_network_names_the_three_ways(tmp_path):
    with pytest.raises(DataNotFoundError) as caught:
        load(tmp_path / "nowhere", "cifar100")
    message = str(caught.value)
    for words in ("cifar100", str(tmp_path / "nowhere"), "network", "tensorflow-datasets"):
        assert words in message
    assert "cifar-100-python.tar.gz" in message
    assert "\n" not in message
    assert not (tmp_path / "nowhere").exists()


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(cifar, "HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(cifar, "CONNECT_SECONDS", 0.2)
        start = time.monotonic()
        with pytest.raises(DataNotFoundError, match="cannot be reached"):
            load(tmp_path)
    assert time.monotonic() - start < 5
