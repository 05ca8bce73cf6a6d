import gc
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dnrt_jax import experiment, sets
from dnrt_jax import train as train_loop
from dnrt_jax.config import default, replaced, validate
from dnrt_jax.run import Run
from dnrt_jax.runtime.errors import UserError
from dnrt_jax.runtime.profiling import Profile
from dnrt_jax.runtime.set_folder import SetFolder
from dnrt_jax.training.members import member_mesh
from dnrt_jax.training.packed import Packing


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A folder of 21 training and 11 test images of 8 x 8 pixels, two classes."""
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 21), ("test", 11)):
        for i in range(count):
            path = root / "pets" / split / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (8, 8, 3), np.uint8) + np.uint8(100 * (i % 2))
            Image.fromarray(pixels).save(path)
    c = default()
    c.data.update(
        {"name": "pets", "dir": str(root), "image_size": 8, "eval_resize": 8, "flip": 0.5}
    )
    c.data.update({"mean": (0.5,) * 3, "std": (0.5,) * 3})
    c.model.update({"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2})
    c.train.update({"batch_size": 8, "epochs": 2, "dispatch_steps": 3})
    c.eval.batch_size = 8
    return c


def changed(config, **values):
    c = config.copy_and_resolve_references()
    for name, value in values.items():
        section, key = name.split("__")
        c[section][key] = value
    validate(c)
    return c


def train(config):
    """(experiment, state and losses of six steps, of three an epoch)"""
    built = experiment.load(config)
    dispatch, state, losses = built.dispatch(), built.create(), []
    for start in (0, 3):
        state, values = dispatch.run(state, start, 3)
        losses += values()["loss"].tolist()
    return built, state, losses


@pytest.fixture(scope="module")
def in_memory(config):
    return train(config)


@pytest.fixture(scope="module")
def streamed(config):
    return train(changed(config, data__loader="stream"))


def evaluate(built, state):
    return built.task.evaluator(built.model, built.mesh)(state)


def test_a_stream_trains_and_evaluates_as_memory_does(in_memory, streamed):
    (built, state, losses), (other, _, stream_losses) = in_memory, streamed
    assert built.task.on_device(built.mesh) is not None
    assert other.task.on_device(other.mesh) is None
    np.testing.assert_allclose(stream_losses, losses, rtol=1e-4)
    ours, theirs = evaluate(built, state), evaluate(other, state)
    assert ours.pop("confusion").sum() == theirs.pop("confusion").sum() == 11
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_many_steps_a_dispatch_train_as_one_by_one(config, in_memory):
    _, _, losses = in_memory
    built = experiment.load(changed(config, train__dispatch="scan"))
    dispatch = built.dispatch()
    state, values = dispatch.run(built.create(), 0, 2)
    state, more = dispatch.run(state, 2, 1)
    assert values()["loss"].shape == (2,)
    np.testing.assert_allclose([*values()["loss"], *more()["loss"]], losses[:3], rtol=1e-4)
    alone = experiment.load(changed(config, train__dispatch="single"))
    at_once, by_batch = evaluate(built, state), evaluate(alone, state)
    np.testing.assert_array_equal(at_once.pop("confusion"), by_batch.pop("confusion"))
    assert at_once == pytest.approx(by_batch, rel=1e-6)


def test_an_accelerator_packs_the_state_for_a_step_on_a_stream(config, streamed, monkeypatch):
    pack, packed = Packing.pack, []
    record = lambda self, state: packed.append(state) or pack(self, state)
    monkeypatch.setattr(Packing, "pack", record)
    monkeypatch.setattr("dnrt_jax.training.dispatch.platform", lambda mesh: "gpu")
    _, _, losses = train(changed(config, data__loader="stream"))
    assert packed
    np.testing.assert_allclose(losses, streamed[2], rtol=1e-4)


def test_a_stream_cannot_be_scanned(config):
    c = changed(config, train__dispatch="scan", data__loader="stream")
    with pytest.raises(
        UserError, match=r"config.train.dispatch='scan': the data set is not in device memory"
    ):
        experiment.load(c)


def test_a_stream_goes_on_where_a_run_was_stopped(streamed):
    built, _, losses = streamed
    state, _ = built.dispatch().run(built.create(), 0, 2)
    _, values = built.dispatch().run(state, 2, 1)
    assert values()["loss"].tolist() == losses[2:3]


@pytest.mark.parametrize("batch_size", [8, 16, 24])
def test_evaluation_sees_every_image_once_whatever_the_batch(config, batch_size):
    for loader in ("memory", "stream"):
        built = experiment.load(changed(config, data__loader=loader))
        labels = [
            np.asarray(batch["label"])[np.asarray(batch["mask"])]
            for batch in built.task._test.batches(batch_size, built.mesh)
        ]
        assert sorted(np.concatenate(labels)) == [0] * 6 + [1] * 5


def test_a_batch_larger_than_the_split_takes_no_more_rows_than_it_needs(config):
    built = experiment.load(config)
    (batch,) = built.task._test.batches(4096, built.mesh)
    assert batch["mask"].shape == (64,)  # eight rows a device


def test_held_out_images_choose_and_are_not_trained_on(config):
    built = experiment.load(changed(config, data__valid_fraction=0.2))
    assert built.task.num_train == 17
    values = evaluate(built, built.create())
    assert values.keys() >= {"valid/acc", "test/acc"}
    assert "17 training, 4 validation and 11 test images" in built.task.description


def test_mixing_and_smoothing_train_with_soft_labels(config, in_memory):
    c = changed(config, loss__label_smoothing=0.1, data__mixup=0.8, data__cutmix=1.0)
    _, state, losses = train(c)
    assert np.isfinite(losses).all()
    assert losses != in_memory[2]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data__loader": "stream", "data__imbalance": 10}, "only for data in memory"),
        ({"data__loader": "stream", "data__name": "digits"}, "neither a folder nor prepared"),
        ({"data__loader": "stream", "data__name": "no_set"}, "nothing found"),
        ({"train__batch_size": 24}, "only 21 training samples"),
        ({"train__batch_size": 9}, "does not divide over 8 devices; try 8"),
    ],
)
def test_what_cannot_be_is_one_line(config, values, said):
    with pytest.raises(UserError, match=said):
        experiment.load(changed(config, **values))


@contextmanager
def counted_compilations():
    """Yields a list that grows by one with every program that is compiled."""
    compiled = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("dispatch", [pytest.param("single", marks=pytest.mark.slow), "scan"])
def test_after_the_first_epoch_nothing_is_compiled(config, tmp_path, dispatch):
    """Neither for steps, evaluation, checkpoints and records, nor when a run goes on."""
    seen = []

    def train_to(epochs):
        c = changed(config, train__dispatch=dispatch, train__epochs=epochs, train__log_steps=2)
        built = experiment.load(c)
        with train_loop.Stop() as stop, SetFolder(tmp_path / "run", {"": [""]}) as folder:
            run = Run("", built, folder.members[""])
            log = lambda record: seen.append((record["epoch"], len(compiled)))
            folder.members[""].tracker = SimpleNamespace(log=log, close=lambda: None)
            folder.start([""])
            train_loop.fit([run], stop, folder, Profile(tmp_path, 0))

    with counted_compilations() as compiled:
        train_to(3)
        before = len(compiled)
        train_to(5)
    later = [number for epoch, number in seen if 1 < epoch <= 3]
    assert later[0] > 0
    assert set(later) == {later[0]}
    resumed = [number for epoch, number in seen if epoch > 4]
    assert set(resumed) == {resumed[0]}
    assert before < resumed[0]


def members(config, *each):
    """The experiments of a set whose data are in device memory."""
    config = changed(config, train__dispatch="scan")
    return sets.load_all([replaced(config, values) for values in each])


def copies():
    """How many copies of the training and of the test images are in device memory."""
    gc.collect()
    shapes = [x.shape for x in jax.live_arrays()]
    return np.array([shapes.count((count, 8 * 8 * 3)) for count in (21, 11)])


@pytest.mark.parametrize("at_once", [False, True])
def test_runs_of_a_set_share_a_copy_of_the_data_and_the_compiled_evaluation(config, at_once):
    before = copies()
    experiments = members(config, {"seed": 0}, {"seed": 1}, {"seed": 2})
    first = experiments[0]
    if at_once:
        held = sets.dispatch_together(experiments, member_mesh(first.mesh, len(experiments)))
    else:
        held = experiment.dispatches(experiments)
    evaluate, *others = (one.task.evaluator(one.model, one.mesh) for one in experiments)
    np.testing.assert_array_equal(copies() - before, [1, 1])
    state = first.create()
    expected = evaluate(state)
    with counted_compilations() as compiled:
        for other in others:
            np.testing.assert_equal(other(state), expected)
    assert not compiled
    del held, experiments, first, evaluate, others, other
    np.testing.assert_array_equal(copies(), before)  # not kept beyond the set


def test_runs_with_and_without_arr_share_a_copy_of_the_data(config):
    before = copies()
    without, with_arr = members(config, {"arr.weight": 0.0}, {"arr.weight": 5.0})
    held = [(one.dispatch(), evaluate(one, one.create())) for one in (without, with_arr)]
    np.testing.assert_array_equal(copies() - before, [1, 1])
    assert ["test/loss_arr" in values for _, values in held] == [False, True]


def test_models_of_one_task_are_each_evaluated(config):
    configs = [changed(config, train__dispatch="scan", model__act=act) for act in ("relu", "gelu")]
    task = experiment.load(configs[0]).task
    built = [experiment.build(c, task.like(c)) for c in configs]
    state = built[0].create()
    relu, gelu = (evaluate(one, state) for one in built)
    for found, c in zip((relu, gelu), configs, strict=True):
        np.testing.assert_equal(found, evaluate(experiment.load(c), state))
    assert relu["test/loss_ce"] != gelu["test/loss_ce"]


def test_runs_of_one_seed_share_what_is_held_out_and_those_of_others_do_not(config):
    held_out = changed(config, data__valid_fraction=0.2)
    each = [{"seed": seed, "optim.lr": lr} for seed in (0, 1) for lr in (1e-3, 1e-4)]
    experiments = members(held_out, *each)
    shared = [[one.task.shares_samples(other.task) for one in experiments] for other in experiments]
    np.testing.assert_array_equal(shared, np.kron(np.eye(2), np.ones((2, 2))))
    state = experiments[0].create()
    for one in experiments[1:3]:
        (alone,) = members(held_out, {"seed": one.config.seed})
        np.testing.assert_equal(evaluate(one, state), evaluate(alone, state))
        np.testing.assert_array_equal(one.task.class_counts(), alone.task.class_counts())
