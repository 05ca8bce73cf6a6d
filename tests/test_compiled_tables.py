"""The tables of what compiled programs say are those of the committed rows."""

import sys

import pytest
from runs import ROOT

sys.path.insert(0, str(ROOT))
from scripts import scaling_table, zoo_compiled
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


def test_nothing_of_the_zoo_is_float64_or_copies_the_data_set():
    for row in read(ROOT / "results" / "zoo_compiled.jsonl"):
        assert row["values"]["float64 arrays"] == 0, row["model"]
        assert row["values"].get("copies of the data set", 0) == 0, row["model"]
