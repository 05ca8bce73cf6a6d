"""The training step as the compilers for TPU and GPU make it, on machines that have neither.

The numbers are those of today's program. One that moves for a good reason is committed anew, with
the reason.
"""

import argparse
from importlib.util import find_spec

import pytest

from dnrt_jax.benchmark import __main__ as program
from dnrt_jax.benchmark import compile as compiled
from dnrt_jax.benchmark import targets

SMALL = {"depth": 2, "batch_size": 64}


def rows(target, **settings):
    """Values of a compiled program by case."""
    parser = argparse.ArgumentParser()
    compiled.add_arguments(parser)
    args = parser.parse_args([f"--target={target}"])
    vars(args).update(SMALL | settings)
    return {row.case.removeprefix("train: "): row.ours for row in compiled.run(args)}


@pytest.fixture(scope="module")
def tpu():
    pytest.importorskip("libtpu")
    return rows("tpu:v5e:2x2")


@pytest.fixture(scope="module")
def augmented():
    pytest.importorskip("libtpu")
    return rows("tpu:v5e:2x2", augment="full")


def test_nothing_on_a_tpu_is_float64(tpu):
    assert tpu["float64 arrays"] == 0


def test_the_collectives_of_a_step_are_those_planned(tpu):
    kinds = {kind: tpu.get(kind, 0) for kind in compiled.hlo.KINDS}
    # ARR gathers all responses at once; gradients, their mean and the records are reduced.
    assert kinds == dict.fromkeys(kinds, 0) | {"all-gather": 1, "all-reduce": 7}
    assert tpu["all-gather, results"] == pytest.approx(64 * 2 * 192 * 4 / 1e6)
    gradients = 2 * 915_660 / 1e6  # in bfloat16
    assert gradients <= tpu["all-reduce, results"] <= 1.1 * gradients


def test_the_data_set_lies_on_a_tpu_once_and_is_not_copied(tpu):
    assert tpu["copies of the data set"] == 0
    assert tpu["outside the loop"] < 0.2  # the state is packed and unpacked


def test_a_tpus_cycles_are_what_they_were(tpu):
    assert tpu["step"] == pytest.approx(0.863, rel=0.05)
    assert tpu["step"] == pytest.approx(sum(tpu[name] for name in compiled.PARTS))
    named = ("attention", "MLP", "norms", "optimiser", "loss and ARR")
    assert min(tpu[name] for name in named) > 0.02
    assert tpu["rest"] < 0.06 * tpu["step"]


def test_single_elements_are_gathered_for_labels_and_counts_alone(tpu):
    assert (tpu["scalar gathers"], tpu["scalar scatters"]) == (4, 1)


@pytest.mark.slow
def test_the_augmentation_on_a_tpu_costs_no_more_than_it_did(tpu, augmented):
    assert augmented["float64 arrays"] == 0
    assert augmented["all-gather"] == 1
    assert 0.2 < augmented["augmentation"] < 0.58  # 0.58 with sums of one-hots in affine transforms
    assert augmented["step"] == pytest.approx(tpu["step"] + augmented["augmentation"], rel=0.1)
    # As without it: of labels and counts.
    assert (augmented["scalar gathers"], augmented["scalar scatters"]) == (4, 1)


@pytest.mark.slow
def test_a_gpus_kernels_and_bytes_are_what_they_were():
    if not any(map(targets._installed, ("xla_cuda12", "xla_cuda13"))):
        pytest.skip("needs JAX's CUDA plug-in")
    gpu = rows("gpu:h100")
    assert gpu["float64 arrays"] == gpu["copies of the data set"] == 0
    assert gpu["kernels"] == pytest.approx(169, rel=0.05)
    assert gpu["bytes"] == pytest.approx(0.735, rel=0.05)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("tpu:v5e", "known are tpu:v4"),
        ("tpu:v9:2x2", "known are tpu:v4"),
        ("tpu:v5e:2xx2", "known are tpu:v4"),
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
def test_a_mistake_is_answered_from_where_it_compiles(capsys):
    assert "not divisible" in refused(capsys, "--target=tpu:v5e:3x3")
    line = refused(capsys, "--target=tpu:v5e:2x2", "--batch_size=9")
    assert "batch_size=9 does not divide over 4 devices" in line


def refused(capsys, *options):
    """The one line with which the benchmark ends."""
    with pytest.raises(SystemExit) as ended:
        program.main(["compile", *options])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (1, "", 1)
    return err
