"""Exported programs give the probabilities of the weights that they were made of."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import ROOT, environment
from test_convert import CNN, VIT, failing
from test_predict import NAMES, drawn, picture, run

from dnrt_jax import convert, inference, models, stablehlo
from dnrt_jax.runtime import weight_files
from dnrt_jax.runtime.weight_files import Description

pytest.importorskip("flatbuffers")
MODELS = {"vit_tiny_patch4_32": VIT, "cifar_resnet18": CNN, "mlp": {"image_size": 8, "depth": 1}}
ALONE = """\
import sys
from pathlib import Path
for name in ("flax", "dnrt_jax"):
    sys.modules[name] = None
import jax, numpy
path, images = sys.argv[1:]
program = jax.export.deserialize(bytearray(Path(path).read_bytes()))
numpy.save(images, program.call(numpy.load(images)))
"""


def weights(folder, name="vit_tiny_patch4_32"):
    """A file of drawn weights whose probabilities are neither 0 nor 1."""
    model = {"name": name, "num_classes": 7, "act": "raa", **MODELS[name]}
    variables = jax.tree.map(lambda x: 0.05 * np.abs(x), drawn(models.create(**model), 3))
    description = Description(model, (0.5,) * 3, (0.25,) * 3, 10, NAMES)
    path = folder / "weights" / "a.safetensors"
    weight_files.write(path, convert.to_torch(variables), description)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    path = weights(folder)
    convert.main([str(path), str(folder / "a.stablehlo"), "--format=stablehlo"])
    return path, folder / "a.stablehlo"


@pytest.mark.parametrize("name", MODELS)
def test_a_program_gives_the_same_probabilities_for_any_batch(tmp_path, name):
    path, out = weights(tmp_path, name), tmp_path / "a.stablehlo"
    convert.main([str(path), str(out), "--format=stablehlo"])
    state_dict, described = convert.load(path)
    assert described is not None
    function, variables = inference.classifier(state_dict, described)
    program = stablehlo.read(out)
    for size in (1, 3):
        images = np.random.default_rng(size).integers(0, 256, (size, 10, 10, 3), np.uint8)
        expected = np.asarray(jax.jit(function)(variables, images))
        assert expected.max() < 0.999
        np.testing.assert_allclose(program(images), expected, atol=1e-6)


def test_predict_runs_it(exported, tmp_path, capsys):
    path, out = exported
    pictures = [picture(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    _, of_weights = run(capsys, f"--weights={path}", *pictures)
    _, of_program = run(capsys, f"--weights={out}", *pictures)
    for one, other in zip(of_weights, of_program, strict=True):
        for a, b in zip(one["predictions"], other["predictions"], strict=True):
            assert a["class"] == b["class"]
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-6)


def test_one_program_is_for_cpu_gpu_and_tpu_and_any_batch(exported):
    program = jax.export.deserialize(bytearray(exported[1].read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0]) == "uint8[batch,10,10,3]"


def test_jax_alone_runs_it(exported, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 10, 10, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    expected = np.asarray(stablehlo.read(exported[1])(images))
    command = [sys.executable, "-c", ALONE, exported[1], tmp_path / "images.npy"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), expected, atol=1e-6)


def test_the_example_of_the_docs_runs(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported[1].parent, "deployed")
    Path("deployed/a.stablehlo").rename("deployed/digits.stablehlo")
    page = (ROOT / "docs/recipes.md").read_text()
    (code,) = re.findall(r"<!-- deployed -->\n```python\n(.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["probabilities"].shape == (4, 7)
    np.testing.assert_allclose(names["probabilities"].sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("keep", [0, 40, 5000])
def test_a_torn_program_is_one_line(exported, tmp_path, keep):
    torn = tmp_path / "a.stablehlo"
    torn.write_bytes(exported[1].read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.stablehlo: not a whole \.stablehlo file"):
        stablehlo.read(torn)


def test_without_flatbuffers_it_says_what_to_install(exported, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("jax._src.export.serializ")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    line = failing(capsys, exported[0], tmp_path / "a.stablehlo", "--format=stablehlo")
    assert line.endswith("a.stablehlo: needs pip install 'dnrt_jax[export]'")


def test_the_name_must_fit_the_format(exported, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert.main([str(exported[0]), str(tmp_path / "a.bin"), "--format=stablehlo"])
    assert "its name must end in .stablehlo" in capsys.readouterr().err
