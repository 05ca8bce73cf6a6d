"""Runs of the program with faults, which share what they compile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, arguments, environment

PROGRAM = str(Path(__file__).parent / "program.py")


def bucket_environment():
    """What the fixture `store` sets, if a test uses it."""
    names = ("STORAGE_EMULATOR_HOST", "NO_GCE_CHECK")
    return {name: os.environ[name] for name in names if name in os.environ}


@pytest.fixture(scope="session")
def start():
    """start(fault, workdir, *flags) -> a running process."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = environment() | {"PYTHONPATH": path}

    def start(fault, workdir, *flags, **variables):
        return subprocess.Popen(
            [sys.executable, PROGRAM, fault, *arguments(workdir, *flags)],
            cwd=ROOT,
            env=settings | bucket_environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run(start):
    """run(fault, workdir, *flags) -> (exit status, standard error)."""

    def run(fault, workdir, *flags, **variables):
        process = start(fault, workdir, *flags, **variables)
        _, errors = process.communicate(timeout=300)
        return process.returncode, errors

    return run


@pytest.fixture(scope="session")
def undisturbed(finished, run, tmp_path_factory):
    """undisturbed(dispatch) -> the folder of a run that nothing happens to."""
    folders = {"auto": finished[0]}

    def get(dispatch):
        if dispatch not in folders:
            folders[dispatch] = tmp_path_factory.mktemp(dispatch) / "run"
            flag = f"--config.train.dispatch={dispatch}"
            assert run("none", folders[dispatch], flag)[0] == 0
        return folders[dispatch]

    return get


@pytest.fixture(scope="session")
def whole(undisturbed):
    return undisturbed("auto")
