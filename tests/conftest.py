"""Every test sees eight devices, all of them this machine's CPU, and no program kept before: what
the suite compiles is kept in a folder of its own, which all its processes share.

The tests compile much and compute little, so LLVM optimises nothing in them; `-m slow` compiles as
users do."""

import os
import sys
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have the variables of who started them
    KEPT = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = KEPT.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    quick = "slow" not in sys.argv
    os.environ["TEST_XLA_FLAGS"] = "--xla_backend_optimization_level=0" if quick else ""
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ['TEST_XLA_FLAGS']} --xla_force_host_platform_device_count=8"
