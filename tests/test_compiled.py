"""The training step as the compilers for TPU and GPU make it, on machines that have neither.

The numbers are those of today's program. One that moves for a good reason is committed anew, with
the reason.
"""

import argparse
import subprocess
from importlib.metadata import version
from importlib.util import find_spec

import jax
import pytest

from dnrt_jax import models
from dnrt_jax.benchmark import __main__ as program
from dnrt_jax.benchmark import compile as compiled
from dnrt_jax.benchmark import targets

SMALL = {"depth": 1, "batch_size": 64, "augment": "full"}


def rows(target, **settings):
    """Values of a compiled program by case."""
    parser = argparse.ArgumentParser()
    compiled.add_arguments(parser)
    args = parser.parse_args([f"--target={target}"])
    vars(args).update(SMALL | settings)
    return {row.case.removeprefix("train: "): row.ours for row in compiled.run(args)}


@pytest.fixture(scope="module", autouse=True)
def no_flags_of_the_tests():
    """The compiler for TPUs ends at a flag that only the one for CPUs knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")
        yield


@pytest.fixture(scope="module")
def tpu():
    """A small ViT's training step with RAA + ARR and the whole augmentation, on four chips."""
    pytest.importorskip("libtpu")
    return rows("tpu:v5e:2x2")


def test_nothing_on_a_tpu_is_float64(tpu):
    assert tpu["float64 arrays"] == 0


def test_the_collectives_of_a_step_are_those_planned(tpu):
    kinds = {kind: tpu.get(kind, 0) for kind in compiled.hlo.KINDS}
    # ARR gathers all responses at once; gradients, their mean and the records are reduced.
    assert kinds == dict.fromkeys(kinds, 0) | {"all-gather": 1, "all-reduce": 6}
    assert tpu["all-gather, results"] == pytest.approx(64 * 192 * 4 / 1e6)
    vit = models.create("vit_tiny_patch4_32", num_classes=10, depth=SMALL["depth"])
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes = jax.eval_shape(vit.init, jax.random.key(0), images)["params"]
    gradients = sum(2 * x.size for x in jax.tree.leaves(shapes)) / 1e6  # in bfloat16
    assert gradients <= tpu["all-reduce, results"] <= 1.1 * gradients


def test_the_data_set_lies_on_a_tpu_once_and_is_not_copied(tpu):
    assert tpu["copies of the data set"] == 0
    assert tpu["outside the loop"] < 0.2  # the state is packed and unpacked


def test_a_tpus_cycles_are_what_they_were(tpu):
    compiler = "0.0.52"
    if version("libtpu") != compiler:
        pytest.skip(f"the number is an estimate of libtpu {compiler}")
    assert tpu["step"] == pytest.approx(1.22, rel=0.05)


def test_every_cycle_belongs_to_a_part_of_the_step(tpu):
    assert tpu["step"] == pytest.approx(sum(tpu[name] for name in compiled.PARTS))
    named = ("augmentation", "attention", "MLP", "norms", "optimiser", "loss and ARR")
    assert min(tpu[name] for name in named) > 0.02
    assert tpu["rest"] < 0.08 * tpu["step"]


def test_a_tpu_gathers_and_scatters_no_single_element(tpu):
    assert (tpu["scalar gathers"], tpu["scalar scatters"]) == (0, 0)


@pytest.mark.slow
def test_a_step_on_what_many_hosts_send_compiles_for_all_of_them():
    pytest.importorskip("libtpu")
    settings = {"dispatch": "single", "augment": "none", "batch_size": 256}
    tpu = rows("tpu:v5e:8x8", **settings)
    assert (tpu["processes"], tpu["float64 arrays"]) == (16, 0)
    assert "copies of the data set" not in tpu  # none lies on the devices
    assert tpu["all-reduce"] == 6


@pytest.mark.slow
def test_a_gpus_kernels_and_bytes_are_what_they_were():
    if not any(map(targets._installed, ("xla_cuda12", "xla_cuda13"))):
        pytest.skip("needs JAX's CUDA plug-in")
    gpu = rows("gpu:h100", depth=2, augment="none")
    assert gpu["float64 arrays"] == gpu["copies of the data set"] == 0
    assert gpu["kernels"] == pytest.approx(169, rel=0.05)
    assert gpu["bytes"] == pytest.approx(0.534, rel=0.05)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("tpu:v5e", "known are tpu:v4"),
        ("tpu:v9:2x2", "known are tpu:v4"),
        ("tpu:v5e:2xx2", "known are tpu:v4"),
        ("tpu:v5e:0x2", "known are tpu:v4"),
        ("gpu:b200", "gpu:a100, gpu:h100, gpu:h200"),
        ("h100", "known are"),
    ],
)
def test_an_unknown_target_is_answered_with_those_known(capsys, target, words):
    assert words in refused(capsys, f"--target={target}")


@pytest.mark.parametrize(
    ("target", "extra"), [("tpu:v5e:2x2", "[aot-tpu]"), ("gpu:h100", "[aot-gpu]")]
)
def test_a_missing_compiler_is_named(capsys, monkeypatch, target, extra):
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    assert extra in refused(capsys, f"--target={target}")


@pytest.mark.skipif(not find_spec("libtpu"), reason="needs libtpu")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target=tpu:v5e:2x2", "--batch_size=9"], "batch_size=9 does not divide over 4 devices"),
        (["--target=tpu:v5e:2x2", "--model=gcn"], "--model=gcn: takes no images"),
        (["--target=tpu:v5e:2x2", "--what=infer", "--members=2"], "needs --what=train"),
        pytest.param(["--target=tpu:v5e:3x3"], "not divisible", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_answered_from_where_it_compiles(capsys, options, words):
    assert words in refused(capsys, *options)


def test_what_ends_a_compilation_is_shown_whole(capsys, monkeypatch):
    failed = subprocess.CompletedProcess([], -8, "", "a fault\nin two lines\n")
    monkeypatch.setattr(compiled.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="ended with -8"):
        compiled.compiled({"dump": None})
    assert "a fault\nin two lines\n" in capsys.readouterr().err


def refused(capsys, *options):
    """The one line with which the benchmark ends."""
    with pytest.raises(SystemExit) as ended:
        program.main(["compile", *options])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (1, "", 1)
    return err
