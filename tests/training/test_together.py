"""A member of a set is a run of its own: the same data, the same losses, nothing exchanged."""

import re

import jax
import numpy as np
import pytest

from dnrt_jax import experiment, sets
from dnrt_jax.benchmark import hlo
from dnrt_jax.config import default, replaced, validate
from dnrt_jax.data.datasets import Dataset
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.sharding import make_mesh
from dnrt_jax.tasks.image_classification import ImageClassification
from dnrt_jax.training import members
from dnrt_jax.training.dispatch import Scan

VIT = {"name": "vit_tiny_patch4_32", "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
VIT |= {"drop_path_rate": 0.1}
CNN = {"name": "cifar_resnet32", "stage_sizes": (1, 1), "widths": (8, 16)}
STEPS = 20


def config_of(model, **values):
    c = default()
    c.model.update(model)
    c.data.update({"image_size": 8, "eval_resize": 8, "flip": 0.5, "crop": "pad", "pad": 1})
    c.train.update({"batch_size": 16, "steps": STEPS, "dispatch_steps": 4})
    c.optim.update({"lr": 1e-3, "warmup_steps": 3})
    c.eval.batch_size, c.seed = 16, 0
    c = replaced(c, values)
    validate(c)
    return c


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 56).astype(np.int32)
    images = rng.integers(0, 128, (56, 8, 8, 1)) + 40 * labels[:, None, None, None]
    return Dataset(images.astype(np.uint8), labels, ("a", "b", "c"))


def build(config, data, devices):
    mesh = make_mesh(jax.devices()[:devices])
    return experiment.build(config, ImageClassification(config, data, data), mesh)


def set_of(config, data, devices, each):
    """The experiments of a set, whose members differ in the fields of `each`."""
    base = build(config, data, devices)
    return [base.like(replaced(config, fields)) for fields in each]


def together(experiments, parts=0):
    first = experiments[0]
    mesh = members.member_mesh(first.mesh, len(experiments), parts)
    dispatch, shapes = sets.dispatch_together(experiments, mesh)
    states = [one.create() for one in experiments]
    return members.Together(dispatch, states, first.shapes, shapes)


def losses(trainer, count):
    """[member, step], of four steps a dispatch, which is an epoch."""
    found = [trainer.run([start] * count, 4) for start in range(0, STEPS, 4)]
    return np.array([np.concatenate([part[i]()["loss"] for part in found]) for i in range(count)])


def alone(config, data, devices):
    built = build(config, data, devices)
    return losses(members.Alone(built.dispatch(), built.create()), 1)[0]


SEEDS = [{"seed": 3}, {"seed": 1}, {"seed": 2}, {"seed": 7}]
NUMBERS = [
    {"seed": 3, "optim.lr": 1e-3, "arr.weight": 5.0, "arr.momentum": 0.1},
    {"seed": 3, "optim.lr": 3e-4, "arr.weight": 20.0, "arr.momentum": 0.2},
]


@pytest.mark.parametrize(
    ("model", "how", "devices", "each", "fields"),
    [
        (VIT, "scan", 8, SEEDS, {}),
        pytest.param(CNN, "single", 1, SEEDS[:2], {}, marks=pytest.mark.slow),
        pytest.param(VIT, "single", 1, NUMBERS, {}, marks=pytest.mark.slow),
        pytest.param(VIT, "scan", 1, SEEDS, {}, marks=pytest.mark.slow),
        pytest.param(CNN, "single", 8, SEEDS, {}, marks=pytest.mark.slow),
        pytest.param(VIT, "single", 8, NUMBERS, {"parallel.fsdp": True}, marks=pytest.mark.slow),
        pytest.param(VIT, "scan", 8, SEEDS[:2], {"train.accumulate": 2}, marks=pytest.mark.slow),
        pytest.param(CNN, "single", 2, SEEDS[:3], {"optim.name": "sgd"}, marks=pytest.mark.slow),
    ],
)
def test_each_member_trains_as_a_run_of_its_own(data, model, how, devices, each, fields):
    config = config_of(model, **fields | {"train.dispatch": how})
    found = losses(together(set_of(config, data, devices, each)), len(each))
    for of_member, changed in [*zip(found, each, strict=True)][-2:]:
        expected = alone(replaced(config, changed), data, devices)
        np.testing.assert_allclose(of_member, expected, rtol=1e-5)
    assert len({row[-1] for row in found}) == len(each)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_the_members_of_an_accelerator_train_on_packed_states(data, monkeypatch, devices):
    config = config_of(VIT, **{"train.dispatch": "single"})
    expected = alone(replaced(config, SEEDS[1]), data, devices)
    monkeypatch.setattr("dnrt_jax.training.dispatch.platform", lambda mesh: "gpu")
    found = losses(together(set_of(config, data, devices, SEEDS[:2])), 2)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("model", [CNN, VIT], ids=["cnn", "vit"])
def test_trained_on_digits_each_member_is_as_good_as_a_run_of_its_own(model, devices):
    config = config_of(model, **{"train.dispatch": "single"})
    config.data.update({"mean": (0.3,), "std": (0.38,), "flip": 0.0, "crop": "none"})
    config.train.update({"batch_size": 64, "steps": 0, "epochs": 20})
    config.optim.lr, config.arr.weight, config.eval.batch_size = 3e-3, 5.0, 360
    task = ImageClassification(config)
    base = experiment.build(config, task, make_mesh(jax.devices()[:devices]))
    experiments = [base.like(replaced(config, seed)) for seed in SEEDS[:2]]
    trainer, total = together(experiments), base.total_steps
    for start in range(0, total, base.epoch_steps):
        trainer.run([start] * 2, base.epoch_steps)
    evaluate = task.evaluator(base.model, base.mesh)
    for i, dispatch in enumerate(experiment.dispatches(experiments)):
        state = experiments[i].create()
        for start in range(0, total, base.epoch_steps):
            state, _ = dispatch.run(state, start, base.epoch_steps)
        own, member = evaluate(state), evaluate(trainer.state(i))
        count = own["confusion"].sum()
        print(devices, model["name"], i, own["test/acc"], member["test/acc"])
        assert own["test/acc"] > 0.9
        assert abs(own["test/acc"] - member["test/acc"]) * count <= 2


@pytest.mark.slow
def test_members_at_different_steps_train_on(data):
    """As after a kill between two saves."""
    config = config_of(VIT, **{"train.dispatch": "single"})
    experiments = set_of(config, data, 1, SEEDS[:2])
    state, _ = experiments[0].dispatch().run(experiments[0].create(), 0, 4)
    first = experiments[0]
    mesh = members.member_mesh(first.mesh, 2)
    dispatch, shapes = sets.dispatch_together(experiments, mesh)
    states = [state, experiments[1].create()]
    trainer = members.Together(dispatch, states, first.shapes, shapes)
    ahead, behind = (values() for values in trainer.run([4, 0], 4))
    expected = [alone(replaced(config, seed), data, 1) for seed in SEEDS[:2]]
    np.testing.assert_allclose(ahead["loss"], expected[0][4:8], rtol=1e-5)
    np.testing.assert_allclose(behind["loss"], expected[1][:4], rtol=1e-5)
    assert [int(trainer.state(i).step) for i in (0, 1)] == [8, 4]


def test_data_order_and_augmentation_are_bit_for_bit_those_of_a_run_of_its_own(data):
    """The step gives the pictures that it would train on."""
    config = config_of(VIT, **{"train.dispatch": "single"})
    experiments = set_of(config, data, 8, SEEDS)
    first, numbers = experiments[0], [one.numbers() for one in experiments]

    def pictures(numbers, state, batch):
        key = jax.random.wrap_key_data(numbers["key"])
        keys = jax.random.split(jax.random.fold_in(key, state), batch["label"].shape[0])
        return first.task.preprocess(keys, batch["inputs"]), batch["label"]

    mesh = members.member_mesh(first.mesh, len(SEEDS))
    batches = members.MemberBatches([one.task for one in experiments], first.mesh)
    batch = next(batches.train_batches(mesh)(np.array([5] * len(SEEDS))))
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *numbers)
    found = jax.jit(members.over_members(pictures, 0, 0, mesh=mesh))(stacked, np.full(4, 5), batch)
    for i, one in enumerate(experiments):
        own = next(one.task.train_batches(first.mesh)(5))
        expected = jax.jit(pictures)(numbers[i], 5, own)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), found, expected)


@pytest.fixture(scope="module")
def compiled(data):
    def text(count):
        config = config_of(VIT, **{"train.dispatch": "scan"})
        experiments = set_of(config, data, 8, [{"seed": seed} for seed in range(count)])
        mesh = members.member_mesh(experiments[0].mesh, count)
        dispatch, shapes = sets.dispatch_together(experiments, mesh)
        assert isinstance(dispatch, Scan)
        return dispatch.lower(shapes).compile().as_text()

    return text


def test_eight_members_on_eight_devices_exchange_nothing(compiled):
    assert hlo.collectives_of(compiled(8)) == {}


def test_four_members_on_eight_devices_exchange_in_pairs(compiled):
    text = compiled(4)
    assert hlo.collectives_of(text)["all-reduce"][0] > 0
    assert set(re.findall(r"replica_groups=(\S+?),\s", text)) == {"[4,2]<=[8]"}


@pytest.mark.parametrize(
    ("count", "parts", "shape"), [(8, 0, (8, 1)), (4, 0, (4, 2)), (3, 0, (1, 8)), (12, 2, (2, 4))]
)
def test_members_are_spread_over_devices_first(count, parts, shape):
    mesh = members.member_mesh(make_mesh(), count, parts)
    assert tuple(mesh.shape.values()) == shape


def test_parts_that_do_not_divide_are_answered_with_those_that_do():
    with pytest.raises(ConfigError, match=r"member_parts=8: does not divide 4 members.*try 4"):
        members.member_mesh(make_mesh(), 4, 8)


def test_a_state_goes_into_a_set_and_comes_out_as_it_was(data):
    config = config_of(VIT, **{"parallel.fsdp": True})
    experiments = set_of(config, data, 8, SEEDS)
    trainer = together(experiments)
    for i, one in enumerate(experiments):
        jax.tree.map(np.testing.assert_array_equal, trainer.state(i), one.create())
        at = lambda state: jax.tree.map(lambda x: x.sharding, state)
        assert at(trainer.state(i)) == at(one.create())


def test_a_set_beyond_the_memory_is_answered_with_the_most_that_fit(data, monkeypatch):
    experiments = set_of(config_of(VIT), data, 1, SEEDS)
    mesh = members.member_mesh(experiments[0].mesh, 4)
    shapes = experiments[0].shapes
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((shapes, shapes.params)))
    assert members.bytes_a_device(members.member_shapes(mesh, shapes, 4)) == 4 * size
    monkeypatch.setattr(members, "device_memory", lambda: 2 * size)
    with pytest.raises(ConfigError, match="name 2 at once, or set"):
        members.check_memory(mesh, shapes, 4)
    # On eight devices seven members would be on each, eight are one on each.
    eight = members.member_mesh(make_mesh(jax.devices()[:8]), 9)
    with pytest.raises(ConfigError, match="name 8 at once, or set"):
        members.check_memory(eight, build(config_of(VIT), data, 8).shapes, 9)
    monkeypatch.setattr(members, "device_memory", lambda: size // 2)
    with pytest.raises(ConfigError, match=r"which has [\d.]+: set config.parallel.fsdp"):
        members.check_memory(mesh, shapes, 4)
