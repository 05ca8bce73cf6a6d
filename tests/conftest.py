"""Every test sees eight devices, all of them this machine's CPU, and no program kept before: what
the suite compiles is kept in a folder of its own, which all its processes share.

The tests compile much and compute little, so LLVM optimises nothing in them; `-m slow` compiles as
users do."""

import asyncio
import os
import sys
import tempfile
from types import SimpleNamespace

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have the variables of who started them
    KEPT = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = KEPT.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    quick = "slow" not in sys.argv
    os.environ["TEST_XLA_FLAGS"] = "--xla_backend_optimization_level=0" if quick else ""
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ['TEST_XLA_FLAGS']} --xla_force_host_platform_device_count=8"


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
