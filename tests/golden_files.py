"""Values computed with the authors' PyTorch code, in float64."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file}


def below(values: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries `prefix/NAME` as {NAME: value}."""
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}


def assert_close(actual, expected, relative: float) -> None:
    """The largest error, measured against the largest value, is at most `relative`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= relative, f"relative error {error:.2e} > {relative:.0e}"
