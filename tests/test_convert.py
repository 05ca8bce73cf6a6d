"""Weights in and out of files; the rule itself is tested with the models."""

import argparse
import json
import os
import pickle
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from golden_files import assert_close, below, load

from dnrt_jax import convert, experiment, models, torch_weights
from dnrt_jax.config import default, validate
from dnrt_jax.runtime import weight_files
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.weight_files import Description

VIT = {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 2}
CNN = {"image_size": 8, "stage_sizes": (1, 1), "widths": (4, 6)}
VIT_FLAGS = ["--model=vit_tiny_patch4_32", *(f"--{k}={v}" for k, v in VIT.items())]

# Two sizes of each model with position embeddings, and the tokens before their grids.
PVT = {"embed_dims": (4, 6), "depths": (1, 1), "num_heads": (1, 2), "mlp_ratios": (1, 1)}
POSITIONS = {
    "vit_tiny_patch4_32": ({**VIT}, {"pos_embed": 1}),
    "deit_tiny_patch4_32": ({**VIT}, {"pos_embed": 2}),
    "cait_xxs24_patch4_32": ({**VIT, "depth_token_only": 1}, {"pos_embed": 0}),
    "tnt_s_patch4_32": (
        {**VIT, "inner_dim": 4, "num_heads_inner": 2, "first_stride": 1},
        {"patch_pos": 1},
    ),
    "pvt_tiny_32": (
        {"image_size": 8, "sr_ratios": (2, 1), **PVT},
        {"pos_embed1": 0, "pos_embed2": 1},
    ),
}


def state_dict(name="vit_tiny_patch4_32", num_classes=5, channels=3, seed=0, **kwargs):
    """Random weights of a model, with its torch names."""
    kwargs = kwargs or VIT
    model = models.create(name, num_classes=num_classes, **kwargs)
    rng = np.random.default_rng(seed)
    drawn = lambda x: 0.2 * rng.standard_normal(x.shape).astype(np.float32)
    return convert.to_torch(jax.tree.map(drawn, convert.shapes(model, channels)))


def vit(weights, num_classes=5, **kwargs):
    return convert.from_torch(
        weights, "vit_tiny_patch4_32", num_classes=num_classes, **{**VIT, **kwargs}
    )


def description(**changed):
    model = {"name": "vit_tiny_patch4_32", "num_classes": 5, "act": "raa", **VIT}
    fields = {
        "mean": (0.5,) * 3,
        "std": (0.2,) * 3,
        "eval_resize": 9,
        "class_names": tuple("abcde"),
    }
    return Description(**{"model": model, **fields, **changed})


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def failing(capsys, *argv):
    """The one line that the program ends with."""
    with pytest.raises(SystemExit) as error:
        convert.main([str(argument) for argument in argv])
    assert error.value.code == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


# ---------------------------------------------------------------- what is adapted, and what is not


def test_another_number_of_classes_gives_a_zero_head_and_a_line_that_says_so(caplog):
    source = state_dict()
    variables = vit(source, num_classes=3)
    assert variables["params"]["head"]["kernel"].shape == (8, 3)
    assert not any(leaf.any() for leaf in jax.tree.leaves(variables["params"]["head"]))
    (line,) = caplog.messages
    assert "head.weight zero, for 3 classes instead of 5" in line
    back = convert.to_torch(variables)
    heads = {"head.weight", "head.bias"}
    assert_equal(
        {k: v for k, v in back.items() if k not in heads},
        {k: source[k] for k in back if k not in heads},
    )


def test_both_heads_of_deit_are_new():
    name = "deit_tiny_patch4_32"
    source = state_dict(name)
    params = convert.from_torch(source, name, num_classes=3, **VIT)["params"]
    assert params["head"]["bias"].shape == params["head_dist"]["bias"].shape == (3,)


@pytest.mark.parametrize("name", POSITIONS)
def test_another_image_size_resamples_positions_and_keeps_the_tokens_before_them(name):
    kwargs, prefixes = POSITIONS[name]
    source = state_dict(name, **kwargs)
    larger = convert.from_torch(source, name, num_classes=5, **{**kwargs, "image_size": 16})
    back = convert.to_torch(larger)
    changed = {k for k in back if back[k].shape != source[k].shape}
    assert changed == set(prefixes)
    for position, prefix in prefixes.items():
        assert back[position].shape[1] - prefix == 4 * (source[position].shape[1] - prefix)
        np.testing.assert_array_equal(back[position][:, :prefix], source[position][:, :prefix])
    assert all(np.array_equal(back[k], source[k]) for k in back if k not in changed)


@pytest.mark.parametrize(("old", "new"), [(14, 8), (14, 24), (7, 3), (2, 5), (1, 4)])
def test_positions_are_resampled_as_timm_does(old, new):
    functional = pytest.importorskip("torch.nn.functional")
    torch = pytest.importorskip("torch")
    positions = np.random.default_rng(0).standard_normal((1, 1 + old * old, 6)).astype(np.float32)
    grid = torch.tensor(positions[:, 1:]).reshape(1, old, old, 6).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    expected = grid.permute(0, 2, 3, 1).reshape(1, new * new, 6).numpy()
    actual = torch_weights.resample_positions(positions, 1 + new * new)
    np.testing.assert_allclose(actual[:, 1:], expected, atol=3e-6)
    np.testing.assert_array_equal(actual[:, 0], positions[:, 0])


def test_weights_without_raa_start_it_at_zero():
    source = {k: v for k, v in state_dict().items() if "shift" not in k}
    back = convert.to_torch(vit(source))
    made = back.keys() - source.keys()
    assert len(made) == 2
    assert not any(back[name].any() for name in made)


def test_weights_with_some_raa_parameters_miss_the_others():
    source = state_dict()
    del source["blocks.0.mlp.act.shift_proj_bias"]
    with pytest.raises(ValueError, match=r"1 missing: blocks\.0\.mlp\.act\.shift_proj_bias"):
        vit(source)


def test_every_tensor_that_does_not_fit_is_listed():
    source = state_dict()
    del source["norm.weight"], source["blocks.0.norm1.bias"]
    source |= {"extra": np.zeros(2), "patch_embed.proj.weight": np.zeros((8, 3, 4, 4), np.float32)}
    with pytest.raises(ValueError) as error:
        vit(source)
    message = str(error.value)
    assert "2 missing: blocks.0.norm1.bias, norm.weight" in message
    assert "1 unexpected: extra" in message
    assert "1 of another shape: patch_embed.proj.weight [8, 3, 4, 4], not [8, 3, 2, 2]" in message


def test_a_wider_model_is_not_adapted_to():
    with pytest.raises(ValueError, match=r"pos_embed \[1, 17, 8\], not \[1, 17, 12\]"):
        vit(state_dict(), embed_dim=12)


def test_without_adapt_another_size_is_an_error():
    model = models.create("vit_tiny_patch4_32", num_classes=3, **{**VIT, "image_size": 16})
    with pytest.raises(ValueError, match=r"3 of another shape: head.bias .*pos_embed"):
        convert.fit(state_dict(), model, adapt=False)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(("name", "kwargs"), [("vit_tiny_patch4_32", VIT), ("cifar_resnet18", CNN)])
def test_weights_survive_a_file_bit_for_bit(tmp_path, name, kwargs):
    variables = convert.from_torch(state_dict(name, **kwargs), name, num_classes=5, **kwargs)
    exported = convert.to_torch(variables)
    assert any(
        not value.flags.c_contiguous for value in exported.values()
    )  # what safetensors mixes up
    weight_files.write(tmp_path / "a.safetensors", exported, description())
    assert_equal(weight_files.read(tmp_path / "a.safetensors"), exported)
    assert weight_files.read_description(tmp_path / "a.safetensors") == description()
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "config.json"}


def test_torch_loads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    source = state_dict("cifar_resnet18", **CNN)
    weight_files.write(tmp_path / "a.safetensors", source, description())
    loaded = load_file(tmp_path / "a.safetensors")
    norm, fc = torch.nn.BatchNorm2d(4), torch.nn.Linear(6, 5)
    for module, prefix in ((norm, "conv1.1."), (fc, "fc.")):
        part = {k.removeprefix(prefix): v for k, v in loaded.items() if k.startswith(prefix)}
        module.load_state_dict(part, strict=True)
    np.testing.assert_array_equal(norm.running_var.numpy(), source["conv1.1.running_var"])


def test_a_failed_write_leaves_the_files_of_before(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    weight_files.write(path, state_dict(), description())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    written = []

    def full(file):
        written.append(file)
        if len(written) == 2:  # after the weights
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        weight_files.write(path, state_dict(seed=1), description())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "content", ['{"seed": 42}', "[]", "no json", '{"weights": "b.safetensors"}']
)
def test_the_config_of_others_is_not_overwritten(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(ValueError, match=r"belongs to (something else|b.safetensors); write to a"):
        weight_files.write(tmp_path / "a.safetensors", {}, description())
    assert (tmp_path / "config.json").read_text() == content
    assert not (tmp_path / "a.safetensors").exists()


def test_renamed_weights_keep_their_description(tmp_path):
    weight_files.write(tmp_path / "a.safetensors", state_dict(), description())
    path = (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert weight_files.read_description(path) == description()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_names": ["x"]}, "1 class names for 5 classes"),
        ({"std": [1]}, "need one value per channel"),
        ({"std": [1, 0, 1]}, "must be above 0"),
        ({"std": [1, float("nan"), 1]}, "must be above 0"),
        ({"mean": [123, 116, 103]}, "must be in 0 .. 1"),
        ({"eval_resize": 7}, "below image_size=8"),
        ({"mean": 3}, "not iterable"),
        ({"model": {}}, "num_classes"),
    ],
)
def test_a_damaged_description_is_named(tmp_path, changed, message):
    weight_files.write(tmp_path / "a.safetensors", state_dict(), description())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(ValueError, match=rf"config\.json: damaged .*{message}"):
        weight_files.read_description(tmp_path / "a.safetensors")


WHOLE = safetensors.numpy.save({"a": np.ones(3, np.float32)})
OVERLAPPING = WHOLE.replace(b"[0,12]", b"[4,16]")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        WHOLE[:-1],
        WHOLE[:20],
        OVERLAPPING,
        struct.pack("<Q", 2**62) + b"{}",  # a header of exabytes
        struct.pack("<Q", 10 * 2**30) + b"{}" + bytes(100),  # one of 10 GB
    ],
)
def test_a_damaged_safetensors_file_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    line = failing(capsys, path, tmp_path / "out.safetensors", *VIT_FLAGS)
    assert f"{path}: not a whole .safetensors file" in line


# ---------------------------------------------------------------- torch checkpoints


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_hostile_pickle_is_refused_before_it_runs(tmp_path, torch, form):
    trap, path = tmp_path / "trap", tmp_path / "a.pth"
    content = {"model": {"head.weight": torch.ones(2)}, "args": Hostile(trap)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Hostile(trap), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"a\.pth: refused, it holds posix\.mkdir"):
        weight_files.read(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Hostile(trap)))
    assert trap.exists()  # so the trap works where it is let in


def test_nothing_but_a_namespace_is_let_in(tmp_path, torch):
    for name, value in {"path": Path("x"), "array": np.ones(2), "layer": torch.nn.ReLU()}.items():
        torch.save({"model": {}, "args": argparse.Namespace(x=value)}, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match="only tensors, plain values"):
            weight_files.read(tmp_path / f"{name}.pth")


@pytest.fixture
def authors(tmp_path, torch):
    """A checkpoint as the authors' code saves it, of the network that the golden logits are of."""
    golden = load("vit_raa")
    tensors = {k: torch.tensor(v).float() for k, v in below(golden, "param").items()}
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    group = {"lr": 2.5e-4, "betas": (0.9, 0.999), "foreach": None, "params": [0]}
    content = {
        "model": tensors,
        "optimizer": {"state": {0: moments}, "param_groups": [group]},
        "lr_scheduler": {"T_max": 300, "last_epoch": 7, "_last_lr": [2.4e-4]},
        "epoch": 7,
        "args": argparse.Namespace(model="vit_tiny", lr=2.5e-4, betas=(0.9, 0.999), resume=None),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth", golden


def test_a_checkpoint_of_the_authors_gives_their_logits(authors, tmp_path, capsys):
    path, golden = authors
    out = tmp_path / "out" / "vit.safetensors"
    sizes = {"image_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
    convert.main(
        [
            str(path),
            str(out),
            "--model=vit_tiny_patch4_32",
            *(f"--{k}={v}" for k, v in sizes.items()),
        ]
    )
    assert "7 classes, 16 pixels" in capsys.readouterr().out

    exported, described = convert.load(out)
    assert described is not None
    assert_equal(exported, {k: v.astype(np.float32) for k, v in below(golden, "param").items()})
    model = models.create(**described.model)
    variables = convert.fit(exported, model, adapt=False)
    logits = jax.jit(model.apply)(variables, golden["images"].astype(np.float32))
    assert_close(logits, golden["logits"], 1e-5)


def test_names_of_a_distributed_model_and_bfloat16_are_understood(tmp_path, torch):
    content = {
        "state_dict": {"module.a": torch.ones(2, dtype=torch.bfloat16), "module.b": torch.ones(1)}
    }
    torch.save(content, tmp_path / "a.pth")
    assert_equal(
        weight_files.read(tmp_path / "a.pth"),
        {"a": np.ones(2, np.float32), "b": np.ones(1, np.float32)},
    )


def raw(path, tensors):
    """A .safetensors file with tensors {name: (dtype, shape, bytes)}."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data)


def test_safetensors_of_bfloat16_and_of_a_distributed_model_are_understood(tmp_path):
    content = {"module.a": ("BF16", [2], b"\x80\x3f\x00\xc0"), "module.b": ("F16", [], b"\0\x3c")}
    raw(tmp_path / "a.safetensors", content)
    found = weight_files.read(tmp_path / "a.safetensors")
    assert_equal(found, {"a": np.float32([1, -2]), "b": np.float16(1)})
    raw(tmp_path / "b.safetensors", {"a": ("F8_E4M3", [1], b"\0")})
    with pytest.raises(ValueError, match="a is of dtype F8_E4M3, which is not supported"):
        weight_files.read(tmp_path / "b.safetensors")


@pytest.mark.parametrize("ndim", [1, 2, 3, 4, 5])
def test_kernels_of_any_rank_return_from_torchs_layout(ndim):
    kernel = np.random.default_rng(0).random(range(2, 2 + ndim))
    there = torch_weights._to_torch_layout("kernel", kernel)
    back = torch_weights._from_torch_layout("kernel", there, kernel.shape)
    np.testing.assert_array_equal(back, kernel)


def test_a_model_without_images_is_refused(source, tmp_path, capsys):
    line = failing(capsys, source, tmp_path / "out.safetensors", "--model=gcn")
    assert line.endswith("--model=gcn: takes no images")


@pytest.mark.parametrize("keep", [0, 5, 100, -30])
def test_a_torn_checkpoint_is_one_line(tmp_path, torch, capsys, keep):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    line = failing(capsys, path, tmp_path / "out.safetensors", *VIT_FLAGS)
    assert f"{path}: not a whole torch checkpoint" in line


def test_a_checkpoint_without_weights_says_what_is_missing(tmp_path, torch):
    torch.save({"epoch": 3, "model": {"layers": [1, 2]}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no state dict"):
        weight_files.read(tmp_path / "a.pth")


def test_only_torch_checkpoints_need_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").touch()
    with pytest.raises(ValueError, match=r"needs PyTorch.*dnrt_jax\[torch\]"):
        weight_files.read(tmp_path / "a.pth")
    weight_files.write(tmp_path / "a.safetensors", state_dict(), description())
    assert_equal(weight_files.read(tmp_path / "a.safetensors"), state_dict())


# ---------------------------------------------------------------- the command


@pytest.fixture
def source(tmp_path):
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(v) for k, v in state_dict().items()},
        tmp_path / "source.safetensors",
    )
    return tmp_path / "source.safetensors"


def test_the_command_counts_classes_and_takes_every_field_of_the_model(source, tmp_path):
    out = tmp_path / "out" / "a.safetensors"
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    more = [
        "--mean",
        ".1",
        ".2",
        ".3",
        "--std",
        "1",
        "1",
        "1",
        "--qkv_bias=True",
        "--fc_norm=False",
    ]
    convert.main(
        [str(source), str(out), *VIT_FLAGS, *more, f"--class_names={tmp_path / 'names.txt'}"]
    )
    _, described = convert.load(out)
    assert described is not None
    assert described.model["num_classes"] == 5
    assert (described.model["qkv_bias"], described.model["fc_norm"]) == (True, False)
    assert described.class_names == ("ant", "bee", "cat", "dog", "elk")
    assert (described.mean, described.eval_resize) == ((0.1, 0.2, 0.3), 9)


def test_an_export_can_be_converted_on_to_other_classes_and_another_size(source, tmp_path):
    weight_files.write(tmp_path / "1" / "a.safetensors", state_dict(), description())
    out = tmp_path / "2" / "a.safetensors"
    convert.main(
        [str(tmp_path / "1/a.safetensors"), str(out), "--num_classes=2", "--image_size=16"]
    )
    exported, described = convert.load(out)
    assert described == description(
        model=description().model | {"num_classes": 2, "image_size": 16},
        eval_resize=18,
        class_names=None,
    )
    assert exported["pos_embed"].shape == (1, 65, 8)


def test_a_file_alone_does_not_say_its_model(source, tmp_path, capsys):
    line = failing(capsys, source, tmp_path / "out.safetensors")
    assert line.endswith("source.safetensors: does not say its model; give --model=NAME")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "; fields of a model need --model=NAME"),
        ({"model": "vit_tiny"}, "unknown model 'vit_tiny'; did you mean"),
        ({"act": "geluu"}, "unknown activation 'geluu'; did you mean 'gelu'"),
        ({"act": "gelu"}, "2 unexpected: blocks.0.mlp.act.shift_proj"),
        ({"model": "mlp"}, "unrecognized arguments"),
        ({"depth": "two"}, "--depth: invalid int value: 'two'"),
        ({"fc_norm": "(1"}, "'(1' is no value as True, 0.1 or (4,6)"),
        ({"source": "none.safetensors"}, "none.safetensors: no such file"),
        ({"source": "names.txt"}, "not a weight file"),
        ({"source": "."}, "no run in it"),
        ({"out": "a.pth"}, "must end in .safetensors"),
        ({"class_names": "names.txt"}, "2 class names for 5 classes"),
        ({"class_names": "none.txt"}, "none.txt"),
        ({"class_names": "latin.txt"}, "latin.txt: not UTF-8"),
        ({"num_classes": "0"}, "--num_classes=0: must be 1 or more"),
        ({"image_size": "-8"}, "--image_size=-8: must be 1 or more"),
        ({"eval_resize": "0"}, "eval_resize=0: below image_size=8"),
        ({"source": "exported"}, "a folder of weights; give exported/a.safetensors"),
        ({"source": "set"}, "a set of runs; give one of them, as set/seed0"),
        ({"mean": "0.5"}, "patch_embed.proj.weight [8, 3, 2, 2], not [8, 1, 2, 2]"),
    ],
)
def test_a_mistake_is_one_line(source, tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("ant\nbee\n")
    Path("latin.txt").write_text("caf\xe9\n", "latin-1")
    for name, content in {
        "exported/config.json": {"weights": "a.safetensors"},
        "set/members.json": {"settings": {"": ["seed0", "seed1"]}},
    }.items():
        Path(name).parent.mkdir()
        Path(name).write_text(json.dumps(content))
    flags = {"model": "vit_tiny_patch4_32", **VIT, **changes}
    arguments = [flags.pop("source", str(source)), flags.pop("out", "out.safetensors")]
    with pytest.raises(SystemExit) as error:
        convert.main(arguments + [f"--{k}={v}" for k, v in flags.items() if v is not None])
    assert error.value.code in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- config.init_from

SIZES = {"image_size": 8, "stage_sizes": (1,), "widths": (4,)}


@pytest.fixture(scope="module")
def built():
    config = default()
    config.model.name, config.model.act = "cifar_resnet18", "raa_relu"
    config.model.update({"stage_sizes": (1,), "widths": (4,)})
    config.data.image_size = config.data.eval_resize = 8
    config.train.batch_size = config.eval.batch_size = 8
    validate(config)
    return experiment.load(config)


def starting_from(built, path):
    config = built.config.copy_and_resolve_references()
    config.init_from = str(path)
    return built._replace(config=config)


def test_a_run_starts_from_a_file_with_all_else_fresh(built, tmp_path):
    source = state_dict("cifar_resnet18", channels=1, act="relu", **SIZES)
    weight_files.write(tmp_path / "a.safetensors", source, description())
    state = experiment.initial_state(starting_from(built, tmp_path / "a.safetensors"))
    variables = convert.from_torch(
        source, "cifar_resnet18", 1, num_classes=10, act="raa_relu", **SIZES
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, variables["batch_stats"])
    fresh = built.create()
    others = lambda s: (s.step, s.opt_state, s.centroids)
    jax.tree.map(np.testing.assert_array_equal, others(state), others(fresh))
    shardings = lambda s: jax.tree.map(lambda x: x.sharding, s)
    assert shardings(state) == shardings(fresh)


def test_an_average_starts_from_the_same_weights_in_buffers_of_its_own(built, tmp_path):
    config = starting_from(built, tmp_path / "a.safetensors").config
    config.train.ema = 0.9
    source = state_dict("cifar_resnet18", channels=1, act="relu", **SIZES)
    weight_files.write(tmp_path / "a.safetensors", source, description())
    state = experiment.initial_state(experiment.build(config, built.task))
    jax.tree.map(np.testing.assert_array_equal, state.ema["params"], state.params)
    buffers = [x.addressable_data(0).unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)  # which a step is given


@pytest.mark.parametrize("name", ["a.safetensors", "none.safetensors"])
def test_weights_that_do_not_fit_the_config_are_one_line(built, tmp_path, name):
    weight_files.write(tmp_path / "a.safetensors", state_dict(), description())
    with pytest.raises(ConfigError, match=r"^config\.init_from: .*") as error:
        experiment.initial_state(starting_from(built, tmp_path / name))
    assert "\n" not in str(error.value)
