"""The real program on a small run, as a process or in this one, and what it leaves."""

import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

import numpy as np

from dnrt_jax.runtime import array_files, storage
from dnrt_jax.runtime.workdir import read_records

ROOT = Path(__file__).parent.parent
SMALL = [
    "--config.model.embed_dim=16",
    "--config.model.depth=2",
    "--config.model.num_heads=2",
    "--config.model.drop_path_rate=0.1",
    "--config.data.crop=pad",
    "--config.data.pad=1",
    "--config.train.steps=44",
    "--config.train.batch_size=128",
    "--config.train.log_steps=7",
    "--config.train.eval_steps=10",
    "--config.train.checkpoint_steps=5",
    "--config.train.dispatch_steps=4",
    "--config.optim.warmup_steps=5",
]


def arguments(workdir, *more, config="configs/digits.py"):
    return [f"--config={config}", f"--workdir={workdir}", *SMALL, *more]


def command(*args, **kwargs):
    return [sys.executable, "-m", "dnrt_jax.main", *arguments(*args, **kwargs)]


def environment():
    """As a user's, but on one CPU device; the tests' processes share what they compile."""
    flags = {
        "XLA_FLAGS": os.environ["TEST_XLA_FLAGS"],
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
    }
    return {k: v for k, v in os.environ.items() if k != "DATA_DIR"} | flags


def program(*argv):
    """The training program with these arguments and no others."""
    return subprocess.run(
        [sys.executable, "-m", "dnrt_jax.main", *argv],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )


def run(*args, **kwargs):
    return subprocess.run(
        command(*args, **kwargs), cwd=ROOT, env=environment(), capture_output=True, text=True
    )


def here(*argv, module="main"):
    """A program in this process, by its `main(argv)`, which saves the start of a process; it sees
    the devices of the tests. The exit status and what it prints are those of the command."""
    out, errors, status = StringIO(), StringIO(), 0
    with chdir(ROOT), redirect_stdout(out), redirect_stderr(errors):
        try:
            status = import_module(f"dnrt_jax.{module}").main([*map(str, argv)])
        except SystemExit as ended:
            status = ended.code
    return subprocess.CompletedProcess(argv, status or 0, out.getvalue(), errors.getvalue())


def content(workdir):
    """Arrays of the last checkpoint, and records without their timings."""
    folder = storage.path(workdir)
    last = folder / "checkpoints" / "44"
    manifest = json.loads(storage.read(last / "manifest.json"))
    records = read_records(folder)
    for record in records:
        for name in ("images_per_sec", "utilization", "peak_gb"):
            record.pop(f"train/{name}", None)
    return load_arrays(last), manifest["tree"], records


def load_arrays(step):
    described = json.loads(storage.read(step / "manifest.json"))["tree"]
    with array_files.local_copy(step) as folder:
        return array_files.read(folder, described)


def assert_same_run(a, b):
    (arrays_a, tree_a, records_a), (arrays_b, tree_b, records_b) = content(a), content(b)
    assert tree_a == tree_b
    assert records_a == records_b
    for name, value in arrays_a.items():
        np.testing.assert_array_equal(value, arrays_b[name], err_msg=name)
