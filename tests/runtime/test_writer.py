"""Checkpoints are written in the background, and what fails there is not lost."""

import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dnrt_jax.runtime import checkpoint
from dnrt_jax.runtime.errors import CheckpointError
from dnrt_jax.runtime.writer import Writer


@pytest.fixture
def gate(monkeypatch):
    """An event that writing waits for."""
    gate, write = threading.Event(), checkpoint.write

    def gated(*args, **kwargs):
        assert gate.wait(10)
        write(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "write", gated)
    yield gate
    gate.set()


def save(writer, state, step, newest=2, best=None, extra=None):
    writer.save(state, step, config="{}", extra=extra or {}, newest=newest, best=best)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, gate):
    writer, state = Writer(tmp_path, before=lambda: None), {"w": jnp.arange(3.0)}
    window = {"loss": [1.0]}
    save(writer, state, 1, extra={"window": window})
    writer.check()
    assert checkpoint.steps(tmp_path) == []
    state["w"].delete()  # as a step that takes the buffers over does
    window["loss"].append(2.0)
    gate.set()
    writer.wait()
    restored = checkpoint.restore(tmp_path, None)
    np.testing.assert_array_equal(restored.state["w"], [0, 1, 2])
    assert restored.extra == {"window": {"loss": [1.0]}}


def test_saves_come_one_after_the_other_and_old_ones_go(tmp_path):
    writer = Writer(tmp_path, before=lambda: None)
    for step in (1, 2, 3, 4):
        save(writer, {"w": jnp.full(2, float(step))}, step, newest=1, best=2)
    writer.wait()
    assert checkpoint.steps(tmp_path) == [2, 4]


def test_a_failure_is_raised_at_the_next_boundary_once(tmp_path):
    def fails():
        raise OSError(28, "No space left on device")

    writer = Writer(tmp_path, before=fails)
    save(writer, {"w": jnp.ones(2)}, 1)
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.check()
    assert checkpoint.steps(tmp_path) == []


def test_a_wait_ends_at_its_bound_and_names_the_folder(tmp_path, gate):
    writer = Writer(tmp_path, before=lambda: None)
    save(writer, {"w": jnp.ones(2)}, 1)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: .* 0\.01 s; the one before"):
        writer.wait(0.01)


def test_who_waited_to_the_bound_does_not_wait_again_on_closing(tmp_path, gate):
    writer = Writer(tmp_path, before=lambda: None)
    save(writer, {"w": jnp.ones(2)}, 1)
    start = time.monotonic()
    for seconds in (0.01, 5):
        with pytest.raises(CheckpointError, match="the one before it is intact"):
            writer.wait(seconds)
    assert time.monotonic() - start < 5
    gate.set()
    save(writer, {"w": jnp.ones(2)}, 2)
    writer.wait(10)
    assert checkpoint.steps(tmp_path) == [1, 2]
