"""Paths on disk and in a bucket, and what a faulty connection to a bucket does to them."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from buckets import BUCKET, Fault

from dnrt_jax.runtime import bucket, storage
from dnrt_jax.runtime.errors import StorageError


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """An empty folder."""
    if request.param == "disk":
        return tmp_path
    request.getfixturevalue("store")
    return storage.path(f"gs://{BUCKET}/{tmp_path.name}")


def test_a_folder_is_written_listed_read_and_deleted(place):
    storage.make_folder(place / "b")
    for name in ("a", "b/c"):
        storage.write(place / name, b"first")
        storage.write(place / name, name.encode())
    assert storage.files(place) == ["a", "b/c"]
    assert storage.read(place / "b/c") == b"b/c"
    assert storage.is_dir(place / "b")
    assert not storage.is_dir(place / "a")
    assert storage.is_file(place / "a")
    assert not storage.is_file(place / "b")
    storage.remove_folder(place / "b")
    storage.remove_folder(place / "b")
    assert storage.files(place) == ["a"]
    storage.remove_file(place / "a")
    storage.remove_file(place / "a")
    assert storage.files(place) == []
    with pytest.raises(FileNotFoundError):
        storage.read(place / "b/c")
    assert storage.files(place / "none") == []


@pytest.mark.parametrize("text", ["gs://", "s3://a/b", "http://a/b"])
def test_another_url_is_refused(text):
    with pytest.raises(StorageError, match=r"give a local path or gs://BUCKET/PATH"):
        storage.path(text)


def test_a_folder_on_disk_needs_no_client_of_buckets(tmp_path):
    code = (
        "import sys\n"
        "from dnrt_jax.runtime.workdir import Workdir, read_records\n"
        f"with Workdir({str(tmp_path / 'run')!r}) as workdir:\n"
        "    workdir.rewind(0)\n"
        "    workdir.record({'step': 1})\n"
        "assert read_records(workdir.path) == [{'step': 1}]\n"
        "print([name for name in ('gcsfs', 'fsspec', 'aiohttp') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


PASSING = [
    Fault("status", "POST /upload|alt=media", 2, 429),
    Fault("status", "POST /upload|alt=media", 3, 503),
    Fault("slow", "POST /upload|alt=media", 2, 0.2),
    Fault("cut upload", "POST /upload"),
    Fault("cut download", "alt=media"),
    Fault("shorten download", "alt=media"),
    Fault("wrong byte up", "POST /upload"),
    Fault("wrong byte down", "alt=media"),
    Fault("lose answer", "POST /upload"),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind} {fault.value:g}")
def test_a_fault_that_passes_is_not_seen(store, impatient, fault):
    path = storage.path(f"gs://{BUCKET}/passing")
    store.faults.append(Fault(fault.kind, fault.request, fault.times, fault.value))
    content = bytes(range(256)) * 100
    storage.write(path, content)
    assert storage.read(path) == content
    assert store.faults[0].times == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("status", value=403), "no permission; the account needs the role Storage Object"),
        (Fault("status", value=401), "no credentials .*; run: gcloud auth application-default"),
        (Fault("status", value=503), "does not answer as it should"),
        (Fault("wrong byte up"), "arrives damaged, 3 times"),
        (Fault("cut upload"), "does not answer as it should"),
    ],
    ids=lambda x: x if isinstance(x, str) else f"{x.kind} {x.value:g}",
)
def test_a_fault_that_stays_is_one_line_with_the_name(store, impatient, fault, said):
    path = storage.path(f"gs://{BUCKET}/staying")
    store.faults.append(Fault(fault.kind, "POST /upload", 1000, fault.value))
    with pytest.raises(StorageError, match=f"gs://{BUCKET}/staying: .*{said}") as error:
        storage.write(path, b"some bytes")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["wrong byte down", "shorten download"])
def test_a_download_that_stays_damaged_is_refused(store, kind):
    path = storage.path(f"gs://{BUCKET}/down")
    storage.write(path, b"some bytes")
    store.faults.append(Fault(kind, "alt=media", 1000))
    with pytest.raises(StorageError, match=f"gs://{BUCKET}/down: arrives damaged, 3 times"):
        storage.read(path)


@pytest.mark.parametrize(
    "use", [storage.is_dir, lambda path: storage.write(path, b"x")], ids=["list", "write"]
)
def test_a_bucket_that_does_not_exist_is_named(store, use):
    with pytest.raises(StorageError, match=r"gs://nowhere: no such bucket; make it: gcloud"):
        use(storage.path("gs://nowhere/run"))


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_an_upload_that_stalls_is_repeated(store, monkeypatch):
    monkeypatch.setattr(bucket, "WRITE_SECONDS", 2)
    monkeypatch.setattr(bucket, "SPEED", 1e9)
    path, content = storage.path(f"gs://{BUCKET}/stalled"), bytes(2**25)  # more than sockets take
    store.faults.append(Fault("stall upload", "POST /upload", 1, 60))
    start = time.monotonic()
    storage.write(path, content)
    assert time.monotonic() - start < 30
    assert storage.read(path) == content


def test_an_upload_that_always_stalls_is_refused(store):
    store.faults.append(Fault("stall upload", "POST /upload", 3, 60))
    with pytest.raises(StorageError, match=r"gs://bucket/stalled: does not arrive in 0 s, 3 times"):
        bucket.write(BUCKET, "stalled", b"some bytes", seconds=0.2)


def test_a_listing_has_all_pages(store, monkeypatch):
    for i in range(5):
        bucket.write(BUCKET, f"pages/{i}", b"x")
    ask = bucket._store().call
    paged = lambda *args, maxResults=None, **kwargs: ask(*args, maxResults=2, **kwargs)
    monkeypatch.setattr(bucket, "_store", lambda: SimpleNamespace(call=paged))
    assert [key for key, _ in bucket.listing(BUCKET, "pages/")] == [f"pages/{i}" for i in range(5)]


def test_a_condition_that_does_not_hold_is_told(store):
    written = bucket.write(BUCKET, "condition", b"1", "0")
    with pytest.raises(FileExistsError):
        bucket.write(BUCKET, "condition", b"2", "0")
    bucket.write(BUCKET, "condition", b"3", written.generation)
    assert bucket.read(BUCKET, "condition") == b"3"
    bucket.delete(BUCKET, "condition", written.generation)
    assert bucket.read(BUCKET, "condition") == b"3"
