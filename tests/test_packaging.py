"""The sdist and the wheel: what is in them, what they need, and that they train from any folder."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from runs import ROOT, environment

import dnrt_jax
from dnrt_jax.runtime import train_extra

CONFIG = """\
from dnrt_jax.config import default


def get_config():
    config = default()
    config.model.patch_size, config.model.embed_dim = 4, 8
    config.model.depth, config.model.num_heads = 1, 1
    config.data.image_size = config.data.eval_resize = 8
    config.data.mean, config.data.std = (0.3,), (0.38,)
    config.train.epochs, config.train.steps = 0, 1
    return config
"""
WITHOUT_EXTRA = f"""\
import runpy, sys

for name in {set(train_extra.PACKAGES) - {"absl", "optax", "orbax"}!r}:  # flax itself needs these
    sys.modules[name] = None
"""


FOLDERS = ["configs", "dnrt_jax", "docs", "notebooks", "results", "scripts", "tests"]
FILES = ["CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE"]
FILES += [
    "MANIFEST.in",
    "README.md",
    "mkdocs.yml",
    "SECURITY.md",
    "pyproject.toml",
    "requirements.txt",
]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Built from a copy of the sources, so that no build folder is left in the clone."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run(["cp", "-r", *FOLDERS, *FILES, folder], cwd=ROOT, check=True)
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    done = python("-c", build, cwd=folder, path="")
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "dist").glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist):
    """Built from the sdist, as for an upload to a package index."""
    pytest.importorskip("pip")
    folder = sdist.parent
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir=.", sdist.name, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def pip(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def python(*arguments, cwd, path=ROOT):
    return run(sys.executable, *arguments, cwd=cwd, path=path)


def run(*command, cwd, path):
    """Runs a command that finds the packages in the folder `path` before all others."""
    paths = filter(None, [str(path), os.environ.get("PYTHONPATH")])
    env = environment() | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def test_the_sdist_holds_what_a_clone_holds_without_leftovers(sdist):
    with tarfile.open(sdist) as archive:
        files = {Path(*Path(m.name).parts[1:]) for m in archive.getmembers() if m.isfile()}
    expected = {Path(name) for name in FILES}
    for folder in FOLDERS:
        expected |= {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file()}
    expected = {path for path in expected if path.suffix not in (".pyc", ".pyo")}
    made = {path for path in files if path.parts[0] == "dnrt_jax.egg-info"}
    assert files - made == expected | {Path("PKG-INFO"), Path("setup.cfg")}


def test_the_distributions_are_what_a_package_index_accepts(sdist, wheel):
    pytest.importorskip("twine")
    done = run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=ROOT, path="")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_holds_the_package_with_its_types_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "dnrt_jax/py.typed" in names
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "dnrt_jax").rglob("*.py")}
    assert sources <= set(names)
    roots = {Path(name).parts[0] for name in names}
    assert roots == {"dnrt_jax", f"dnrt_jax-{dnrt_jax.__version__}.dist-info"}


def test_the_wheel_needs_jax_and_flax_alone_unless_an_extra_is_asked_for(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">=")[0] for line in needed) == ["flax", "jax"]
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "train",
        "hub",
        "export",
        "docs",
        "gcs",
        "test",
        "torch",
        "tpu",
        "cuda",
        "aot-tpu",
        "aot-gpu",
    }


def test_the_installed_wheel_trains_with_a_config_of_the_user_from_another_folder(wheel, tmp_path):
    installed, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    pip("install", "--no-deps", "--no-index", f"--target={installed}", str(wheel), cwd=tmp_path)
    elsewhere.mkdir()
    (tmp_path / "my_config.py").write_text(CONFIG)
    where = python("-c", "import dnrt_jax; print(dnrt_jax.__file__)", cwd=elsewhere, path=installed)
    assert where.stdout.strip() == str(installed / "dnrt_jax" / "__init__.py")
    program = [installed / "bin" / "dnrt", "train", f"--config={tmp_path}/my_config.py"]
    done = run(*program, "--workdir=run", cwd=elsewhere, path=installed)
    assert done.returncode == 0, done.stderr
    assert "Finished." in done.stdout
    assert (elsewhere / "run" / "summary.json").exists()
    assert os.listdir(elsewhere) == ["run"]


def test_raa_and_arr_and_the_models_need_jax_and_flax_alone(tmp_path):
    code = "import dnrt_jax, dnrt_jax.nnx\nfrom dnrt_jax import models\n"
    code += "models.create('vit_tiny_patch4_32', num_classes=10)\n"
    done = python("-c", WITHOUT_EXTRA + code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


MODULES = ["main", "convert", "predict", "preview", "report", "benchmark"]
STARTS = [f"runpy.run_module('dnrt_jax.{m}', run_name='__main__', alter_sys=True)" for m in MODULES]
STARTS.append("from dnrt_jax import cli; cli.main(['train'])")


@pytest.mark.parametrize("start", STARTS, ids=[*MODULES, "dnrt"])
def test_a_program_without_the_extra_says_in_one_line_what_to_install(tmp_path, start):
    done = python("-c", WITHOUT_EXTRA + start, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: not installed: ")
    assert line.endswith("run: pip install 'dnrt_jax[train]'")
