"""Every block of code in README and docs is run, here or in the test that `ELSEWHERE` names."""

import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from runs import ROOT, environment

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "example": "test_readme.py",
    "model": "test_contributing.py",
    "jit": "test_own_model.py",
    "shard_map": "test_own_model.py",
    "pmap": "test_own_model.py",
    "deployed": "test_stablehlo.py",
}
HERE = {"nnx", "equinox", "saving", "forward mode", "parts", "task", "config", "diff"}
NOT_RUN = {"needs jax2onnx"}


def blocks(page, language):
    """(marker, code) of every block of a page; the marker is the comment in the line before it."""
    found = re.findall(
        rf"(?:<!-- ([^\n]*) -->\n)?```{language}\n(.*?)```", page.read_text(), re.DOTALL
    )
    return [(marker, code) for marker, code in found]


def block(name, page):
    return next(code for marker, code in blocks(ROOT / page, "python") if marker == name)


def executed(code):
    names: dict = {}
    exec(code, names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_marker_and_a_test(page):
    for language in ("python", "diff"):
        for marker, code in blocks(page, language):
            assert marker in HERE | NOT_RUN | ELSEWHERE.keys(), code
            if marker in ELSEWHERE:
                assert f'"{marker}"' in (
                    text := (ROOT / "tests" / ELSEWHERE[marker]).read_text()
                ) or (f"<!-- {marker} -->" in text)


@pytest.mark.parametrize("name", ["nnx", "equinox"])
def test_the_examples_of_other_frameworks_train(name):
    if name == "equinox":
        pytest.importorskip("equinox")
    names = executed(block(name, "docs/own_model.md"))
    assert names["losses"][-1] < 0.8 * names["losses"][0]
    assert (names["centroids"].count == (jnp.arange(10) < 8) * 20).all()


def test_what_the_example_saves_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = executed(block("nnx", "docs/own_model.md").replace("range(20)", "range(2)"))
    saved = nnx.state(names["net"], nnx.Param), names["centroids"]
    exec(block("saving", "docs/own_model.md"), names)
    restored = names["restored"]
    assert names["centroids"].count.tolist() == 8 * [2] + 2 * [0]
    jax.tree.map(np.testing.assert_array_equal, (restored["params"], restored["centroids"]), saved)


def test_the_example_of_forward_mode_has_it():
    model = executed(block("forward mode", "docs/own_model.md"))["model"].clone(
        depth=1, embed_dim=6, image_size=8
    )
    images = jnp.ones((1, 8, 8, 3))
    variables = model.init(jax.random.key(0), images)
    run = lambda x: model.apply({"params": variables["params"]}, x)
    assert np.isfinite(jax.jvp(run, (images,), (images,))[1]).all()


def test_the_parts_of_a_run_can_be_looked_at(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = executed(block("parts", "docs/debugging.md"))
    assert int(names["state"].step) == 0
    assert "ViT" in capsys.readouterr().out


def test_the_task_of_the_docs_is_the_one_that_is_tested():
    for name, file in {"task": "signals.py", "config": "config.py"}.items():
        assert block(name, "docs/extend.md") == (ROOT / "tests/tasks/third" / file).read_text()


def apply(diff, folder):
    """Applies a diff without line numbers: each hunk has to be found exactly once."""
    for file in re.split(r"^--- .*\n", diff, flags=re.MULTILINE)[1:]:
        name, _, hunk = file.partition("@@\n")
        path = folder / name.removeprefix("+++ b/").strip()
        before = "".join(line[1:] for line in hunk.splitlines(True) if line[0] in " -")
        after = "".join(line[1:] for line in hunk.splitlines(True) if line[0] in " +")
        text = path.read_text()
        assert text.count(before) == 1, f"{path}: {before}"
        path.write_text(text.replace(before, after))


def test_the_changes_of_the_docs_train_together(tmp_path):
    page = ROOT / "docs" / "extend.md"
    shutil.copytree(ROOT / "dnrt_jax", tmp_path / "dnrt_jax")
    for marker, diff in blocks(page, "diff"):
        assert marker == "diff"
        apply(diff, tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    model = block("model", "CONTRIBUTING.md")
    (tmp_path / "dnrt_jax/models/plain.py").write_text(model)
    (command,) = re.findall(r"^dnrt train (.*)$", page.read_text(), re.MULTILINE)
    tiny = ["model.width=4", "model.depth=2", "train.steps=2", "arr.weight=0"]
    done = subprocess.run(
        [sys.executable, "-m", "dnrt_jax.main", *command.split(), *[f"--config.{t}" for t in tiny]],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Finished." in done.stdout
    values = re.search(r"step 2 .* loss (\S+) .*loss_ce (\S+)", done.stderr)
    assert values, done.stderr
    assert float(values[1]) < float(values[2])  # the focal loss is below the cross-entropy
