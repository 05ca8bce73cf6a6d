"""One run, one folder: the lock in a bucket, and what the loser of it may still do."""

import json
import subprocess
import sys
import threading

import jax.numpy as jnp
import pytest
from buckets import BUCKET, Fault

from dnrt_jax.runtime import lock, spool, storage
from dnrt_jax.runtime.errors import WorkdirError
from dnrt_jax.runtime.workdir import Workdir, read_records


@pytest.fixture
def folder(store, tmp_path):
    return storage.path(f"gs://{BUCKET}/{tmp_path.name}")


def leave(folder, machine, pid, owner="process 7 on another"):
    """The lock of a run that did not release it."""
    content = {"owner": owner, "machine": machine, "pid": pid, "id": "theirs"}
    storage.write(folder / lock.NAME, json.dumps(content).encode())


def dead():
    return subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1).stdout


def test_a_second_run_is_refused_until_the_first_releases(folder):
    first = lock.acquire(folder)
    with pytest.raises(WorkdirError, match=rf"--workdir={folder}: in use by process \d+ on .*ago"):
        lock.acquire(folder)
    first.beat()
    first.confirm()
    first.release()
    lock.acquire(folder).release()
    assert storage.files(folder) == []


def test_a_dead_process_of_this_machine_holds_nothing(folder):
    leave(folder, lock._machine(), int(dead()))
    lock.acquire(folder).release()


def test_another_machine_holds_it_until_its_heartbeat_is_old(folder, monkeypatch):
    leave(folder, "another", int(dead()))
    with pytest.raises(WorkdirError, match="in use by process 7 on another"):
        lock.acquire(folder)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0)
    lock.acquire(folder).release()


@pytest.mark.parametrize("left", ["process 7 on another\n", "\n", "[7]", "{}", "\xff"])
def test_a_lock_copied_from_a_disk_goes_stale(folder, monkeypatch, left):
    storage.write(folder / lock.NAME, left.encode("latin1"))
    with pytest.raises(WorkdirError, match=r"in use by an unknown owner, \d+ s ago; choose"):
        lock.acquire(folder)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0)
    lock.acquire(folder).release()


def test_a_folder_goes_to_a_bucket_and_back_with_its_lock(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 0)
    for source, target in (tmp_path / "run", folder), (folder / "run", tmp_path / "back"):
        held = lock.acquire(source)
        content = storage.read(source / lock.NAME)
        held.release()
        storage.make_folder(target)
        storage.write(target / lock.NAME, content)
        lock.acquire(target).release()
        if not storage.is_remote(source):
            assert storage.read(source / lock.NAME) == b""


def test_a_deleted_lock_is_told(folder):
    held = lock.acquire(folder)
    storage.remove_file(folder / lock.NAME)
    for what in (held.confirm, held.beat):
        with pytest.raises(WorkdirError, match=r"its \.lock was deleted, .*; give the same"):
            what()


def test_the_loser_notices_and_leaves_the_winner_alone(folder, monkeypatch):
    loser = lock.acquire(folder)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0)
    winner = lock.acquire(folder)
    for what in (loser.confirm, loser.beat):
        with pytest.raises(WorkdirError, match="in use by"):
            what()
    loser.release()
    winner.confirm()
    winner.beat()


def test_of_many_that_take_over_at_once_one_wins(folder, monkeypatch):
    leave(folder, "another", 1)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0)
    started, won, lost = threading.Barrier(5), [], []
    free = lock.ObjectLock._free_generation

    def together(self):
        generation = free(self)
        started.wait(10)
        return generation

    monkeypatch.setattr(lock.ObjectLock, "_free_generation", together)

    def take():
        try:
            won.append(lock.acquire(folder))
        except WorkdirError as error:
            lost.append(error)

    threads = [threading.Thread(target=take) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 4)
    won[0].confirm()


def test_an_answer_that_is_lost_loses_no_lock(folder, store, impatient):
    store.faults.append(Fault("lose answer", "POST /upload"))
    held = lock.acquire(folder)
    store.faults.append(Fault("lose answer", "POST /upload"))
    held.beat()
    held.confirm()
    held.beat()


def test_records_are_in_the_bucket_before_the_manifest(folder, store):
    with Workdir(folder) as workdir:
        workdir.rewind(0)
        workdir.record({"step": 1, "train/loss": 2.0})
        workdir.writer.save({"w": jnp.ones(2)}, 1, config="{}", extra={}, newest=1, best=None)
        workdir.writer.wait()
        assert read_records(folder) == [{"step": 1, "train/loss": 2.0}]
        written = [request for request in store.requests if "POST /upload" in request]
        order = [next(i for i, r in enumerate(written) if n in r) for n in ("metrics", "manifest")]
        assert order == sorted(order)
    assert lock.NAME not in storage.files(folder)


@pytest.fixture
def taken(folder, monkeypatch):
    """The folder of a run, opened, that another run has taken over since."""
    workdir = Workdir(folder)
    workdir.rewind(0)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0)
    lock.acquire(folder)
    yield workdir
    with pytest.raises(WorkdirError, match="in use by"):
        workdir.close()


def test_who_lost_the_folder_writes_nothing_more(folder, taken):
    before = storage.crc32c(folder)
    taken.record({"step": 1})
    taken.writer.save({"w": jnp.ones(2)}, 1, config="{}", extra={}, newest=1, best=None)
    with pytest.raises(WorkdirError, match="in use by"):
        taken.writer.wait()
    assert storage.crc32c(folder) == before


def test_a_lost_lock_is_raised_at_the_next_step(taken):
    taken.check()
    taken._spool._try(taken._lock.beat)
    with pytest.raises(WorkdirError, match="in use by"):
        taken.check()


def test_an_error_of_the_heartbeat_is_raised_at_the_next_step_and_the_lock_is_kept(
    folder, monkeypatch
):
    monkeypatch.setattr(spool, "BEAT_SECONDS", 0.01)
    tries, again = [], threading.Event()

    def copy(self):
        tries.append(1)
        if len(tries) == 2:
            again.set()
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(spool.Spool, "copy", copy)
    workdir = Workdir(folder)
    assert again.wait(10)  # the thread goes on
    with pytest.raises(RuntimeError, match="not foreseen"):
        workdir.check()
    with pytest.raises(RuntimeError, match="not foreseen"):
        workdir.close()


def test_the_lock_is_kept_alive_while_records_are_uploaded(folder, monkeypatch):
    monkeypatch.setattr(spool, "BEAT_SECONDS", 0.01)
    uploading, beats, kept = threading.Event(), threading.Semaphore(0), []

    def beat(self):
        if uploading.is_set():
            beats.release()

    def copy(self):
        uploading.set()
        kept.append(beats.acquire(timeout=2))

    monkeypatch.setattr(lock.ObjectLock, "beat", beat)
    monkeypatch.setattr(spool.Spool, "copy", copy)
    with Workdir(folder):
        assert uploading.wait(10)
    assert kept[0]
