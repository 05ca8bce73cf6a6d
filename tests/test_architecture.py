"""Who may know whom: the imports of each file, read and compared with what is allowed."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dnrt_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = {"main", "loop"}  # benchmark/loop.py measures it


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def known(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in imports(path))


@pytest.mark.parametrize("name", ["raa", "arr", "record"])
def test_the_two_ideas_know_only_jax_and_flax(name):
    roots = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")}
    assert roots <= {"jax", "flax", "typing", "collections"}


def test_the_public_face_knows_nothing_but_the_two_ideas():
    ideas = {"jax", "flax", "typing", "dnrt_jax.raa", "dnrt_jax.arr", "dnrt_jax.record"}
    for name in ("__init__", "nnx"):
        for module in imports(PACKAGE / f"{name}.py") - {"dnrt_jax", "dnrt_jax.__version__"}:
            assert any(module == idea or module.startswith(f"{idea}.") for idea in ideas), module


def test_models_know_no_config_no_data_and_no_arr():
    for path in (PACKAGE / "models").glob("*.py"):
        for other in ("config", "data", "arr", "training", "train", "experiment", "tasks"):
            assert not known(path, f"dnrt_jax.{other}"), f"{path.name} imports {other}"


def test_data_knows_no_flax_and_no_model():
    for path in (PACKAGE / "data").glob("*.py"):
        for other in ("flax", "dnrt_jax.models", "dnrt_jax.train", "dnrt_jax.config"):
            assert not known(path, other), f"{path.name} imports {other}"


def test_only_programs_import_the_loop():
    users = {path.stem for path in FILES if known(path, "dnrt_jax.train")}
    assert users <= PROGRAMS


def test_nobody_outside_the_tasks_asks_what_kind_of_data_it_is():
    package = PACKAGE.glob
    outside = [PACKAGE / f"{name}.py" for name in ("config", "experiment", "train", "convert")]
    outside += [PACKAGE / "preview.py", *package("training/*.py"), *package("report/*.py")]
    for path in outside:
        text = path.read_text()
        assert "graph" not in text, path
        assert not re.search(r"isinstance\([^)]*\b(Dataset|GraphData|Source|Stream|Arrays)\b", text)


@pytest.mark.parametrize("package", ["tensorflow", "torch"])
def test_nothing_needs_it_at_import(package):
    for path in FILES:
        if path.name == "torch_vit.py":  # the peer of a benchmark, which asks for torch before
            continue
        top = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not any(name.split(".")[0] == package for name in top), path
