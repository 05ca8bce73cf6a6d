"""The benchmarks' frame, and every subcommand once, as small as it gets."""

import io
import json
import multiprocessing
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from dnrt_jax import models
from dnrt_jax.benchmark import __main__ as program
from dnrt_jax.benchmark import (
    arr,
    augment,
    infer,
    loader,
    loop,
    peer,
    scaling,
    startup,
    step,
    table4,
    targets,
    timing,
    training,
)
from dnrt_jax.data import datasets
from dnrt_jax.training import dispatch

KEYS = {"benchmark", "case", "device", "ours", "other", "ratio", "unit", "n"}


def run(capsys, *argv):
    """The JSON objects that a run prints."""
    assert program.main([*argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def tiny():
    config = training.config_of("mlp", 8, "float32")
    config.data.image_size = config.data.eval_resize = 6
    config.model.embed_dim, config.model.depth = 8, 1
    return config


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    loader.write_photos(root / "photos" / "train", 4)
    return datasets.find("photos", root, "train")


def test_sides_take_turns_and_none_is_always_first(capsys):
    calls = []
    sides = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    measured = timing.interleaved(sides, rounds=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    # The first three calls are the warm-up, which is told apart.
    assert {name: values.tolist() for name, values in measured.items()} == {
        "a": [4, 9, 11],
        "b": [5, 7, 12],
        "c": [6, 8, 10],
    }
    assert capsys.readouterr().err.count("first run, with compilation") == 3


def test_a_ratio_compares_within_a_round():
    # The machine slows down threefold; ours is half as fast all the time.
    other = np.array([1.0, 2.0, 3.0])
    row = timing.compare("case", "s", 2 * other, other)
    assert row == ("case", 4.0, 2.0, 2.0, (2.0, 2.0), "s", 3)
    alone = timing.compare("case", "s", other)
    assert alone == ("case", 2.0, None, None, (1.5, 2.5), "s", 3)


def test_seconds_are_those_of_the_clock(monkeypatch):
    now = iter([10.0, 12.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    assert timing.timed(lambda: None)() == 2.5


@pytest.fixture
def trained(monkeypatch):
    """The configs that trainers are made of, which do nothing here: each would be compiled."""
    configs = []

    def trainer(config, num_classes, steps):
        configs.append(config.copy_and_resolve_references())
        return lambda: None

    monkeypatch.setattr(training, "trainer", trainer)
    return configs


def test_the_program_prints_one_object_a_line(capsys, trained):
    rows = run(capsys, "step", "--model=mlp", "--batch_size=8", "--rounds=2", "--rule=centroid")
    assert [(row["case"], row["unit"]) for row in rows] == [
        (case, unit)
        for case in ("gelu", "raa", "gelu+arr", "raa+arr")
        for unit in ("ms/step", "images/s")
    ]
    for row in rows:
        assert row.keys() >= KEYS
        assert row["benchmark"] == "step"
        assert row["n"] == 2
        assert min(row["ours"], row["other"], row["ratio"]) > 0
        assert row["settings"]["rule"] == "centroid"
    models = [(config.model.act, config.arr.weight > 0) for config in trained]
    assert models == [("gelu", False), ("raa", False), ("gelu", True), ("raa", True)]
    assert {(config.arr.rule, config.train.batch_size) for config in trained} == {("centroid", 8)}


def test_without_json_there_is_a_table(capsys, monkeypatch):
    rows = [
        timing.compare("case", "images/s", np.ones(2)),
        timing.compare("b", "s", *np.ones((2, 2))),
    ]
    monkeypatch.setattr(step, "run", lambda args: iter(rows))
    assert program.main(["step", "--rounds=2"]) == 0
    title, header, first, second = capsys.readouterr().out.splitlines()
    assert "load " in title
    assert "rounds=2" in title
    assert header.split() == ["case", "ours", "other", "unit", "ratio", "quartiles", "n"]
    assert first.split() == ["case", "1", "-", "images/s", "-", "1", "..", "1", "2"]
    assert second.split() == ["b", "1", "1", "s", "1", "1", "..", "1", "2"]


def test_a_trainer_goes_on_from_step_to_step(monkeypatch):
    starts = []
    run = dispatch.Single.run

    def recorded(self, state, start, count):
        state, values = run(self, state, start, count)
        starts.append((start, count, int(state.step)))
        return state, values

    monkeypatch.setattr(dispatch.Single, "run", recorded)
    train = training.trainer(tiny(), 3, 2)
    train()
    train()
    assert starts == [(0, 2, 2), (2, 2, 4)]


def test_infer_measures_both_activations():
    config = tiny()
    rows = list(infer.measure(config, rounds=2))
    assert [(row.case, row.unit) for row in rows] == [
        (case, unit) for case in ("gelu", "raa") for unit in ("ms/batch", "images/s")
    ]
    assert training.predictor(config, 3)().shape == (8, 3)


def test_a_batch_lies_on_all_devices_in_parts_or_where_they_do_not_divide_it_whole():
    parts = lambda size: training.on_all_devices(np.zeros((size, 2))).addressable_shards
    assert [part.data.shape for part in parts(16)] == [(2, 2)] * 8
    assert [part.data.shape for part in parts(3)] == [(3, 2)] * 8


@pytest.mark.parametrize(
    ("model", "act", "gmacs"),
    [(model, act, row[act][0]) for model, row in table4.PAPER.items() for act in row],
)
def test_multiply_accumulates_are_the_papers(model, act, gmacs):
    assert table4.gmacs_of(model, act) == pytest.approx(gmacs, rel=0.01)


def test_arr_is_measured_alone_and_as_a_share_of_the_step(capsys, trained):
    sizes = {"batch_size": "8", "num_classes": "3", "layers": "2", "dim": "4"}
    options = [word for name, size in sizes.items() for word in (f"--{name}", size)]
    rows = run(capsys, "arr", *options, "--rounds=2")
    assert [(row["case"], row["unit"]) for row in rows] == [
        (f"{rule} B=8 K=3 J=2 D=4", unit)
        for rule in ("sequential", "centroid")
        for unit in ("ms", "share of step")
    ]
    assert [(c.model.act, c.arr.weight) for c in trained] == [("gelu", 0.0)]
    train = arr.alone("sequential", 8, 3, 2, 4)
    train()
    train()  # goes on with the means that the first call gave


def test_the_peer_is_the_same_mathematics():
    pytest.importorskip("torch")
    config = training.config_of("vit_tiny_patch4_32", 8, "float32")
    config.data.image_size = config.data.eval_resize = 8
    config.model.embed_dim, config.model.depth = 12, 2
    config.model.act, config.arr.weight, config.optim.min_lr = "raa", 20.0, config.optim.lr
    rows = list(peer.measure(config, steps=1, rounds=1, compiled=False))
    logits, losses, train, infer_row = rows
    assert logits.ours < 1e-5
    assert losses.ours < 1e-4
    assert min(train.ratio or 0, infer_row.ratio or 0) > 0


def test_the_loop_is_not_measured_in_the_folder_of_a_run(capsys, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(SystemExit):
        program.main(["loop", f"--workdir={tmp_path}"])
    assert "there is a run in it" in capsys.readouterr().err


def test_the_loop_that_is_measured_shows_no_progress(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "Run", lambda *_: None)
    monkeypatch.setattr(loop.train, "fit", lambda *_: print("long left", file=sys.stderr))
    loop._epochs(None, 1, tmp_path / "run")
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_loop_is_compared_with_its_steps(capsys, monkeypatch):
    *_, (case, fields) = loop.CASES.items()  # with all that the others have
    monkeypatch.setattr(loop, "CASES", {case: fields})
    small = ["--model=mlp", "--batch_size=8", "--seconds=0.02", "--eval_samples=16", "--rounds=2"]
    rows = run(capsys, "loop", *small)
    assert [row["case"] for row in rows] == [case, "checkpoints"]
    assert all(min(row["ours"], row["other"]) > 0 for row in rows)


def test_startup_compares_cold_and_warm(capsys, monkeypatch):
    starts = []
    monkeypatch.setattr(startup, "first_step", lambda config, kept: starts.append(kept))
    rows = run(capsys, "startup", "--rounds=2")
    cases = ["python", "import dnrt_jax", "first step: cold, warm"]
    assert [row["case"] for row in rows] == cases
    assert [starts.count(kept) for kept in set(starts)].count(1) == 3  # each cold start is alone
    assert max(starts.count(kept) for kept in starts) == 3


@pytest.mark.slow
def test_startup_ends_with_the_first_step(tmp_path):
    startup.first_step("configs/digits.py", str(tmp_path))
    assert any(path.name.startswith("jit_") for path in tmp_path.iterdir())


def test_augment_gives_the_share_of_the_step(monkeypatch, trained):
    seconds = {"alone": 0.5, "with": 4.0, "without": 3.0}

    def measured(sides, rounds):
        for side in sides.values():
            side()
        return {name: np.full(rounds, seconds[name]) for name in sides}

    monkeypatch.setattr(augment, "interleaved", measured)
    monkeypatch.setattr(training, "AUGMENTED", {"flip": 0.5, "erase": 0.25})  # compile little
    alone, step_row, share = augment.measure(tiny(), 1, 2)
    assert (alone.unit, alone.ours, alone.other) == ("images/s", 16, None)
    assert (step_row.ours, step_row.other) == (4000, 3000)
    assert (share.ours, share.other, share.ratio) == (0.25, None, None)
    assert [config.data.erase for config in trained] == [0.25, 0]


def test_the_photos_are_photographs_in_size(photos):
    image = Image.open(io.BytesIO(photos[0].data))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (500, 375))
    assert 50_000 < len(photos[0].data) < 200_000
    assert len(photos.class_names) == 2


def test_the_loader_is_measured_after_its_lead(monkeypatch):
    read, now = [], iter([[0.0], [7.0]])

    def batches():
        while True:
            read.append(len(read))
            yield None

    monkeypatch.setattr(loader, "_clocks", lambda: [*next(now), len(read)])
    assert loader.timed_batches(batches(), lead=3, batches=2)() == [7.0, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's clocks")
def test_the_cpu_time_of_workers_counts():
    before = loader._clocks()[1]
    child = multiprocessing.get_context("spawn").Process(target=sum, args=(range(10**9),))
    child.start()
    try:
        while loader._clocks()[1] < before + 0.3:
            pass
        own = loader.time.process_time()
        assert loader._clocks()[1] > own
    finally:
        child.kill()
        child.join()


def test_the_loader_runs_alone_where_torch_is_missing(photos, monkeypatch, capsys):
    monkeypatch.setattr(loader, "find_spec", lambda name: None)
    monkeypatch.setattr(loader, "LEAD", 4)
    rows = list(loader.measure(photos, workers=0, batch_size=4, batches=1, rounds=1))
    assert {"images/s", "images/s/worker"} <= {row.unit for row in rows}
    assert all(row.ours > 0 and row.other is None and row.ratio is None for row in rows)
    assert "pip install torch" in capsys.readouterr().err


def test_a_step_for_many_chips_is_planned(capsys, monkeypatch):
    """With what the compiler would say of a program."""
    told = {"processes": 16, "all-reduce": 6, "all-reduce, results": 12.0, "rest": 2.0}
    told |= {"predicted time": 3.0, "collectives at the link's speed": 1.0}
    programs = []

    def compiled(args):
        programs.append((args.target, args.rule, args.fsdp, args.batch_size))
        return [timing.compare(f"train: {k}", "", np.array([v])) for k, v in told.items()]

    monkeypatch.setattr(targets, "check", lambda target: None)
    monkeypatch.setattr(scaling.compiled, "run", compiled)
    slices = {"8x8": 8192, "16x16": 16384, "12x16": 16320}  # the sequential rule takes 16,384
    options = [*(f"tpu:v5e:{slice}" for slice in slices), "--rules", "centroid"]
    rows = run(capsys, "scaling", "--targets", *options)
    assert programs == [
        (f"tpu:v5e:{slice}", "centroid", fsdp, batch)
        for slice, batch in slices.items()
        for fsdp in (False, True)
    ]
    values = {
        row["case"].removeprefix("tpu:v5e:8x8, centroid, fsdp: "): row["ours"] for row in rows
    }
    assert (values["processes"], values["all-reduce"], values["batch"]) == (16, 6, 8192)
    assert (values["computing"], values["communication"]) == (3, 1)
    assert values["share of communication"] == 0.25
    assert "rest" not in values


@pytest.mark.slow
def test_the_program_of_sixteen_hosts_is_compiled(capsys):
    pytest.importorskip("libtpu")
    options = ["--targets", "tpu:v5e:8x8", "--rules", "centroid", "--model=mlp"]
    values = {row["case"]: row["ours"] for row in run(capsys, "scaling", *options)}
    of = lambda layout, what: values[f"tpu:v5e:8x8, centroid, {layout}: {what}"]
    assert of("replicated", "processes") == of("fsdp", "processes") == 16
    shapes = jax.eval_shape(
        models.create("mlp", num_classes=1000).init, jax.random.key(0), np.zeros((1, 32, 32, 3))
    )
    weights = sum(x.size for x in jax.tree.leaves(shapes["params"])) / 1e6
    means = 4 * 1000 * (3 * 512 + 1) / 1e6  # and counts
    sent = of("replicated", "all-reduce, results")
    assert 2 * weights + means <= sent <= 1.1 * (4 * weights + means)  # gradients of 2 or 4 bytes
    assert of("fsdp", "memory") < of("replicated", "memory")
    assert 0 < of("fsdp", "share of communication") < 1


def test_the_peer_makes_normalised_batches(photos):
    torch = pytest.importorskip("torch")
    images, labels = next(loader.torch_batches(photos, 0, 4))
    assert images.shape == (4, 3, 224, 224)
    assert images.dtype == torch.float32
    assert -2.2 < images.min() < 0 < images.max() < 2.7
    assert sorted(labels.tolist()) == [0, 0, 1, 1]


def test_the_peers_boxes_lie_inside(photos):
    for _ in range(200):
        left, top, width, height = loader._random_box(40, 200)
        assert 0 <= left <= left + width <= 40
        assert 0 <= top <= top + height <= 200


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["stpe"], "'stpe'"),
        ([], "subcommand"),
        (["step", "--rounds=0"], "--rounds=0: must be 1 or more"),
        (["step", "--batch_size=many"], "--batch_size: invalid int value: 'many'"),
        (["step", "--model=vit_tny_patch4_32"], "did you mean 'vit_tiny_patch4_32'"),
        (["step", "--model=mlp", "--batch_size=9"], "batch_size=9 does not divide"),
        (["augment", "--image_size=64"], "--image_size"),
        (["loader", "--workers=-1"], "--workers"),
        (["loader", "--files=8"], "--files"),
        (["startup", "--config=configs/digit.py"], "does not exist"),
        (["table4", "--models", "vit_tiny_patch4_32"], "--models"),
        (["arr", "--num_classes", "0"], "--num_classes=0: must be 1 or more"),
        (["arr", "--rules", "mean"], "--rules: invalid choice: 'mean'"),
        (["peer", "--arr_weight=nan"], "--arr_weight=nan: must be 0 or more"),
        (["scaling", "--targets", "tpu:v9:2x2"], "--targets=tpu:v9:2x2: a TPU v4, v5e or v5p"),
        (["scaling", "--targets", "gpu:h100"], "--targets=gpu:h100: a TPU v4, v5e or v5p"),
    ],
)
def test_a_mistake_is_answered_in_one_line(capsys, argv, words):
    with pytest.raises(SystemExit) as ended:
        program.main(argv)
    out, err = capsys.readouterr()
    assert ended.value.code in (1, 2)
    said = [line for line in err.splitlines() if "first run, with compilation" not in line]
    assert (out, len(said)) == ("", 1)
    assert said[0].startswith("error: ")
    assert words in said[0]


@pytest.mark.parametrize(
    ("has_torch", "devices", "backend", "words"),
    [
        (False, 1, "gpu", "pip install torch"),
        (True, 8, "gpu", "on one CPU or GPU"),
        (True, 1, "tpu", "on one CPU or GPU"),
    ],
)
def test_the_peer_says_what_it_needs(capsys, monkeypatch, has_torch, devices, backend, words):
    monkeypatch.setattr(peer, "find_spec", lambda name: has_torch or name != "torch")
    monkeypatch.setattr(peer.jax, "device_count", lambda: devices)
    monkeypatch.setattr(peer.jax, "default_backend", lambda: backend)
    with pytest.raises(SystemExit):
        program.main(["peer"])
    assert words in capsys.readouterr().err


def test_help_imports_no_model():
    code = (
        "import sys; from dnrt_jax.benchmark.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'optax', 'grain', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
    assert "loader" in done.stdout
