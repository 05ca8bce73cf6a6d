"""Every command that README and docs show exists, with every flag, and its config is valid; what
takes no accelerator, no download and no hours is run as it is typed there, on tiny data."""

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache

import pytest
from making import data_of_the_docs, encoded
from runs import ROOT, environment

from dnrt_jax.config import validate
from dnrt_jax.config_file import load
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.process import split_overrides

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {  # a pattern of the command: why
    r"hf:": "a network; tests/test_hub.py has a stand-in",
    r"gs://": "a bucket; tests/faults/test_bucket_runs.py has an emulator",
    r"-m pytest": "the suite itself",
    r"-m dnrt_jax\.main$": "the name of the program",
    r"-m dnrt_jax\.benchmark": "tests/test_benchmark.py runs each at small sizes",
    r"--seeds=|--sweep=": "tests/test_sets.py has their like",
    r"reproduce\.py table4": "the same as benchmark table4",
    r"reproduce\.py table1 --dry_run": "tests/test_reproduce_rows.py does, for every table",
    r"reproduce\.py table\d(?!.*--dry_run)": "an accelerator; test_reproduce_rows.py has its rows",
    r"(reproduce\.py study|study\.py)( --jobs=\d)?$": "hours; tests/test_study.py runs a part",
    r"scripts\.zoo_compiled$": "hours, and the compilers; test_compiled_tables.py has its rows",
    r"--config=configs/study": "minutes; tests/test_study.py has its runs",
    r"--config=configs/(cifar|imagenet)": "an accelerator; test_reproduce_rows.py has its rows",
}
DIGITS = ["model.embed_dim=16", "model.depth=1", "model.num_heads=2", "train.batch_size=1442"]
DIGITS += ["train.eval_epochs=20", "train.checkpoint_epochs=20"]
TUNED = ["model.embed_dim=16", "model.depth=1", "model.num_heads=2", "train.batch_size=8"]
TUNED += ["eval.batch_size=8", "train.epochs=1"]
ADDED = {  # a pattern of a command: what makes it small
    r"--config=configs/digits\.py --workdir": [f"--config.{field}" for field in DIGITS],
    r"--config=configs/finetune\.py": [f"--config.{field}" for field in TUNED],
    r"--config=configs/(cora|citeseer|dgraph)\.py": ["--config.train.epochs=2"],
    r"-m scripts\.graphs --data_dir": ["--data=cora", "--models=gcn", "--cases=relu", "--seeds=1"],
}
DEPLOYED = "deployed/digits.stablehlo"  # by another command, which may run in another process
PLACEHOLDERS = {"IMAGE...": "image.png", "--data_dir=DIR": "--data_dir=data", "DIR": "runs/digits"}


def commands():
    """Those of the code blocks, and those in a line of text."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [re.sub(r"^[A-Z_]+=\w+ ", "", line.split("  #")[0]).strip() for line in lines]
        found += re.findall(r"`(python [^`]+)`", text)
    return sorted({line for line in found if line.startswith("python ") and " ... " not in line})


@cache
def helped(*program):
    done = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_there_are_commands():
    assert len(commands()) > 25


@pytest.mark.parametrize("command", commands())
def test_a_command_exists_with_its_flags(command):
    _, *words = shlex.split(command)
    program = words[:2] if words[0] == "-m" else words[:1]
    rest = words[len(program) :]
    if program[1:] == ["pytest"]:
        targets = [word for word in rest if word.startswith("tests")]
        assert all((ROOT / target).exists() for target in targets)
        return
    if program[1:] == ["dnrt_jax.benchmark"]:
        program.append(rest.pop(0))
    flags = [word.split("=")[0] for word in rest if word.startswith("--")]
    plain = [flag for flag in flags if not flag.startswith("--config.")]
    for flag in plain:
        assert re.search(rf"(^|\s|\[){flag}\b", helped(*program)), flag
    if program[1:] == ["dnrt_jax.main"] and rest:
        check_config(rest)


def check_config(words):
    _, overrides = split_overrides(words)
    for word in words:
        if word.startswith("--config="):
            path = word.removeprefix("--config=")
            validate(load(str(ROOT / path), overrides))
            return
    assert any(word.startswith("--workdir=") for word in words)  # the run's folder knows it


def test_a_mistake_would_be_found():
    with pytest.raises(AssertionError):
        test_a_command_exists_with_its_flags("python -m dnrt_jax.predict --weigths=x IMAGE")
    with pytest.raises(ConfigError):
        check_config(["--config=configs/digits.py", "--config.model.act="])


def runnable():
    return [c for c in commands() if not any(re.search(pattern, c) for pattern in NOT_RUN)]


def run(clone, command):
    """The command as it is typed, with what makes it small."""
    program, *words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    assert program == "python"
    for pattern, flags in ADDED.items():
        words += flags if re.search(pattern, command) else []
    done = subprocess.run(
        [sys.executable, *words], cwd=clone, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with tiny data in ./data, in which README's first training has been run and its
    result stands for those of the other runs."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("dnrt_jax", "configs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "docs" / "figures").mkdir(parents=True)
    shutil.copytree(ROOT / "results", folder / "results")
    (folder / "results" / "graphs.jsonl").rename(folder / "results" / "all_graphs.jsonl")
    data_of_the_docs(folder / "data", folder / "vit_tiny_patch16_224.safetensors")
    (folder / "image.png").write_bytes(encoded(100))
    said = run(folder, "python -m dnrt_jax.main --config=configs/digits.py --workdir=runs/digits")
    assert "Finished. Test accuracy" in said
    for other in ("gelu", "raa", "raa+arr", "cifar100"):
        shutil.copytree(folder / "runs" / "digits", folder / "runs" / other)
    run(folder, "python -m dnrt_jax.convert runs/digits exported/digits.safetensors")
    return folder


# What trains or draws; README's first training is run for `clone`.
LONG = re.compile(r"report|scripts|graphsage|dgraph|cora|finetune|config\.train|--out=grid")


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.slow) if LONG.search(c) else c for c in runnable()],
)
def test_a_command_runs_as_it_is_typed(clone, command):
    if "--table" in command:
        shutil.copy(clone / "results" / "all_graphs.jsonl", clone / "results" / "graphs.jsonl")
    if "predict" in command and DEPLOYED in command and not (clone / DEPLOYED).exists():
        run(clone, f"python -m dnrt_jax.convert runs/digits {DEPLOYED} --format=stablehlo")
    said = run(clone, command)
    if "dnrt_jax.main" in command:
        assert "test/acc=" in said if "--eval_only" in command else "inished" in said
    elif "dnrt_jax.predict" in command:
        assert re.search(r"image\.png: \d \d+\.\d%", said)
    elif "--dry_run" in command:
        assert re.search(r"\d+ runs, about", said)
    for word in shlex.split(command):
        if word.startswith("--out="):
            assert (clone / word.removeprefix("--out=")).exists()


def test_every_reason_not_to_run_is_one_of_a_command():
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command) for command in commands()), pattern
    assert len(runnable()) > 12
