import jax
import numpy as np
import pytest

from dnrt_jax import config as schema
from dnrt_jax import experiment as problem
from dnrt_jax.data import datasets
from dnrt_jax.training import dispatch as feed


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
    c = schema.default()
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
    schema.validate(c)
    return c


def train(config):
    described = problem.load(config)
    fns = problem.programs(described)
    images = feed.training(described.train, config, fns.step, fns.shapes)
    state, losses = fns.create(), []
    for start in (0, 3):  # three steps an epoch
        state, values = images.run(state, start, 3)
        losses += values["loss"].tolist()
    return described, state, losses


@pytest.fixture(scope="module")
def in_memory(config):
    return train(config)


@pytest.fixture(scope="module")
def streamed(config):
    return train(changed(config, data__loader="stream"))


def test_a_stream_trains_and_evaluates_as_memory_does(in_memory, streamed):
    (described, state, losses), (streamed, _, stream_losses) = in_memory, streamed
    assert isinstance(described.train, datasets.Dataset)
    assert not isinstance(streamed.train, datasets.Dataset)
    np.testing.assert_allclose(stream_losses, losses, rtol=1e-4)
    ours, theirs = problem.evaluator(described)(state), problem.evaluator(streamed)(state)
    assert ours.pop("confusion").sum() == theirs.pop("confusion").sum() == 11
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_many_steps_a_dispatch_train_as_one_by_one(in_memory):
    described, _, losses = in_memory
    fns = problem.programs(described)
    images = feed.FromMemory(described.train, described.config, fns.step, fns.shapes)
    state, values = images.run(fns.create(), 0, 2)
    assert values["loss"].shape == (2,)
    state, more = images.run(state, 2, 1)
    np.testing.assert_allclose([*values["loss"], *more["loss"]], losses[:3], rtol=1e-4)


def test_a_stream_goes_on_where_a_run_was_stopped(streamed):
    described, _, losses = streamed
    fns = problem.programs(described)
    first = feed.training(described.train, described.config, fns.step, fns.shapes)
    state, _ = first.run(fns.create(), 0, 2)
    second = feed.training(described.train, described.config, fns.step, fns.shapes)
    _, values = second.run(state, 2, 1)
    assert values["loss"].tolist() == losses[2:3]


@pytest.mark.parametrize("batch_size", [8, 16, 24])
def test_evaluation_sees_every_image_once_whatever_the_batch(config, batch_size):
    for loader in ("memory", "stream"):
        c = changed(config, eval__batch_size=batch_size, data__loader=loader)
        described = problem.load(c)
        labels = [
            np.asarray(batch["label"])[np.asarray(batch["mask"])]
            for batch in feed.test_batches(described.test, c, described.mesh)()
        ]
        assert sorted(np.concatenate(labels)) == [0] * 6 + [1] * 5


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
        ({"train__batch_size": 24}, "only 21 training samples"),
        ({"train__batch_size": 9}, "does not divide over 8 devices; try 8"),
    ],
)
def test_what_cannot_be_is_one_line(config, values, said):
    with pytest.raises(ValueError, match=said):
        problem.load(changed(config, **values))
