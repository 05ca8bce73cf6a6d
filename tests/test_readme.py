"""What the README shows is run."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(marker: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found, marker
    return found[1]


def test_the_example_runs_in_under_twenty_lines():
    code = block("example")
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    names: dict = {}
    exec(code, names)
    assert np.isfinite(names["loss"])
    assert (names["centroids"].count == (jnp.arange(10) < 8)).all()
    assert all(np.isfinite(g).all() for g in names["grads"]["Dense_0"].values())


def test_every_file_it_names_is_there():
    root = Path(__file__).parent.parent
    for name in re.findall(r"`((?:dnrt_jax|configs|docs|tests)/[\w/.]*)`", README):
        assert (root / name).exists(), name
