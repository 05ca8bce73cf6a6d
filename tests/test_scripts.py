"""The shell scripts: what they would do in the cloud, recorded by a stub. Help of the others."""

import math
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dnrt_jax import command_line
from dnrt_jax.config import validate
from dnrt_jax.config_file import load
from dnrt_jax.runtime.process import split_overrides

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "tpu_vm.sh"


STUB = """\
#!/bin/bash
cd "$HOME" || exit
# Records the call and answers: state is the next line of `states`, what workers say that of `says`.
# A state that begins with `error` is an answer of gcloud that is none.
printf '%s\\001' "$@" >> calls; printf '\\002' >> calls
next() { head -n 1 "$1"; [ "$(wc -l < "$1")" = 1 ] || sed -i 1d "$1"; }
case $* in
  *"queued-resources describe"*)
    state=$(next states)
    case $state in
      error*) echo "ERROR: (gcloud.compute.tpus) ${state#* }" >&2; exit 1 ;;
    esac
    echo "$state" ;;
  *"queued-resources create"*) exit "${CREATED:-0}" ;;
  *networkEndpoints*) printf '10.0.0.1\\n10.0.0.2\\n' ;;
  *"cat dnrt_jax/run.status"*) next says | tr ' ' '\\n' ;;
  *" scp "*run.log*) cp says "$6" ;;
esac
"""


IDLE, MISSING = "idle idle", "error NOT_FOUND: Resource 'pod' was not found"


@pytest.fixture
def cloud(tmp_path):
    """run(*arguments, states=[...], says=[...]) -> (exit status, output, calls of gcloud: a list of
    words each). `states` are those of the request for the machine, `says` what workers say."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "gcloud").write_text(STUB)
    (bin / "gcloud").chmod(0o755)
    for name, does in (("sleep", "echo >> $HOME/sleeps"), ("git", "")):
        (bin / name).write_text(f"#!/bin/sh\n{does}\n")
        (bin / name).chmod(0o755)

    def run(*arguments, states=("ACTIVE",), says=(IDLE, "0 0"), **environment):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        for name, lines in (("states", states), ("says", says)):
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        done = subprocess.run(
            [SCRIPT, *arguments],
            env={"PATH": f"{bin}:/usr/bin:/bin", "HOME": str(tmp_path)} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        lines = calls.read_text().split("\2")[:-1] if calls.exists() else []
        return done.returncode, done.stdout + done.stderr, [x.split("\1")[:-1] for x in lines]

    return run


def verbs(calls):
    """What was done, without the looks at states."""
    found = [call[3] for call in calls]
    return [verb for verb in found if verb != "describe"]


def test_a_run_starts_on_all_workers_with_its_words_kept_apart(cloud):
    status, _, calls = cloud("run", "pod", "configs/cifar100.py", "/mnt/my runs/a", "--x=1")
    assert status == 0
    (call,) = calls
    assert call[:6] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--worker=all"]
    assert call[7] == "--zone=us-central1-a"
    words = shlex.split(shlex.split(call[6].partition("bash -c ")[2])[0].partition(";")[0])
    assert words[1:] == [
        "-m",
        "dnrt_jax.main",
        "--config=configs/cifar100.py",
        "--workdir=/mnt/my runs/a",
        "--x=1",
        "$join",
    ]


@pytest.mark.parametrize(
    ("endpoints", "join"),
    [
        ("unknown:unknown:10.0.0.7", ""),
        ("", ""),  # no machine of Google's
        (
            "a:1:10.0.0.7,b:2:10.0.0.8",
            " --coordinator=10.0.0.7:8482 --processes=2 --process=1",
        ),
        ("t-0,t-1,t-2", " --coordinator=t-0:8482 --processes=3 --process=1"),
    ],
)
def test_the_command_on_a_worker_joins_the_others_and_leaves_its_exit_status_and_its_log(
    cloud, tmp_path, endpoints, join
):
    _, _, [call] = cloud("run", "pod", "configs/digits.py", "--x=1", BUCKET="b")
    worker = tmp_path / "worker" / "dnrt_jax"
    (worker / "venv" / "bin").mkdir(parents=True)
    python = worker / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@ in $DATA_DIR"\nexit 75\n')
    python.chmod(0o755)
    command = call[6].removeprefix("--command=").replace("&)", ")")  # wait for it
    curl = tmp_path / "bin" / "curl"
    answers = f'*/worker-network-endpoints) printf "{endpoints}" ;; */agent-worker-number) echo 1'
    curl.write_text(f'#!/bin/bash\ncase "${{@: -1}}" in {answers} ;; esac\n')
    curl.chmod(0o755)
    path = f"{curl.parent}:/usr/bin:/bin"
    subprocess.run(["bash", "-c", command], cwd=worker.parent, check=True, env={"PATH": path})
    assert (worker / "run.status").read_text() == "75\n"
    said = (worker / "run.log").read_text()
    program = "-m dnrt_jax.main --config=configs/digits.py --workdir=gs://b/pod --x=1"
    assert said == f"{program}{join} in data\n"


def test_a_spot_machine_keeps_no_run_on_its_disk(cloud):
    for arguments in (("/mnt/run",), ()):
        status, said, calls = cloud("run", "pod", "configs/digits.py", *arguments, SPOT="1")
        assert (status, calls) == (1, [])
        assert said.startswith("error: ")
    assert cloud("run", "pod", "configs/digits.py", SPOT="1", BUCKET="b")[0] == 0


def test_a_machine_is_requested_in_the_queue_and_awaited(cloud):
    states = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    status, said, calls = cloud("create", "pod", states=states, SPOT="1", ZONE="z1")
    assert status == 0, said
    assert calls[0] == [
        *["compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod"],
        *["--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite"],
        *["--spot", "--zone=z1"],
    ]
    assert len(calls) == 4
    assert cloud("create", "pod", states=["WAITING_FOR_RESOURCES", "FAILED"])[0] != 0


# Of a machine; whether a run is going on; the code, the packages, the run.
BEGIN = ["ssh", "scp", "ssh", "ssh"]
START = ["create", *BEGIN]
END = ["scp", "scp", "delete"]


def test_watching_goes_on_with_a_new_machine_after_a_preemption_until_the_end(cloud, tmp_path):
    states = [MISSING, MISSING, "PROVISIONING", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDING"]
    states += ["SUSPENDED", "PROVISIONING", "ACTIVE", "ACTIVE"]
    arguments = ("watch", "pod", "configs/digits.py", "--x=1")
    status, said, calls = cloud(
        *arguments,
        states=states,
        says=[IDLE, "running running", "running running", IDLE, "running 0", "0 0"],
        SPOT="1",
        BUCKET="b",
        PRICE="1.2",
    )
    assert status == 0, said
    looks = ["ssh"] * 2
    assert verbs(calls) == [*START, *looks, "delete", *START, *looks, *END]
    runs = [word for call in calls for word in call if "dnrt_jax.main" in word]
    assert len(runs) == 2
    assert runs[0] == runs[1]
    assert "pod: the machine is gone; asking for another" in said
    assert "pod: finished" in said
    assert re.search(
        r"v5litepod-8: 8 chips for 0\.\d\d h, .* USD at 1\.2 USD an hour and chip", said
    )


@pytest.mark.parametrize(
    ("says", "status", "verdict", "starts"),
    [
        (["0 0"], 0, "finished", 1),
        (["running 1", "1 1"], 1, "failed", 1),
        (["0 2"], 1, "failed", 1),
        (["75 143", "75 143", "0 0"], 0, "finished", 2),  # a process was lost
        (["idle 0", "idle 0", "0 0"], 0, "finished", 2),  # a worker was set up anew
        (["1 75"], 1, "failed", 1),
        (["", "0 0"], 0, "finished", 1),  # no worker answered at first
    ],
)
def test_what_became_of_a_run_is_told_by_all_workers(cloud, says, status, verdict, starts):
    ended, said, calls = cloud("watch", "pod", "configs/digits.py", "gs://b/r", says=[IDLE, *says])
    assert ended == status, said
    assert f"pod: {verdict}" in said
    assert sum("dnrt_jax.main" in word for call in calls for word in call) == starts
    assert verbs(calls)[-3:] == END


def test_a_look_that_fails_leaves_a_healthy_run_alone(cloud):
    fault = "error UNAVAILABLE: try again"
    states = ["ACTIVE", fault, "ACTIVE", fault, "ACTIVE"]
    says = [IDLE, "running running", "running running", "0 0"]
    arguments = ("watch", "pod", "configs/digits.py", "gs://b/r")
    status, said, calls = cloud(*arguments, states=states, says=says)
    assert status == 0, said
    assert "UNAVAILABLE: try again" in said
    assert verbs(calls) == [*BEGIN, "ssh", "ssh", "ssh", *END]


def test_watching_ends_at_once_if_gcloud_cannot_look(cloud):
    fault = "error UNAUTHENTICATED: no credentials"
    status, said, calls = cloud("watch", "t", "configs/digits.py", states=[fault], BUCKET="mine")
    assert (status, verbs(calls)) == (1, [])
    assert "gcloud cannot say whether t exists; nothing was changed" in said


def test_watching_takes_up_a_run_that_is_going_on(cloud):
    says = ["running running", "running running", "0 0"]
    status, said, calls = cloud("watch", "pod", "configs/digits.py", "gs://b/r", says=says)
    assert status == 0, said
    assert "pod: its run is going on" in said
    assert verbs(calls) == ["ssh", "ssh", "ssh", *END]


@pytest.mark.parametrize(
    ("faults", "verb"),
    [({"states": [MISSING], "CREATED": "1"}, "create"), ({"says": [""]}, "ssh")],
    ids=["no machine can be requested", "no worker answers"],
)
def test_watching_gives_up_after_three_failures_and_pauses_between(cloud, tmp_path, faults, verb):
    status, said, calls = cloud("watch", "pod", "configs/digits.py", "gs://b/r", **faults)
    assert status == 1
    assert "pod: failed, as no machine can be had or set up" in said
    assert "v5litepod-8: 8 chips for" in said
    assert verbs(calls) == [verb] * 3 + END
    assert len((tmp_path / "sleeps").read_text().splitlines()) == 2


def test_the_logs_of_all_workers_are_fetched(cloud, tmp_path):
    status, _, calls = cloud("logs", "pod", str(tmp_path / "logs"))
    assert status == 0
    assert [call[5] for call in calls[1:]] == [
        str(tmp_path / "logs" / f"worker-{i}.log") for i in (0, 1)
    ]


@pytest.mark.parametrize(
    ("accelerator", "chips"), [("v5litepod-16", 16), ("v6e-8", 8), ("v4-8", 4), ("v5p-32", 16)]
)
def test_the_cost_counts_chips(cloud, accelerator, chips):
    _, said, _ = cloud("watch", "pod", "configs/digits.py", "gs://b/r", ACCELERATOR=accelerator)
    assert f"{accelerator}: {chips} chips for" in said
    assert "USD" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "pod"),
        ("setup", "pod"),
        ("run", "pod", "configs/digits.py", "w"),
        ("watch", "pod", "configs/digits.py", "w"),
        ("status", "pod"),
        ("log", "pod"),
        ("logs", "pod"),
        ("fetch", "pod", "w", "results"),
        ("fetch", "pod", "gs://b/w", "results"),
        ("delete", "pod"),
    ],
)
def test_a_dry_run_calls_nothing(cloud, arguments):
    status, printed, calls = cloud("--dry-run", *arguments)
    assert (status, calls) == (0, [])
    assert "gcloud " in printed


@pytest.mark.parametrize("arguments", [(), ("create",), ("crate", "pod"), ("run", "pod")])
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
    assert command_line.parser().parse_args(words[3:]) == command_line.parser().parse_args(
        ["--config=configs/cifar100.py", "--workdir=/my runs/a", "--eval_only"]
    )


def test_the_manifest_for_gke_starts_the_program_on_every_host_of_the_slice():
    manifest = yaml.safe_load((ROOT / "scripts" / "gke_jobset.yaml").read_text())
    (job,) = manifest["spec"]["replicatedJobs"]
    hosts, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert hosts["parallelism"] == hosts["completions"]
    chips = hosts["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert chips == math.prod(map(int, topology.split("x")))
    assert container["command"][:3] == ["python", "-m", "dnrt_jax.main"]
    args = command_line.parser().parse_args(container["command"][3:])
    assert args.workdir.startswith("gs://")
    validate(load(str(ROOT / args.config), {}))


@pytest.mark.parametrize(
    "path",
    [
        "scripts/slurm.sh",
        "scripts/tpu_vm.sh",
        "scripts/gke_jobset.yaml",
        "notebooks/dnrt_colab.ipynb",
    ],
)
def test_what_a_script_or_the_notebook_refers_to_exists(path):
    text = (ROOT / path).read_text()
    modules = re.findall(r"-m\s+(?:- )?(dnrt_jax[\w.]*)", text)
    assert modules
    for module in modules:
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    for name in re.findall(
        r"\b(?:configs|scripts|docs)/[\w/]+\b(?:\.\w+)?|\brequirements\.txt", text
    ):
        assert (ROOT / name).exists(), name
    for line in re.findall(r"-m dnrt_jax\.main (--config=configs[^|\n]*)", text):
        words = [word.replace("{epochs}", "2") for word in shlex.split(line.split(" 2>")[0])]
        words, overrides = split_overrides(words)
        args = command_line.parser().parse_args(words)
        validate(load(str(ROOT / args.config), overrides))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    scripts = [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["config_page", "idea_figure", "scaling_table"])
def test_a_script_that_is_asked_for_help_does_nothing_else(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name}")
