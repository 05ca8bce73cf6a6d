"""The notebook runs from top to bottom, and the repository has it without outputs."""

import json
import re
import sys

import pytest
from runs import ROOT, environment

PATH = ROOT / "notebooks" / "dnrt_colab.ipynb"


def test_its_example_runs_alone():
    cells = json.loads(PATH.read_text())["cells"]
    (code,) = [text for c in cells if "arr.update(" in (text := "".join(c["source"]))]
    names: dict = {}
    exec(code, names)
    assert 0 < float(names["loss"]) < 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_the_notebook_runs(tmp_path, monkeypatch, store, place):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(PATH, as_version=4)
    runs = tmp_path / "runs" if place == "disk" else "gs://bucket/notebook"
    notebook.cells = [c for c in notebook.cells if "install" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.source = cell.source.replace(
            'epochs, runs = 10, "runs/notebook"', f'epochs, runs = 2, "{runs}"'
        )
        cell.source = cell.source.replace("!python ", f"!{sys.executable} ")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [
        output.get("text", "") + " ".join(output.get("data", {}))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    said = "\n".join(outputs)
    assert "classes seen 8" in said
    assert len(re.findall(r"Finished\. Test accuracy 0\.\d{4}", said)) == 2
    assert said.count("image/png") == 2
    assert re.search(r"zero\.png: \d \d+\.\d%", said)


def test_the_repository_has_no_outputs():
    text = PATH.read_text()
    assert text.count('"outputs": []') == text.count('"cell_type": "code"')


def test_its_example_is_the_readmes():
    (example,) = re.findall(
        r"<!-- example -->\n```python\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert example.splitlines()[-1] in PATH.read_text()
