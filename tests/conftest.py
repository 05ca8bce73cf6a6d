"""Every test sees eight devices, all of them this machine's CPU, and no program kept before."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the folder of who started them
    KEPT = tempfile.TemporaryDirectory()
    os.environ["KEPT_PROGRAMS"] = KEPT.name
