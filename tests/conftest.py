"""Every test sees eight devices, all of them this machine's CPU, and no program kept before: what
the suite compiles is kept in a folder of its own, which all its processes share.

The tests compile much and compute little, so LLVM optimises nothing in them; `-m slow` compiles as
users do."""

import asyncio
import fcntl
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have the variables of who started them
    KEPT = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["TEST_SHARED"] = KEPT.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{KEPT.name}/programs"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    flags = ["--xla_backend_optimization_level=0"]
    if version("jax").startswith("0.10."):
        flags += ["--xla_cpu_use_fusion_emitters=false"]  # halves the time of a small compilation
    os.environ["TEST_XLA_FLAGS"] = "" if "slow" in sys.argv else " ".join(flags)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ['TEST_XLA_FLAGS']} --xla_force_host_platform_device_count=8"


@pytest.fixture(scope="session")
def finished():
    """The folder of a small run that nothing happened to, and what it printed. It is made once for
    all processes of the suite; a test that changes it takes a copy."""
    from runs import run

    folder = Path(os.environ["TEST_SHARED"]) / "finished"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.with_suffix(".out").exists():
            done = run(folder)
            assert done.returncode == 0, done.stderr
            folder.with_suffix(".err").write_text(done.stderr)
            folder.with_suffix(".out").write_text(done.stdout)
    printed = {name: folder.with_suffix(f".{name}").read_text() for name in ("out", "err")}
    return folder, SimpleNamespace(**printed)


@pytest.fixture(scope="session")
def running_store(tmp_path_factory):
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    from buckets import Store

    store = Store(tmp_path_factory.mktemp("store"))
    yield store
    store.close()


@pytest.fixture
def store(running_store, monkeypatch):
    """A store with the bucket gs://bucket, which this process and those it starts find."""
    for name, value in running_store.environment.items():
        monkeypatch.setenv(name, value)
    running_store.faults.clear()
    running_store.requests.clear()
    yield running_store
    running_store.faults.clear()


@pytest.fixture
def impatient(monkeypatch):
    """Repeats failed requests at once instead of after seconds."""
    pytest.importorskip("gcsfs")
    monkeypatch.setattr(
        "gcsfs.retry.asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 100))
    )
