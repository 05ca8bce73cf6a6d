"""Every row of the paper's tables trains: one step by the real command, on tiny
archives in the layouts of the docs: with a small model all rows, at its true size each model."""

import re
import shutil
import subprocess
import sys

import pytest
from making import data_of_the_tables
from runs import ROOT, environment

from dnrt_jax.config import validate
from dnrt_jax.config_file import load
from dnrt_jax.runtime.process import split_overrides

sys.path.insert(0, str(ROOT))
from scripts import reproduce, reproduce_plan, reproduce_rows

TABLES = ("table1", "table2", "table3", "table5", "table6")
SMALL = ["train.steps=1", "train.batch_size=8", "eval.batch_size=8"]
SMALL = [f"--config.{field}" for field in SMALL]
PLAIN = ["data.crop=none", "data.rand_augment=", "data.erase=0"]  # seconds to compile
PLAIN = [f"--config.{field}" for field in PLAIN]
BLOCKS = ["depth=1", "embed_dim=24", "num_heads=1"]
SHRUNK = {  # by the model; CNNs keep their shape and lose width
    "vit": BLOCKS,
    "vit_tiny": BLOCKS,
    "deit_tiny": BLOCKS,
    "cait_xxs": [*BLOCKS, "depth_token_only=1"],
    "pvt_tiny": ["depths=(1,1,1,1)", "embed_dims=(8,8,8,8)", "num_heads=(1,1,1,1)"],
    "tnt_small": [*BLOCKS, "inner_dim=8", "num_heads_inner=1"],
    "alexnet": ["widths=(8,8,8,8,8)", "hidden_dim=16"],
    "vgg11": ["widths=((8,),(8,),(8,),(8,),(8,))", "hidden_dim=16"],
    "resnet18": ["stage_sizes=(1,1)", "widths=(8,8)"],
    "resnet32": ["stage_sizes=(1,1,1)", "widths=(8,8,8)"],
    "mobilenet": ["stage_sizes=(1,1,1)", "widths=(8,8,8)"],
    "shufflenet": ["stage_sizes=(1,1)", "widths=(48,96)"],
    "gcn": ["embed_dim=8"],
    "graphsage": ["embed_dim=8"],
}
QUICK = ["cifar10 vgg11 raa+arr"]  # the others are slow


def name_of(row):
    return f"{row.dataset} {row.model} {row.case}"


ROWS = {(t, name_of(row)): row for t in TABLES for row in reproduce_rows.rows_of(t, "full")}
FIRSTS = {row.config: key for key, row in reversed(ROWS.items())}  # the first row of each config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_of_the_tables(tmp_path_factory.mktemp("data"))


def check(table, row, folder, data, *fields):
    """Trains a row for a step by its own command."""
    run = reproduce_plan.Run(row, 42, folder / "run", row.overrides() | {"seed": 42})
    done = subprocess.run(
        [*run.command(), *SMALL, *fields],
        cwd=ROOT,
        env=environment() | {"DATA_DIR": str(data)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = run.result()
    assert result["step"] == 1
    assert 0 <= result["last"] <= 100


@pytest.mark.parametrize(
    ("table", "name"),
    [pytest.param(*key, marks=[] if key[1] in QUICK else pytest.mark.slow) for key in ROWS],
)
def test_a_row_runs(tmp_path, data, table, name):
    """The augmentation with the first row of every config."""
    row = ROWS[table, name]
    shrunk = [f"--config.model.{field}" for field in SHRUNK[row.model]]
    augmented = FIRSTS[row.config] == (table, name)
    check(table, row, tmp_path, data, *shrunk, *([] if augmented else plain(row)))


def plain(row):
    """What leaves the augmentation out, which takes longer to compile than the model."""
    if row.dataset == "dgraph":
        return []
    return PLAIN[1:] if row.dataset.startswith("imagenet") else PLAIN  # images of many sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table, name in ROWS if name.endswith("raa+arr")]
)
def test_a_model_runs_at_its_true_size(tmp_path, data, table, name):
    """With RAA and ARR, on every data set of its table."""
    row = ROWS[table, name]
    check(table, row, tmp_path, data, *plain(row))
    shutil.rmtree(tmp_path / "run")  # gigabytes


@pytest.mark.parametrize(
    "table", ["table6", *(pytest.param(t, marks=pytest.mark.slow) for t in TABLES if t != "table6")]
)
def test_a_dry_run_tells_the_time_of_every_row_of_images(capsys, table):
    assert reproduce.main([table, "--dry_run"]) == 0
    *runs, total = capsys.readouterr().out.splitlines()
    assert len(runs) == sum(key[0] == table for key in ROWS)
    unknown = [line for line in runs if not re.fullmatch(r".* seed 42: [\d.e+-]+ h", line)]
    assert all(line.startswith("dgraph ") and line.endswith(": ?") for line in unknown)
    assert total.startswith(f"{len(runs)} runs, about ")


def test_the_parser_of_the_program_takes_every_row(tmp_path):
    for row in ROWS.values():
        run = reproduce_plan.Run(row, 42, tmp_path, row.overrides() | {"seed": 42})
        _, *words = run.command()
        words, overrides = split_overrides(words)
        assert words[:2] == ["-m", "dnrt_jax.main"]
        config = load(str(ROOT / words[2].removeprefix("--config=")), overrides)
        validate(config)
        assert (config.arr.weight > 0) == ("arr" in row.case), name_of(row)
        assert config.model.act == row.case.partition("+")[0]
