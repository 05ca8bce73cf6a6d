"""The tables of what compiled programs say are those of the committed rows."""

import sys

import pytest
from runs import ROOT

sys.path.insert(0, str(ROOT))
from dnrt_jax import models
from dnrt_jax.runtime.flops import of_image_model
from scripts import scaling_table, zoo, zoo_compiled
from scripts.study_plan import read


def test_the_table_of_many_chips_is_that_of_the_rows():
    table = scaling_table.table(read(scaling_table.RESULTS))
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert table in page, "run: python -m scripts.scaling_table"


@pytest.mark.parametrize("dtype", zoo_compiled.DTYPES)
def test_the_table_of_the_zoo_is_that_of_the_rows(dtype):
    table = zoo_compiled.table(read(ROOT / "results" / "zoo_compiled.jsonl"), dtype)
    page = (ROOT / "docs" / "models.md").read_text()
    assert table in page, "run: python -m scripts.zoo_compiled --table"


def test_the_table_of_what_models_cost_is_that_of_the_rows():
    page = (ROOT / "docs" / "models.md").read_text()
    assert zoo.table(read(ROOT / "results" / "zoo.jsonl")) in page, "run: scripts.zoo --table"


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit_tiny_patch4_32"])
def test_the_multiply_accumulates_of_the_rows_are_todays(name):
    (row,) = (r for r in read(ROOT / "results" / "zoo.jsonl") if r["model"] == name and "macs" in r)
    model = models.create(name, num_classes=10, act="raa")
    assert row["macs"] == of_image_model(model).total


def test_nothing_of_the_zoo_is_float64_or_copies_the_data_set():
    for row in read(ROOT / "results" / "zoo_compiled.jsonl"):
        assert row["values"]["float64 arrays"] == 0, row["model"]
        assert row["values"].get("copies of the data set", 0) == 0, row["model"]
