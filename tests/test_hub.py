"""Public weights by name, against a stand-in for the Hugging Face hub on loopback."""

import json
import socket
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import yaml
from hub_stand_in import TOKEN, Hub
from making import encoded
from runs import run
from test_convert import VIT, failing, state_dict
from test_predict import make_run

from dnrt_jax import convert, predict
from dnrt_jax.runtime import hub as hub_client

NAME = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
ARGS = {"img_size": 8, **{k: v for k, v in VIT.items() if k != "image_size"}}
TIMM = {  # as in a repository of timm, but for the size
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 5,
    "global_pool": "token",
    "model_args": ARGS,
    "label_names": ["ant", "bee", "cat", "dog", "elk"],
    "pretrained_cfg": {
        "tag": "augreg_in21k_ft_in1k",
        "input_size": [3, 8, 8],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "num_classes": 5,
    },
}
PUBLIC = {k: np.ascontiguousarray(v) for k, v in state_dict(act="gelu", **VIT).items()}
FILES = {
    "model.safetensors": safetensors.numpy.save(PUBLIC),
    "config.json": json.dumps(TIMM).encode(),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, for huggingface_hub imported anew with an empty cache."""
    pytest.importorskip("huggingface_hub")
    hub = Hub()
    for name, value in environment(hub.endpoint, tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    yield hub
    hub.close()
    assert hub.defects == []


def environment(endpoint, tmp_path):
    home = str(tmp_path / "hf")
    return {"HF_ENDPOINT": endpoint, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_weights_come_with_their_normalisation_crop_and_class_names(hub, tmp_path, capsys):
    hub.commit(NAME, FILES)
    out = tmp_path / "out/vit.safetensors"
    convert.main([f"hf:{NAME}", str(out)])
    assert "vit_tiny_patch16_224 (gelu), 5 classes, 8 pixels" in capsys.readouterr().out
    exported, described = convert.load(out)
    assert described is not None
    assert (described.mean, described.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert described.eval_resize == 8
    assert described.class_names == ("ant", "bee", "cat", "dog", "elk")
    assert exported.keys() == PUBLIC.keys()
    for name, value in PUBLIC.items():
        np.testing.assert_array_equal(exported[name], value)


def test_predict_takes_a_name(hub, tmp_path, capsys):
    hub.commit(NAME, FILES)
    (tmp_path / "a.png").write_bytes(encoded(100, (9, 9)))
    assert predict.main([f"--weights=hf:{NAME}", str(tmp_path / "a.png")]) == 0
    assert "ant" in capsys.readouterr().out


def test_a_config_of_timm_beside_a_file_is_read(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    _, described = convert.load(tmp_path / "model.safetensors")
    assert described is not None
    assert described.mean == (0.5, 0.4, 0.3)
    with pytest.raises(ValueError, match="belongs to something else"):  # and not overwritten
        convert.weight_files.write(tmp_path / "a.safetensors", {}, described)


@pytest.mark.parametrize(
    ("size", "crop", "resize"), [(224, 0.9, 248), (224, 0.875, 256), (384, 1.0, 384)]
)
def test_the_crop_is_that_of_timm(tmp_path, size, crop, resize):
    given = TIMM["pretrained_cfg"] | {"input_size": [3, size, size], "crop_pct": crop}
    flat = {"architecture": "resnet18", **given}  # the form of before 2023
    (tmp_path / "config.json").write_text(json.dumps(flat))
    described = convert.weight_files.read_description(tmp_path / "pytorch_model.bin")
    assert described is not None
    assert described.eval_resize == resize
    assert described.model["act"] == "relu"


def test_another_model_than_that_of_the_config_keeps_its_normalisation(tmp_path):
    unknown = {k: v for k, v in TIMM.items() if k != "model_args"} | {"architecture": "vit_new"}
    (tmp_path / "config.json").write_text(json.dumps(unknown))
    (tmp_path / "model.safetensors").write_bytes(FILES["model.safetensors"])
    flags = [f"--{k}={v}" for k, v in VIT.items()]
    arguments = [str(tmp_path / "model.safetensors"), str(tmp_path / "out/a.safetensors"), *flags]
    with pytest.raises(SystemExit):
        convert.main(arguments[:2])
    convert.main([*arguments, "--model=vit_tiny_patch4_32", "--act=gelu"])
    _, described = convert.load(tmp_path / "out/a.safetensors")
    assert described is not None
    assert described.mean == (0.5, 0.4, 0.3)


def test_a_config_that_does_not_come_is_not_taken_for_absent(hub, tmp_path, capsys):
    commit = hub.commit(NAME, FILES)
    hub.failing.add("config.json")
    with pytest.raises(SystemExit):
        convert.main(
            [f"hf:{NAME}", str(tmp_path / "out/a.safetensors"), "--model=vit_tiny_patch4_32"]
        )
    assert f"error: hf:{NAME}: the hub does not send its config.json" in capsys.readouterr().err
    hub.failing.clear()
    _, described = convert.load(f"hf:{NAME}@{commit}")  # the weights are in the cache now
    assert described is not None
    assert described.mean == (0.5, 0.4, 0.3)


def test_a_branch_and_a_commit_are_what_they_were(hub):
    first = hub.commit(NAME, FILES)
    other = {"model.safetensors": safetensors.numpy.save({"a": np.ones(1, np.float32)})}
    second = hub.commit(NAME, other)
    assert hub_client.fetch(f"hf:{NAME}").parent.name == second
    assert hub_client.fetch(f"hf:{NAME}@{first}").read_bytes() == FILES["model.safetensors"]
    assert hub_client.fetch(f"hf:{NAME}@main").read_bytes() == other["model.safetensors"]


def test_a_pinned_name_that_is_in_the_cache_asks_nobody(hub):
    commit = hub.commit(NAME, FILES)
    path = hub_client.fetch(f"hf:{NAME}")
    hub.requests.clear()
    assert hub_client.fetch(f"hf:{NAME}@{commit}") == path
    assert hub_client.pin(f"hf:{NAME}", known=f"hf:{NAME}@{commit}") == f"hf:{NAME}@{commit}"
    assert [r for r in hub.requests if "safetensors" in r] == []


def test_without_a_network_the_cache_is_read(hub, monkeypatch):
    hub.commit(NAME, FILES)
    path = hub_client.fetch(f"hf:{NAME}")
    hub.close()
    assert hub_client.fetch(f"hf:{NAME}") == path
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_client.fetch(f"hf:{NAME}") == path


@pytest.mark.slow
def test_a_run_keeps_the_commit_that_it_started_from(hub, tmp_path):
    grey = TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"mean": [0.5], "std": [0.2]}}
    weights = PUBLIC | {"patch_embed.proj.weight": PUBLIC["patch_embed.proj.weight"][:, :1].copy()}
    files = {"config.json": json.dumps(grey).encode()}
    files["model.safetensors"] = safetensors.numpy.save(weights)
    first = hub.commit(NAME, files)
    flags = [f"init_from=hf:{NAME}", "model.name=vit_tiny_patch16_224", "model.act=gelu"]
    flags += ["model.depth=1", "model.embed_dim=8", "model.patch_size=2", "optim.warmup_steps=0"]
    flags = [f"--config.{flag}" for flag in flags]
    started = run(tmp_path / "run", *flags, "--config.train.steps=2")
    assert started.returncode == 0, started.stderr
    assert "take --config.data.mean=(0.5,) --config.data.std=(0.2,)" in started.stderr
    init_from = lambda: json.loads((tmp_path / "run/config.json").read_text())["init_from"]
    assert init_from() == f"hf:{NAME}@{first}"
    hub.commit(NAME, FILES)
    again = run(tmp_path / "run", *flags, "--config.train.steps=2")
    assert again.returncode == 0, again.stderr
    assert "finished at step 2" in again.stdout
    assert init_from() == f"hf:{NAME}@{first}"


# ---------------------------------------------------------------- mistakes


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:vit", "hf:vit: write it as hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:timm/none", "no such repository; if it is private, log in with `hf auth login`"),
        (f"hf:{NAME}@v9", "the repository has no such revision"),
        ("hf:meta/gated", "gated; accept its conditions on http"),
        ("hf:old/pickle", "only a pickle (pytorch_model.bin), which may run code"),
        ("hf:old/empty", "no model.safetensors in it, only README.md"),
        ("hf:bad/damaged", "its checksum differs; delete "),
    ],
)
def test_a_mistake_is_one_line(hub, tmp_path, capsys, name, message):
    hub.commit(NAME, FILES)
    hub.commit("meta/gated", FILES)
    hub.commit("old/pickle", {"pytorch_model.bin": b"x", "config.json": b"{}"})
    hub.commit("old/empty", {"README.md": b"x"})
    hub.gated.add("meta/gated")
    if "damaged" in name:
        hub.commit("bad/damaged", FILES)
        hub.damaged.add("model.safetensors")
    assert message in failing(capsys, name, tmp_path / "out.safetensors")


def test_a_token_opens_a_gated_repository(hub, monkeypatch):
    hub.commit(NAME, FILES)
    hub.gated.add(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub_client.fetch(f"hf:{NAME}").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize("argument", ["--push=hf:me/digits", "out.safetensors"])
def test_without_a_network_it_is_one_line_within_ten_seconds(
    tmp_path, monkeypatch, capsys, hub, argument
):
    import huggingface_hub.constants as constants

    endpoint = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    source = tmp_path / "model.safetensors"
    for name, data in FILES.items():
        source.with_name(name).write_bytes(data)
    began = time.monotonic()
    line = failing(capsys, source if "push" in argument else f"hf:{NAME}", argument)
    assert f"{endpoint} cannot be reached" in line
    assert time.monotonic() - began < 10


def test_a_server_that_does_not_answer_is_given_up_within_ten_seconds(
    tmp_path, monkeypatch, capsys, hub
):
    import huggingface_hub.constants as constants

    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert hub_client.TIMEOUT <= 5
        monkeypatch.setattr(hub_client, "TIMEOUT", 1)
        began = time.monotonic()
        assert "cannot be reached" in failing(capsys, f"hf:{NAME}", tmp_path / "a.safetensors")
        assert time.monotonic() - began < 6


@pytest.mark.parametrize("argument", ["--push=hf:me/digits", "out.safetensors"])
def test_a_name_server_that_does_not_answer_is_given_up_within_ten_seconds(
    tmp_path, monkeypatch, capsys, hub, argument
):
    monkeypatch.setattr(hub_client, "TIMEOUT", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(30))
    source = tmp_path / "model.safetensors"
    for name, data in FILES.items():
        source.with_name(name).write_bytes(data)
    began = time.monotonic()
    line = failing(capsys, source if "push" in argument else f"hf:{NAME}", argument)
    assert "the name 127.0.0.1 is not resolved" in line
    assert time.monotonic() - began < 10


def test_offline_mode_without_a_cache_is_one_line(hub, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = failing(capsys, f"hf:{NAME}", tmp_path / "a.safetensors")
    assert "not in the hub's cache, and HF_HUB_OFFLINE forbids to download it" in line
    assert hub.requests == []


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = failing(capsys, f"hf:{NAME}", tmp_path / "a.safetensors")
    assert line.endswith("needs pip install 'dnrt_jax[hub]'")


# ---------------------------------------------------------------- push


def test_a_run_is_pushed_with_its_card_and_comes_back_the_same(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    make_run(tmp_path / "run")
    convert.main([str(tmp_path / "run"), "--push=hf:me/digits", "--checkpoint=best"])
    assert capsys.readouterr().out.startswith(f"{hub.endpoint}/me/digits/commit/")
    pushed = hub.repos["me/digits"]["main"]
    assert pushed.keys() == {"model.safetensors", "config.json", "README.md"}

    _, head, text = pushed["README.md"].decode().split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["pipeline_tag"] == "image-classification"
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9}]
    assert "at step 4" in text
    assert '"embed_dim": 8' in text
    assert "@inproceedings{qiu2024dnrt" in text
    assert "--weights=hf:me/digits" in text

    weights, described = convert.load("hf:me/digits")
    expected, of_run = convert.load(tmp_path / "run", "best")
    assert described == of_run
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(weights[name], value)


def test_a_push_without_a_token_says_how_to_log_in(hub, tmp_path, capsys):
    make_run(tmp_path / "run")
    line = failing(capsys, tmp_path / "run", "--push=hf:me/digits")
    assert "answers 401; log in with `hf auth login`" in line
