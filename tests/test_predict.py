"""From image files to the names of what they show."""

import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dnrt_jax import convert, models, predict
from dnrt_jax.config import default, to_json
from dnrt_jax.data import augment
from dnrt_jax.runtime import checkpoint, weight_files
from dnrt_jax.runtime.weight_files import Description

MLP = {"name": "mlp", "image_size": 6, "embed_dim": 8, "depth": 1, "act": "raa"}
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def drawn(model, channels):
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32), convert.shapes(model, channels)
    )


def export(folder, channels=3, num_classes=7, **changed):
    """A file of weights; a classifier of images of 6 pixels, cut out of 8."""
    model = {**MLP, "num_classes": num_classes}
    fields = {"mean": (0.5,) * channels, "std": (0.25,) * channels, "eval_resize": 8}
    fields |= {"class_names": NAMES[:num_classes], **changed}
    state_dict = convert.to_torch(drawn(models.create(**model), channels))
    weight_files.write(folder / "a.safetensors", state_dict, Description(model, **fields))
    return folder / "a.safetensors"


def picture(path, height=12, width=9, seed=0, mode="RGB"):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def run(capsys, *argv):
    """(exit status, objects on standard output)"""
    status = predict.main([*map(str, argv), "--json"])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(tmp_path_factory.mktemp("export"))


@pytest.fixture
def pictures(tmp_path):
    """Three pictures, two of them in a folder of the folder."""
    (tmp_path / "more").mkdir()
    names = [tmp_path / "a.png", tmp_path / "more/b.PNG", tmp_path / "more/c.png"]
    return [picture(path, seed=i) for i, path in enumerate(names)]


def test_probabilities_are_those_of_the_evaluation(exported, tmp_path, capsys):
    path = picture(tmp_path / "a.png", 13, 21)
    _, (result,) = run(capsys, f"--weights={exported}", path)

    state_dict, described = convert.load(exported)
    model = models.create(**described.model)
    transform = augment.eval_transform(
        image_size=6, eval_resize=8, mean=described.mean, std=described.std
    )
    variables = convert.fit(state_dict, model)
    logits = model.apply(variables, transform(np.asarray(Image.open(path))[None]))
    expected = np.asarray(jax.nn.softmax(logits)[0])
    assert result["image"] == str(path)
    order = [p["index"] for p in result["predictions"]]
    assert order == np.argsort(-expected)[:5].tolist()
    assert [p["class"] for p in result["predictions"]] == [NAMES[k] for k in order]
    probabilities = [p["probability"] for p in result["predictions"]]
    np.testing.assert_allclose(probabilities, expected[order], rtol=1e-5)


def test_with_fewer_than_five_classes_all_are_given(tmp_path, capsys):
    path = export(tmp_path, num_classes=3, class_names=None)
    _, (result,) = run(capsys, f"--weights={path}", picture(tmp_path / "a.png"))
    assert {p["class"] for p in result["predictions"]} == {"class 0", "class 1", "class 2"}
    assert sum(p["probability"] for p in result["predictions"]) == pytest.approx(1)


def test_a_model_of_grey_images_takes_colour_and_grey_ones(tmp_path, capsys):
    path = export(tmp_path, channels=1)
    colour = picture(tmp_path / "colour.png")
    grey = picture(tmp_path / "grey.png", mode="L")
    _, (first, second) = run(capsys, f"--weights={path}", colour, grey)
    assert first["predictions"] == second["predictions"]


def test_a_line_for_people_names_the_image_and_the_classes(exported, pictures, capsys):
    assert predict.main([f"--weights={exported}", str(pictures[0])]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    name, _, classes = line.partition(": ")
    assert name == str(pictures[0])
    shares = [part.split() for part in classes.split(", ")]
    assert len(shares) == 5
    assert all(name in NAMES and share.endswith("%") for name, share in shares)


def test_files_folders_and_lists_are_all_read(exported, pictures, tmp_path, capsys, monkeypatch):
    (tmp_path / "more/notes.txt").write_text("no image")
    everything = [str(path) for path in pictures]
    _, results = run(capsys, f"--weights={exported}", tmp_path)
    assert [r["image"] for r in results] == everything
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path / 'more'}\n\n{pictures[0]}\n"))
    status, results = run(capsys, f"--weights={exported}", pictures[0], "-")
    assert [r["image"] for r in results] == [everything[i] for i in (0, 1, 2, 0)]
    assert status == 0


def test_the_batch_size_changes_nothing(exported, pictures, capsys):
    alone = [run(capsys, f"--weights={exported}", path)[1][0] for path in pictures]
    for size in (2, 3, 50):
        _, results = run(capsys, f"--weights={exported}", *pictures, f"--batch_size={size}")
        assert [r["image"] for r in results] == [r["image"] for r in alone]
        for one, other in zip(results, alone, strict=True):
            for a, b in zip(one["predictions"], other["predictions"], strict=True):
                assert a["class"] == b["class"]
                assert a["probability"] == pytest.approx(b["probability"], rel=1e-4)


def test_a_broken_image_is_one_line_and_the_others_are_predicted(
    exported, pictures, tmp_path, capsys
):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(pictures[0].read_bytes()[:100])
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = [pictures[0], broken, tmp_path / "none.png", empty, pictures[1]]
    status = predict.main([f"--weights={exported}", "--batch_size=2", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert status == 1
    assert len(out.splitlines()) == 2
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"error: {broken}: broken image")
    assert lines[1] == f"error: {tmp_path / 'none.png'}: No such file or directory"
    assert lines[2].startswith(f"error: {empty}: no images below it")

    status, results = run(capsys, f"--weights={exported}", *arguments)
    assert status == 1
    assert [list(r) for r in results] == [
        ["image", field] for field in ("predictions", "error", "error", "error", "predictions")
    ]


def test_no_name_of_a_file_ends_the_predictions(exported, pictures, tmp_path, monkeypatch):
    folder = tmp_path / "odd"
    (folder / "folder.png").mkdir(parents=True)
    latin = os.fsdecode(b"caf\xe9.png")
    (folder / latin).write_bytes(pictures[0].read_bytes())
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    monkeypatch.setattr(sys, "stdout", out)
    names = [str(folder), "a\0b", "x" * 300, str(pictures[1])]
    assert predict.main([f"--weights={exported}", *names]) == 1
    out.seek(0)
    first, second = out.read().splitlines()
    assert first.startswith(f"{folder}/caf\\udce9.png: ")
    assert second.startswith(f"{pictures[1]}: ")


def test_a_run_and_its_export_predict_the_same(tmp_path, capsys):
    folder, out = tmp_path / "run", tmp_path / "export/a.safetensors"
    make_run(folder)
    convert.main([str(folder), str(out)])
    assert capsys.readouterr().out.startswith(f"{out}: mlp (raa), 7 classes, 6 pixels")
    path = picture(tmp_path / "a.png")
    _, of_run = run(capsys, f"--workdir={folder}", path)
    _, of_export = run(capsys, f"--weights={out}", path)
    assert of_run == of_export
    assert of_run[0]["predictions"][0]["class"] in NAMES


def test_a_run_gives_its_newest_best_or_any_checkpoint(tmp_path):
    make_run(tmp_path)
    newest, described = convert.load(tmp_path)
    assert described is not None
    assert described.model["num_classes"] == 7
    bias = lambda name: convert.load(tmp_path, name)[0]["head.bias"]
    np.testing.assert_array_equal(bias("latest"), newest["head.bias"])
    np.testing.assert_array_equal(bias("best") + 1, newest["head.bias"])
    np.testing.assert_array_equal(bias("4") + 1, newest["head.bias"])
    damaged = tmp_path / "checkpoints/5/manifest.json"
    damaged.write_text(damaged.read_text().replace("5", "6", 1))
    np.testing.assert_array_equal(bias("latest"), bias("4"))
    with pytest.raises(ValueError, match="give latest, best or a step"):
        bias("newest")


def make_run(folder):
    """A folder as training leaves it, with checkpoints of steps 4, the best, and 5."""
    config = default()
    config.model.update({"name": "mlp", "embed_dim": 8, "depth": 1})
    config.data.update(
        {"image_size": 6, "eval_resize": 8, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    )
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
    (folder / "classes.json").write_text(json.dumps(NAMES))
    accuracies = {4: 0.9, 5: 0.8}
    records = [json.dumps({"step": k, "test/acc": v}) + "\n" for k, v in accuracies.items()]
    (folder / "metrics.jsonl").write_text("".join(records))
    params = drawn(models.create(**MLP, num_classes=7), 3)["params"]
    for step in accuracies:
        params["head"]["bias"] = params["head"]["bias"] + 1
        state = {"step": jnp.int32(step), "params": params, "batch_stats": {}}
        checkpoint.save(
            folder / "checkpoints", jax.tree.map(jnp.asarray, state), step, config="", extra={}
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights=none.safetensors"], "none.safetensors: no such file"),
        (["--weights=bare.safetensors"], "no config.json beside it"),
        (["--weights=nan/a.safetensors"], "probabilities that are NaN"),
        (["--weights=other/a.safetensors"], "2 of another shape: head.bias [7], not [3]"),
        (["--workdir=none"], "--workdir=none: no such folder"),
        (["--workdir=."], "no run in it"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    picture("a.png")
    source = export(tmp_path / "nan")
    state_dict, described = convert.load(source)
    bad = {k: np.full_like(v, np.nan) for k, v in state_dict.items()}
    weight_files.write(tmp_path / "bare.safetensors", state_dict, described)
    (tmp_path / "config.json").unlink()
    weight_files.write(source, bad, described)
    fewer = Description(described.model | {"num_classes": 3}, (0.5,) * 3, (1,) * 3, 8, None)
    weight_files.write(tmp_path / "other/a.safetensors", state_dict, fewer)
    with pytest.raises(SystemExit) as error:
        predict.main([*arguments, "a.png"])
    assert error.value.code == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not out


def test_files_of_weights_need_neither_orbax_nor_tensorflow_nor_torch(exported, pictures):
    code = (
        "import sys\n"
        "for name in ('orbax', 'orbax.checkpoint', 'tensorflow', 'torch', 'sklearn', 'grain'):\n"
        "    sys.modules[name] = None\n"
        "from dnrt_jax import predict\n"
        "sys.exit(predict.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, f"--weights={exported}", str(pictures[0])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{pictures[0]}: ")


def test_a_reader_who_has_seen_enough_ends_it_quietly(exported, pictures):
    arguments = [f"--weights={exported}", "--batch_size=1", *map(str, pictures * 3000)]
    command = [sys.executable, "-m", "dnrt_jax.predict", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(60) == 141
