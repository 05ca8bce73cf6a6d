import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_files import assert_close, below, load

from dnrt_jax import convert, models
from dnrt_jax.config import default
from dnrt_jax.runtime.sharding import make_mesh, replicated, split
from dnrt_jax.training import optim
from dnrt_jax.training.dispatch import _by_rows, take, train_steps
from dnrt_jax.training.state import create_state
from dnrt_jax.training.step import TrainStep, _by_comparison, eval_step

TINY = {"image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
CLASSES = 4


def as_is(keys, images):
    return images


def as_is_in_evaluation(images):
    return images


def test_a_tpus_cross_entropy_and_its_gradient_are_optaxs_to_the_bit():
    logits = 5 * np.random.default_rng(0).standard_normal((32, 10), np.float32)
    labels = np.arange(32, dtype=np.int32) % 10
    functions = (_by_comparison, optax.softmax_cross_entropy_with_integer_labels)
    ours, theirs = (jax.vjp(lambda x, f=f: f(x, labels), logits) for f in functions)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(*(vjp(np.ones(32, np.float32)) for _, vjp in (ours, theirs)))
    assert np.isnan(_by_comparison(logits[:2], np.array([-1, 10]))).all()


@pytest.mark.parametrize("size", [100, 128, 300])
def test_a_batch_has_the_rows_at_its_indices(size):
    labels = np.random.default_rng(0).integers(-1000, 1000, size).astype(np.int32)
    data = {"inputs": np.arange(6 * size).reshape(size, 6), "label": labels}
    indices, mask = np.array([size - 1, 0, 99, 7, 7, 64, 1, 3]), np.ones(8, bool)
    batch = take(data, indices, mask, replicated(make_mesh()), (2, 3))
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["label"], labels[indices])
    np.testing.assert_array_equal(_by_rows(labels, indices), labels[indices])
    np.testing.assert_array_equal(batch["inputs"], data["inputs"][indices].reshape(-1, 2, 3))


def test_36_steps_are_the_authors_trajectory():
    golden = load("trajectory_adamw")
    hyper = {k: golden[k].item() for k in golden if golden[k].ndim == 0}
    kwargs = {"num_classes": 7, "act": "raa", "image_size": 16, "patch_size": 4}
    kwargs |= {"embed_dim": 32, "depth": 3, "num_heads": 2}
    c = default()
    c.arr.weight, c.arr.momentum = hyper["arr_coef"], hyper["momentum"]
    c.optim.update({k: hyper[k] for k in ("lr", "min_lr", "warmup_lr", "weight_decay", "clip")})
    c.optim.warmup_epochs = float(hyper["warmup_epochs"])
    batch_size = hyper["batch_size"]
    epoch_steps = len(golden["labels"]) // batch_size
    total = epoch_steps * hyper["epochs"]
    with jax.enable_x64(True):
        model = models.create("vit_tiny_patch4_32", **kwargs)
        rate = optim.schedule(c.optim, total, epoch_steps)
        tx = optim.create(c.optim, rate)
        state = create_state(
            model, tx, jnp.zeros((1, 16, 16, 3)), jax.random.key(0), num_classes=7, use_arr=True
        )
        params = convert.from_torch(below(golden, "param0"), "vit_tiny_patch4_32", **kwargs)[
            "params"
        ]
        means = jax.tree.map(lambda x: x.astype(jnp.float64), state.centroids.mean)
        centroids = state.centroids._replace(mean=means)
        state = state.replace(params=params, opt_state=tx.init(params), centroids=centroids)
        step = jax.jit(TrainStep(model, tx, c, as_is, [], jax.random.key(0)))
        log = {name: [] for name in ("loss_ce", "loss_arr", "loss", "grad_norm")}
        for i in range(total):
            rows = slice(i % epoch_steps * batch_size, (i % epoch_steps + 1) * batch_size)
            label = golden["labels"][rows].astype(np.int32)
            batch = {"inputs": golden["images"][rows], "label": label, "mask": np.ones(8, bool)}
            state, values = step(state, batch)
            for name, column in log.items():
                column.append(values[name])
        rates = [rate(i) for i in range(total)]
    np.testing.assert_allclose(rates, golden["log/lr"], rtol=1e-9)
    for name, column in log.items():
        np.testing.assert_allclose(column, golden[f"log/{name}"], rtol=1e-5, err_msg=name)
    ours = convert.to_torch({"params": state.params})
    for name, wanted in below(golden, "param").items():
        np.testing.assert_allclose(ours[name], wanted, rtol=0, atol=1e-6, err_msg=name)


def created(model, tx, use_arr=True):
    options = {"num_classes": CLASSES, "use_arr": use_arr}
    image = jnp.zeros((1, 8, 8, 3))
    return jax.jit(lambda key: create_state(model, tx, image, key, **options))(jax.random.key(0))


def build(*, act="raa", arr_weight=1.0, drop=0.0, lr=1e-2):
    c = default()
    c.arr.weight = arr_weight
    model = models.create(
        "vit_tiny_patch4_32", num_classes=CLASSES, act=act, drop_rate=drop, **TINY
    )
    tx = optim.create(c.optim, lr)
    return (
        model,
        TrainStep(model, tx, c, as_is, [], jax.random.key(1)),
        created(model, tx, arr_weight > 0),
        c,
    )


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.standard_normal((size, 8, 8, 3), np.float32),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "mask": np.ones(size, bool),
    }


def assert_same(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.fixture(scope="module")
def plain():
    model, step, state, c = build()
    return model, jax.jit(step), state, c


def test_padding_changes_nothing(plain):
    _, step, state, _ = plain
    batch = batch_of(16)
    batch["mask"][10:] = False
    other = {k: v.copy() for k, v in batch.items()}
    other["inputs"][10:] = 7.0
    other["label"][10:] = 3
    first, second = step(state, batch), step(state, other)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    short = {k: v[:10] for k, v in batch.items()}
    # Adam divides by its own noise where a gradient is nearly zero: compare the loss and means.
    after, values = step(state, short)
    assert_same(values, first[1], atol=1e-5)
    assert_same(after.centroids, first[0].centroids)


@pytest.mark.parametrize("poison", ["inputs", "params"])
def test_a_step_that_is_not_finite_changes_nothing(plain, poison):
    _, step, state, _ = plain
    batch = batch_of(16)
    if poison == "inputs":
        batch["inputs"][3] = np.nan
    else:
        head = {"head": jax.tree.map(lambda x: x * np.inf, state.params["head"])}
        state = state.replace(params=state.params | head)
    after, values = step(state, batch)
    assert not np.isfinite(values["loss"])
    assert after.step == state.step + 1
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=state.step), state)


def test_many_steps_a_dispatch_are_single_steps_whatever_the_count(plain):
    _, step, state, _ = plain
    rng = np.random.default_rng(0)
    data = {k: v for k, v in batch_of(32).items() if k != "mask"}
    indices = rng.integers(0, 32, (4, 16)).astype(np.int32)
    mask = np.ones((4, 16), bool)
    of_one = lambda _, state, batch: step(state, batch)
    run = jax.jit(train_steps(of_one, split(make_mesh())))
    four, log = run({}, state, data, indices, mask, 4)
    one = state
    for i in range(4):
        one, _ = run({}, one, data, indices[i:].repeat(4, 0)[:4], mask, 1)
    jax.tree.map(np.testing.assert_array_equal, four, one)
    assert log["loss"].shape == (4,)


@pytest.mark.slow  # tests/runtime/test_sharding.py has whole runs
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_eight_devices_equal_one(drop):
    _, step, state, _ = build(drop=drop)
    mesh = make_mesh()
    one, eight = jax.jit(step), jax.jit(step, in_shardings=(replicated(mesh), split(mesh)))
    a, b = state, state
    for i in range(3):
        (a, values_a), (b, values_b) = one(a, batch_of(16, i)), eight(b, batch_of(16, i))
        assert_same(values_a, values_b, atol=1e-4)
    assert_same(a.centroids, b.centroids, atol=1e-5)


def test_without_arr_there_are_no_centroids_and_no_loss_arr():
    _, step, state, _ = build(arr_weight=0.0)
    state, values = jax.jit(step)(state, batch_of(8))
    assert state.centroids is None
    assert "loss_arr" not in values
    assert values["loss"] == values["loss_ce"]


def test_evaluation_counts_each_row_once_and_leaves_the_means(plain):
    model, step, state, c = plain
    state, _ = step(state, batch_of(16))
    evaluate = jax.jit(eval_step(model, c.arr, lambda images: images, CLASSES))
    batch = batch_of(16, seed=3)
    whole = evaluate(state, batch)
    first = np.arange(16) < 9
    head = evaluate(state, batch | {"mask": first})
    tail = evaluate(state, batch | {"mask": ~first})
    jax.tree.map(lambda w, h, t: np.testing.assert_allclose(w, h + t, rtol=1e-5), whole, head, tail)
    assert whole["count"] == 16
    assert whole["confusion"].sum() == 16
    assert whole["loss_arr"] > 0


def test_the_moving_average_is_its_recursion_and_what_evaluation_uses(plain):
    model, _, state, c = plain
    c = c.copy_and_resolve_references()
    c.train.ema = 0.75
    step = jax.jit(TrainStep(model, optim.create(c.optim, 1e-2), c, as_is, [], jax.random.key(1)))
    state = state.replace(ema={"params": state.params, "batch_stats": {}})
    expected = state.params
    for i in range(3):
        state, _ = step(state, batch_of(16, i))
        expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, expected, state.params)
    assert_same(state.ema["params"], expected)
    evaluate = jax.jit(eval_step(model, c.arr, as_is_in_evaluation, CLASSES, keep_logits=True))
    averaged = state.replace(params=state.ema["params"], ema=None)
    of_average, of_params = (
        evaluate(averaged, batch_of(8)),
        evaluate(state.replace(ema=None), batch_of(8)),
    )
    seen = evaluate(state, batch_of(8))["logits"]
    np.testing.assert_array_equal(seen, of_average["logits"])
    assert np.abs(seen - of_params["logits"]).max() > 1e-4


def test_logits_may_be_averaged_with_those_of_the_mirror_image(plain):
    model, _, state, c = plain
    mirror = lambda images: images[:, :, ::-1]
    batch = batch_of(8)
    run = lambda inputs, **options: jax.jit(
        eval_step(model, c.arr, as_is_in_evaluation, CLASSES, keep_logits=True, **options)
    )(state, batch | {"inputs": inputs})
    plain_logits, mirrored = run(batch["inputs"])["logits"], run(mirror(batch["inputs"]))["logits"]
    both = run(batch["inputs"], mirror=mirror)["logits"]
    np.testing.assert_allclose(both, (plain_logits + mirrored) / 2, atol=1e-6)


def test_training_lowers_the_loss(plain):
    _, step, state, _ = plain
    batch = batch_of(16)
    losses = []
    for _ in range(12):
        state, values = step(state, batch)
        losses.append(float(values["loss_ce"]))
    assert losses[-1] < 0.5 * losses[0]


def test_bfloat16_computes_and_float32_keeps():
    c = default()
    model = models.create("vit_tiny_patch4_32", num_classes=CLASSES, dtype=jnp.bfloat16, **TINY)
    tx = optim.create(c.optim, 1e-3)
    state = created(model, tx)
    state, values = jax.jit(TrainStep(model, tx, c, as_is, [], jax.random.key(1)))(
        state, batch_of(8)
    )
    dtypes = {x.dtype for x in jax.tree.leaves((state.params, state.centroids.mean, values))}
    assert dtypes == {jnp.dtype("float32")}
    logits = jax.jit(model.apply)({"params": state.params}, batch_of(8)["inputs"])
    assert logits.dtype == jnp.float32
    exact = models.create("vit_tiny_patch4_32", num_classes=CLASSES, **TINY)
    expected = jax.jit(exact.apply)({"params": state.params}, batch_of(8)["inputs"])
    assert_close(logits, expected, 0.05)


def test_balanced_softmax_is_its_definition_and_only_in_training():
    """-log(n_y e^z_y / sum_k n_k e^z_k), whose gradient by z is that softmax less the label."""
    counts = np.array([500.0, 50.0, 5.0, 1.0])
    model, _, state, c = build(arr_weight=0.0)
    tx, log_prior = optax.sgd(1.0), np.log(counts).astype(np.float32)
    state = state.replace(opt_state=tx.init(state.params))
    step = TrainStep(model, tx, c, as_is, [], jax.random.key(1), log_prior=log_prior)
    batch = batch_of(8)
    logits = np.asarray(model.apply({"params": state.params}, batch["inputs"]), np.float64)
    weighed = counts * np.exp(logits)
    probs = weighed / weighed.sum(1, keepdims=True)
    after, values = jax.jit(step)(state, batch)
    rows = np.arange(8)
    assert values["loss"] == pytest.approx(-np.log(probs[rows, batch["label"]]).mean(), rel=1e-5)
    gradient = probs - np.eye(CLASSES)[batch["label"]]
    moved = state.params["head"]["bias"] - after.params["head"]["bias"]
    np.testing.assert_allclose(moved, gradient.mean(0), atol=1e-6)
    evaluate = jax.jit(eval_step(model, c.arr, lambda images: images, CLASSES))
    plain = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = -np.log(plain[rows, batch["label"]]).sum()
    assert evaluate(state, batch)["loss_ce"] == pytest.approx(wanted, rel=1e-5)
