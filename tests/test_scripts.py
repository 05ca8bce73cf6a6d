"""The shell scripts: what they would do in the cloud, recorded by a stub."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dnrt_jax import main
from dnrt_jax.config import validate
from dnrt_jax.config_file import load
from dnrt_jax.runtime.process import split_overrides

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "tpu_vm.sh"


@pytest.fixture
def cloud(tmp_path):
    """run(*arguments) -> (exit status, output, the calls of gcloud, a list of words each)."""
    calls = tmp_path / "calls"
    stub = tmp_path / "gcloud"
    stub.write_text(f'#!/bin/sh\nprintf "%s\\001" "$@" >> {calls}; printf "\\002" >> {calls}\n')
    stub.chmod(0o755)

    def run(*arguments, **environment):
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            [SCRIPT, *arguments],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)} | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        lines = calls.read_text().split("\2")[:-1] if calls.exists() else []
        return done.returncode, done.stdout + done.stderr, [x.split("\1")[:-1] for x in lines]

    return run


def test_a_run_starts_on_all_workers_with_its_words_kept_apart(cloud):
    status, _, calls = cloud("run", "pod", "configs/cifar100.py", "/mnt/my runs/a", "--x=1")
    assert status == 0
    (call,) = calls
    assert call[:6] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--worker=all"]
    assert "--config=configs/cifar100.py --workdir=/mnt/my\\ runs/a --x=1" in call[6]
    assert call[7] == "--zone=us-central1-a"


def test_resuming_makes_the_machine_anew_and_runs_the_same_command(cloud):
    status, _, calls = cloud("resume", "pod", "configs/cifar100.py", "w", ZONE="z1", SPOT="1")
    assert status == 0
    assert [call[3] for call in calls] == ["delete", "create", "scp", "ssh", "ssh"]
    assert "--spot" in calls[1]
    assert all("--zone=z1" in call for call in calls)


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "pod", "v5litepod-16"),
        ("setup", "pod"),
        ("run", "pod", "configs/digits.py", "w"),
        ("resume", "pod", "configs/digits.py", "w"),
        ("log", "pod"),
        ("fetch", "pod", "w", "results"),
        ("delete", "pod"),
    ],
)
def test_a_dry_run_calls_nothing(cloud, arguments):
    status, printed, calls = cloud("--dry-run", *arguments)
    assert (status, calls) == (0, [])
    assert "gcloud compute tpus tpu-vm" in printed


@pytest.mark.parametrize("arguments", [(), ("create",), ("crate", "pod"), ("run", "pod", "x.py")])
def test_a_wrong_call_prints_how_to(cloud, arguments):
    status, printed, calls = cloud(*arguments)
    assert (status, calls) == (2, [])
    assert "scripts/tpu_vm.sh create NAME" in printed


def test_slurm_starts_the_program_on_every_node_with_its_words_kept_apart(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "slurm.sh", "configs/cifar100.py", "/my runs/a", "--eval_only"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    _, *words = done.stdout.splitlines()
    assert words[:3] == ["python", "-m", "dnrt_jax.main"]
    assert main._parser().parse_args(words[3:]) == main._parser().parse_args(
        ["--config=configs/cifar100.py", "--workdir=/my runs/a", "--eval_only"]
    )


@pytest.mark.parametrize(
    "path", ["scripts/slurm.sh", "scripts/tpu_vm.sh", "notebooks/dnrt_colab.ipynb"]
)
def test_what_a_script_or_the_notebook_refers_to_exists(path):
    text = (ROOT / path).read_text()
    modules = re.findall(r"-m (dnrt_jax[\w.]*)", text)
    assert modules
    for module in modules:
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    for name in re.findall(r"\b(?:configs|scripts|docs)/[\w/]+\.\w+|\brequirements\.txt", text):
        assert (ROOT / name).exists(), name
    for line in re.findall(r"-m dnrt_jax\.main (--config=configs[^|\n]*)", text):
        words = [word.replace("{epochs}", "2") for word in shlex.split(line.split(" 2>")[0])]
        words, overrides = split_overrides(words)
        args = main._parser().parse_args(words)
        validate(load(str(ROOT / args.config), overrides))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    scripts = [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
