"""What a folder holds after it is closed, with an error or without, on a disk and in a bucket."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from buckets import BUCKET

from dnrt_jax.runtime import lock, storage
from dnrt_jax.runtime.errors import NonFiniteError, WorkdirError
from dnrt_jax.runtime.set_folder import SetFolder
from dnrt_jax.runtime.workdir import Workdir, best_record, read_json, read_records


@pytest.fixture
def folder(store, tmp_path):
    return storage.path(f"gs://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def taken_over(monkeypatch):
    """taken_over(folder) -> the lock of another run, which takes the folder over."""

    def take(folder):
        with monkeypatch.context() as at_once:
            at_once.setattr(lock, "STALE_SECONDS", 0)
            return lock.acquire(folder)

    return take


def test_what_was_written_is_in_the_bucket_though_no_record_was(folder):
    with Workdir(folder) as workdir:
        workdir.write_json("summary.json", {"settings": []})
    assert read_json(folder / "summary.json") == {"settings": []}
    assert storage.files(folder) == ["summary.json"]


def test_a_new_folder_is_removed_on_error_and_stays_removed(folder):
    def fail():
        with Workdir(folder) as workdir, workdir.removed_on_error():
            workdir.write_json("members.json", {})
            raise NonFiniteError("as it was")

    with pytest.raises(NonFiniteError, match="as it was"):
        fail()
    assert storage.files(folder) == []


def test_who_lost_the_folder_removes_nothing_of_it(folder, taken_over, caplog):
    def fail():
        with Workdir(folder) as workdir, workdir.removed_on_error():
            others.append(taken_over(folder))
            storage.write(folder / "checkpoints/1/manifest.json", b"theirs")
            raise NonFiniteError("as it was")

    others = []
    with pytest.raises(NonFiniteError, match="as it was"):
        fail()
    assert "in use by" in caplog.text
    assert storage.read(folder / "checkpoints/1/manifest.json") == b"theirs"
    others[0].confirm()


def test_a_tracker_that_cannot_close_keeps_no_records_and_no_lock(folder, caplog):
    def fail():
        raise ConnectionError("the tracker is gone")

    workdir = Workdir(folder)
    workdir.tracker = SimpleNamespace(log=lambda record: None, close=fail)
    workdir.rewind(0)
    workdir.record({"step": 1})
    with pytest.raises(ConnectionError, match="the tracker is gone"):
        workdir.close()
    assert read_records(folder) == [{"step": 1}]
    assert lock.NAME not in storage.files(folder)


def test_the_first_error_of_closing_is_raised_and_the_others_are_told(folder, taken_over, caplog):
    workdir = Workdir(folder)
    workdir.writer._failure = OSError(28, "No space left on device")
    other = taken_over(folder)
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="No space left"):
        workdir.close()
    assert "in use by" in caplog.text
    with pytest.raises(WorkdirError, match="in use by"):
        lock.acquire(folder)
    other.release()


def test_an_error_of_closing_a_member_does_not_replace_the_error_before(tmp_path, caplog):
    def fail():
        with SetFolder(tmp_path / "set", {"": ["seed0", "seed1"]}) as folder:
            folder.members["seed0"].writer._failure = OSError(28, "No space left on device")
            raise NonFiniteError("at step 3")

    with pytest.raises(NonFiniteError, match="at step 3"):
        fail()
    assert "No space left on device" in caplog.text
    for name in ("", "seed0", "seed1"):
        lock.acquire(tmp_path / "set" / name).release()


def test_a_process_that_writes_no_records_of_a_bucket_has_a_folder_for_profiles(folder):
    with Workdir(folder, is_main=False) as workdir:
        assert workdir.local.is_dir()
        assert not workdir.local.is_relative_to(Path())
    assert not workdir.local.exists()
    assert storage.files(folder) == []


def test_a_metric_that_is_not_a_number_is_never_the_best():
    records = [{"step": i, "test/auc": auc} for i, auc in enumerate([math.nan, 0.9, math.nan, 0.8])]
    assert (best_record(records, "auc") or {})["step"] == 1
