"""Where the CPU settings apply."""

from types import SimpleNamespace

import pytest

from dnrt_jax.runtime import process


@pytest.mark.parametrize(
    ("plugins", "libtpu", "files", "expected"),
    [
        ([], False, [], False),
        ([], False, ["/dev/nvidia0"], False),  # JAX could not use it
        ([], True, [], False),  # installed to compile for TPUs
        ([], True, ["/dev/accel0"], True),
        ([], True, ["/dev/vfio/0"], True),
        ([], True, ["/dev/vfio/vfio"], False),  # of any machine that can pass devices on
        (["xla_cuda12"], False, [], False),
        (["xla_cuda12"], True, ["/dev/nvidiactl"], True),
        (["xla_cuda12"], True, ["/dev/accel0"], True),
        (["of_somebody"], False, [], True),
    ],
)
def test_an_accelerator_is_a_device_and_what_lets_jax_use_it(
    monkeypatch, tmp_path, plugins, libtpu, files, expected
):
    for name in files:
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    glob = process.glob
    monkeypatch.setattr(process, "glob", lambda pattern: glob(f"{tmp_path}{pattern}"))
    monkeypatch.setattr(process, "find_spec", lambda name: libtpu or None)
    entries = [SimpleNamespace(name=name) for name in plugins]
    monkeypatch.setattr(process, "entry_points", lambda group: entries)
    assert process.may_have_accelerator() == expected
