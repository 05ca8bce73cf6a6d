"""Mistakes of a user are one line; mistakes of the project keep their traceback.

The programs run in this process, as their `main(argv)`: what they print and their exit status are
those of the command.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from making import encoded, pets, write_archive, write_folder
from runs import ROOT, environment

from dnrt_jax import convert, main, predict, preview
from dnrt_jax.command_line import config_of, parse
from dnrt_jax.config import default, replaced, to_json
from dnrt_jax.report import __main__ as report
from dnrt_jax.runtime import process
from dnrt_jax.runtime.errors import WorkdirError
from dnrt_jax.runtime.workdir import Workdir, read_config

TINY = [
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "optim.warmup_epochs=0",
    "optim.warmup_steps=0",
]
TINY = [f"--config.{field}" for field in [*TINY, "train.steps=1"]]
PETS = ["data.name=pets", "data.image_size=6", "data.eval_resize=6", "model.patch_size=2"]
PETS += ["data.mean=(.5,.5,.5)", "data.std=(.5,.5,.5)", "train.batch_size=8", "eval.batch_size=8"]
PETS = [f"--config.{field}" for field in PETS]


@pytest.fixture(autouse=True)
def as_they_are(monkeypatch, tmp_path):
    """Nothing of this process is set for training; data lie in a folder of the test."""
    for program in (main, predict, report):
        for name in ("keep_memory", "keep_programs"):
            monkeypatch.setattr(program, name, lambda: None, raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(ROOT)


def refused(capsys, program, *arguments):
    """The one line with which a program ends."""
    with pytest.raises(SystemExit) as ended:
        sys.exit(program(list(map(str, arguments))))
    out, err = capsys.readouterr()
    assert ended.value.code in (1, 2), (out, err)
    lines = [line for line in err.splitlines() if not line.startswith("Setting ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


CONFIG = {
    "a misspelt field": (["--config.optim.lrr=1"], "did you mean optim.lr?"),
    "what others call it": (["--config.optim.learning_rate=1"], "did you mean optim.lr?"),
    "a wrong type": (["--config.optim.lr=fast"], "config.optim.lr='fast': must be a number above"),
    "an impossible value": (["--config.arr.momentum=2"], "config.arr.momentum='2': must be"),
    "a field without a value": (["--config.seed"], "give it a value"),
    "a field without a value before an option": (
        ["--config.seed", "--eval_only"],
        "give it a value",
    ),
    "an unknown model": (["--config.model.name=vit"], "unknown model 'vit'"),
    "an unknown activation": (["--config.model.act=geluu"], "did you mean 'gelu'?"),
    "a field of another model": (["--config.model.stage_sizes=(1,)"], "no such field"),
    "heads that do not divide": (["--config.model.num_heads=3"], "num_heads=3"),
    "patches that do not divide": (["--config.model.patch_size=3"], "patch_size=3"),
    "an unknown task": (["--config.task=segmentation"], "no such task"),
    "a task that is none": (["--config.task=json:loads"], "it has no FIELDS"),
    "a task without a module": (["--config.task=:x"], "config.task=':x'"),
    "a task that is nowhere": (["--config.task=nowhere:Task"], "No module named 'nowhere'"),
    "no such data": (["--config.data.name=nowhere"], "nothing found in"),
    "channels that differ": (["--config.data.mean=(.5,.5)", "--config.data.std=(1,1)"], "1 ch"),
    "a batch beyond the data": (["--config.train.batch_size=5000"], "only 1442"),
    "a batch that the devices cannot share": (["--config.train.batch_size=63"], "try 64"),
    "images of another size": (["--config.data.image_size=6"], "8 x 8"),
    "an unknown augmentation": (["--config.data.rand_augment=rand-q9"], "rand-q9"),
    "a stream on the device": (["--config.data.loader=stream"], "neither a folder nor prepared"),
    "weights that are not there": (["--config.init_from=x.safetensors"], "config.init_from: x.saf"),
    "nothing to evaluate": (["--eval_only"], "no checkpoint to evaluate"),
    "a process beyond": (
        ["--coordinator=localhost:1", "--processes=2", "--process=5"],
        "--process=5: of --processes=2",
    ),
    "half an address": (["--coordinator=localhost:1"], "--processes and --process together"),
    "a seed that is none": (["--seeds=0,x"], "--seeds: seed='0,x': each must be a whole number"),
    "a seed named twice": (["--seeds=1,0,1"], "seed='1,0,1': a value is given twice"),
    "a value of a sweep named twice": (["--sweep=optim.lr=1,1"], "given twice, in six digits"),
    "a change of a misspelt field": (["--allow_change=train.step"], "did you mean train.steps?"),
    "a folder from an unset variable": (["--workdir="], "--workdir= is empty"),
    "a sweep of what changes the program": (
        ["--sweep=model.depth=2,4"],
        "by --config.model.depth=VALUE and another --workdir; --sweep takes arr.weight",
    ),
    "a sweep of a misspelt field": (["--sweep=optim.lrr=1,2"], "did you mean optim.lr?"),
    "a sweep without values": (["--sweep=optim.lr"], "as optim.lr=1e-3,1e-4"),
    "a sweep of impossible values": (["--sweep=arr.momentum=0.1,2"], "each must be a number from"),
    "a sweep of the seed": (["--sweep=seed=0,1"], "give --seeds=0,1"),
    "a sweep named twice": (["--sweep=optim.lr=1", "--sweep=optim.lr=2"], "join its values"),
    "parts that do not divide": (
        ["--seeds=0,1", "--config.parallel.members=together", "--config.parallel.member_parts=3"],
        "member_parts=3: does not divide 2 members",
    ),
    "a profile of fewer steps than none": (["--profile=-5"], "--profile=-5: must be 0 or more"),
    "a checkpoint to train": (["--checkpoint=best"], "--checkpoint=best: needs --eval_only"),
    "a tracker that is not installed": (["--config.train.tracker=wandb"], "pip install wandb"),
    "an unknown flag": (["--wrkdir=x"], "--wrkdir"),
}


@pytest.mark.parametrize(("arguments", "answer"), CONFIG.values(), ids=CONFIG)
def test_a_mistake_in_the_config_is_one_line_and_no_half_written_run(
    capsys, tmp_path, arguments, answer
):
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/new", *TINY, *arguments]
    assert answer in refused(capsys, main.main, *flags)
    assert not (tmp_path / "new").exists()


def test_a_seed_named_twice_is_not_told_of_digits(capsys):
    line = refused(capsys, main.main, "--config=configs/digits.py", "--seeds=3,3")
    assert line == "error: --seeds: seed='3,3': a value is given twice"


def test_a_field_that_may_change_may_be_named_as_it_is_set():
    args = parse(["--config=configs/digits.py", "--allow_change=config.train.steps"], None)
    config_of(args, {})
    assert args.allow_change == ["train.steps"]


def test_an_argument_of_a_config_file_too_many_or_missing_is_one_line(capsys):
    line = refused(capsys, main.main, "--config=configs/digits.py:foo")
    assert line.endswith("configs/digits.py:foo: digits.py takes no argument after the colon")
    line = refused(capsys, main.main, "--config=configs/base_cnn.py")
    assert line.endswith("base_cnn.py needs an argument, as base_cnn.py:MODEL")


@pytest.mark.parametrize("change", [{"task": "signals:Signals"}, {"model.name": "signals:Net"}])
def test_a_run_whose_module_is_missing_is_no_damaged_run(tmp_path, change):
    (tmp_path / "config.json").write_text(to_json(replaced(default(), change)))
    with pytest.raises(WorkdirError, match=r"signals'.*is its folder on PYTHONPATH"):
        read_config(tmp_path)


def test_a_model_of_graphs_for_images_is_one_line(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from dnrt_jax.config import default as get_config")
    flags = [f"--config={path}", "--config.model.name=gcn"]
    assert "config.model.name='gcn': takes no images" in refused(capsys, main.main, *flags)


def test_a_config_file_that_is_not_there_is_one_line(capsys, tmp_path):
    assert "does not exist" in refused(capsys, main.main, "--config=configs/digit.py")
    assert "give --config" in refused(capsys, main.main)
    assert "no such folder" in refused(capsys, main.main, f"--workdir={tmp_path}/none")


DATA = {
    "a broken image": ("train/cat/0.png", b"nothing", "0.png: not an image"),
    "an empty image": ("train/cat/0.png", b"", "0.png: empty file"),
    "a class only in the test": ("val/cow/0.png", encoded(1), "cow"),
}


@pytest.mark.parametrize(("name", "content", "answer"), DATA.values(), ids=DATA)
def test_a_mistake_in_the_data_is_one_line(capsys, tmp_path, name, content, answer):
    write_folder(tmp_path / "data" / "pets", pets(images=8) | {name: content})
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/new", *TINY, *PETS]
    assert answer in refused(capsys, main.main, *flags)


def test_a_damaged_archive_is_one_line(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    path = write_archive(tmp_path / "data" / "pets.tar", pets(images=8))
    path.write_bytes(path.read_bytes()[:3000])
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/new", *TINY, *PETS]
    assert "pets.tar" in refused(capsys, main.main, *flags)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_that_may_not_be_read_is_one_line(capsys, tmp_path):
    root = write_folder(tmp_path / "data" / "pets", pets(images=8))
    (root / "train" / "cat" / "0.png").chmod(0)
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/new", *TINY, *PETS]
    assert "0.png" in refused(capsys, main.main, *flags)


@pytest.fixture(scope="module")
def workdir(finished):
    return finished[0]


def copied(workdir, tmp_path):
    return shutil.copytree(workdir, tmp_path / "run")


def break_config(folder):
    (folder / "config.json").write_text("{")


def break_records(folder):
    (folder / "metrics.jsonl").write_text("{\n")


def break_summary(folder):
    (folder / "summary.json").write_text("{")


def break_checkpoint(folder):
    shutil.rmtree(folder / "checkpoints" / "40")
    (folder / "checkpoints" / "44" / "manifest.json").write_text("{}")


def unlink_both(folder):
    (folder / "config.json").unlink()
    shutil.rmtree(folder / "checkpoints")


FOLDER = {
    "a damaged config": (break_config, "config.json: not the config of a run"),
    "damaged records": (break_records, "metrics.jsonl: damaged"),
    "a damaged checkpoint": (break_checkpoint, "checkpoint of step 44 is damaged"),
    "no run at all": (unlink_both, "neither config.json nor a checkpoint"),
}


@pytest.mark.parametrize(("damage", "answer"), FOLDER.values(), ids=FOLDER)
def test_a_damaged_folder_is_one_line(capsys, tmp_path, workdir, damage, answer):
    folder = copied(workdir, tmp_path)
    damage(folder)
    assert answer in refused(capsys, main.main, f"--workdir={folder}", "--eval_only")


def test_a_damaged_summary_is_one_line(capsys, tmp_path, workdir):
    folder = copied(workdir, tmp_path)
    break_summary(folder)
    assert "summary.json: damaged" in refused(capsys, main.main, f"--workdir={folder}")


def test_a_workdir_that_cannot_be_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/file"]
    assert f"--workdir={tmp_path}/file" in refused(capsys, main.main, *flags)


PROGRAMS = {
    "convert nothing": (convert.main, ["none.safetensors", "out.safetensors"], "no such file"),
    "convert to another format": (convert.main, ["RUN", "out.pth"], ".safetensors"),
    "predict without a run": (predict.main, ["--workdir=none", "x.png"], "no such folder"),
    "predict without weights": (predict.main, ["--weights=x.safetensors", "x.png"], "no such file"),
    "report on nothing": (report.main, ["none"], "none"),
    "report into a file": (
        report.main,
        ["RUN", "--out=README.md/new"],
        "--out=README.md/new: must be a folder, but README.md is a file",
    ),
    "preview below a file": (
        preview.main,
        ["--config=configs/digits.py", "--out=README.md/x.png"],
        "--out=README.md/x.png: README.md is a file, not a folder",
    ),
    "preview of no data": (preview.main, ["--config=configs/cifar10.py"], "nothing found"),
    "preview of a graph": (preview.main, ["--config=configs/cora.py"], "cora.npz"),
}


@pytest.mark.parametrize(("program", "arguments", "answer"), PROGRAMS.values(), ids=PROGRAMS)
def test_the_other_programs_answer_in_one_line(
    capsys, tmp_path, monkeypatch, workdir, program, arguments, answer
):
    monkeypatch.setattr("dnrt_jax.data.cifar.reachable", lambda: False)
    arguments = [str(workdir) if word == "RUN" else word for word in arguments]
    assert answer in refused(capsys, program, *arguments)


def test_damaged_weights_are_one_line(capsys, tmp_path, workdir):
    (tmp_path / "a.safetensors").write_bytes(b"12345678")
    answer = refused(capsys, convert.main, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert "not a whole .safetensors file" in answer


# ---- defects ----------------------------------------------------------------------------------


BROKEN_TASK = """
from dnrt_jax.tasks.image_classification import ImageClassification

class Broken(ImageClassification):
    def check_mesh(self, mesh):
        raise ValueError("a mistake of ours")
"""


def test_an_error_of_ours_keeps_its_traceback_and_says_that_it_is_a_defect(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN_TASK)
    command = [sys.executable, "-m", "dnrt_jax.main", f"--config={ROOT}/configs/digits.py"]
    done = subprocess.run(
        [*command, "--config.task=broken:Broken", f"--workdir={tmp_path}/run"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: a mistake of ours" in done.stderr
    assert "line 6, in check_mesh" in done.stderr
    assert done.stderr.rstrip().endswith(process.DEFECT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x"), OSError("x")])
def test_what_is_no_mistake_of_the_user_is_never_one_line(capsys, error):
    with pytest.raises(SystemExit), process.user_errors():
        raise error
    assert process.DEFECT in capsys.readouterr().err


def test_a_file_of_the_system_and_a_full_device_are_one_line(capsys):
    with pytest.raises(SystemExit), process.user_errors():
        Path("/nowhere/at/all").read_text()
    assert "/nowhere/at/all" in capsys.readouterr().err


def test_the_folder_of_a_set_is_not_taken_for_that_of_a_run_nor_a_run_for_a_set(capsys, tmp_path):
    flags = ["--config=configs/digits.py", *TINY]
    about = {"seeds": "0,1", "sweep": [], "settings": {"": ["seed0", "seed1"]}, "trained": []}
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "members.json").write_text(json.dumps(about))
    line = refused(capsys, main.main, f"--workdir={tmp_path}/set", *flags)
    assert "holds a set of runs; give --seeds" in line
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    line = refused(capsys, main.main, f"--workdir={tmp_path}/run", "--seeds=0,1", *flags)
    assert "holds a run by itself; choose another" in line


def test_a_member_in_use_is_named_and_the_set_leaves_no_folder(capsys, tmp_path):
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/set", "--seeds=0,1", *TINY]
    with Workdir(tmp_path / "set" / "seed1"):
        line = refused(capsys, main.main, *flags)
    assert f"seed1: in use by process {os.getpid()}" in line
    assert not (tmp_path / "set" / "seed0").exists()
