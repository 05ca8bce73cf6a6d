import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_files import below, load

from dnrt_jax import config
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.training import optim

SCHEDULES, OPTIMIZERS = load("schedules"), load("optimizers")


def section(**values):
    optim_config = config.default().optim
    optim_config.update(values)
    return optim_config


def rates(optim_config, total, epoch_steps):
    with jax.enable_x64(True):
        return jax.vmap(optim.schedule(optim_config, total, epoch_steps))(jnp.arange(total))


@pytest.mark.parametrize("name", ["cifar", "short", "nowarm"])
def test_cosine_is_the_references_at_every_step(name):
    golden = below(SCHEDULES, name)
    epochs, epoch_steps, warmup, lr, warmup_lr, min_lr = golden["args"]
    cosine = section(lr=lr, warmup_epochs=float(warmup), warmup_lr=warmup_lr, min_lr=min_lr)
    ours = rates(cosine, int(epochs * epoch_steps), int(epoch_steps))
    np.testing.assert_allclose(ours, golden["lr"], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("step", {"step_size": 3, "gamma": 0.1}),
        ("multistep", {"milestones": (2, 5), "gamma": 0.5}),
    ],
)
def test_step_schedules_are_the_references_at_every_step(name, values):
    golden = SCHEDULES[f"{name}/lr"]
    ours = rates(section(schedule=name, lr=float(golden[0]), **values), 32, 4)
    np.testing.assert_allclose(ours, golden, rtol=1e-9)


def test_a_warmup_in_steps_equals_one_in_epochs():
    ours = rates(section(warmup_steps=14), 70, 7)
    np.testing.assert_array_equal(ours, rates(section(warmup_epochs=2.0), 70, 7))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_twenty_five_updates_are_torchs(name):
    hyper = {k: float(OPTIMIZERS[k]) for k in ("lr", "momentum", "weight_decay")}
    with jax.enable_x64(True):
        tx = optim.create(section(name=name, clip=0.0, **hyper), hyper["lr"])
        params = jnp.asarray(OPTIMIZERS["param0"])
        state, update = tx.init(params), jax.jit(tx.update)
        for grads, wanted in zip(OPTIMIZERS["grads"], OPTIMIZERS[f"{name}/params"], strict=True):
            updates, state = update(jnp.asarray(grads), state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params, wanted, rtol=0, atol=1e-9)


def test_clipping_caps_the_norm_over_all_parameters():
    clip = optim.clip_by_global_norm(1.0)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped, _ = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(optax.tree.norm(clipped), 5 / (5 + 1e-6), rtol=1e-6)
    small = jax.tree.map(lambda g: g / 10, grads)
    jax.tree.map(np.testing.assert_array_equal, clip.update(small, clip.init(small))[0], small)


PARAMS = {
    "patch_embed": {"kernel": jnp.ones((4, 6))},
    "blocks_0": {"norm1": {"scale": jnp.ones(6)}, "fc1": {"kernel": jnp.ones((6, 8))}},
    "blocks_1": {"norm1": {"scale": jnp.ones(6)}, "fc1": {"kernel": jnp.ones((6, 8))}},
    "head": {"kernel": jnp.ones((6, 3)), "bias": jnp.ones(3)},
}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def updates_of(grads, **values):
    tx = optim.create(section(clip=0.0, **values), 0.1)
    return tx.update(grads, tx.init(PARAMS), PARAMS)[0]


@pytest.mark.parametrize("name", ["adamw", "lion", "lamb", "muon", "adafactor"])
def test_decoupled_decay_is_the_rate_times_the_weights(name):
    """Without a gradient, only decay moves the weights; the trust ratio of lamb rescales it."""
    updates = updates_of(ZEROS, name=name, weight_decay=0.5)
    size = 0.1 * 0.5 if name != "lamb" else 0.1  # |w| / |decay| times decay
    jax.tree.map(lambda u: np.testing.assert_allclose(u, -size, rtol=1e-5), updates)


def test_no_decay_leaves_out_what_the_expression_matches():
    updates = updates_of(ZEROS, name="adamw", weight_decay=0.5, no_decay="norm|bias")
    flat = {"/".join(k.key for k in path): u for path, u in jax.tree.leaves_with_path(updates)}
    spared = {name for name, update in flat.items() if not update.any()}
    assert spared == {"blocks_0/norm1/scale", "blocks_1/norm1/scale", "head/bias"}


@pytest.mark.parametrize("name", ["lion", "lamb", "muon", "adafactor"])
def test_a_quadratic_falls_with_every_optimizer(name):
    rng = np.random.default_rng(0)
    target = jax.tree.map(lambda x: x + rng.standard_normal(x.shape), PARAMS)
    distance = lambda p: optax.tree.norm(optax.tree.sub(p, target), squared=True)
    tx = optim.create(section(name=name, clip=0.0, weight_decay=0.0), 0.05)
    params, state = PARAMS, tx.init(PARAMS)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(distance)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(20):
        params, state = step(params, state)
    assert distance(params) < 0.7 * distance(PARAMS)


def test_the_rate_falls_by_a_factor_from_each_block_to_the_one_before():
    updates = updates_of(PARAMS, name="sgd", weight_decay=0.0, layer_decay=0.5)
    factors = jax.tree.map(lambda u: float(-u.ravel()[0] / 0.1), updates)
    assert factors["head"]["kernel"] == pytest.approx(1)
    assert factors["blocks_1"]["norm1"]["scale"] == pytest.approx(0.5)
    assert factors["blocks_0"]["fc1"]["kernel"] == pytest.approx(0.25)
    assert factors["patch_embed"]["kernel"] == pytest.approx(0.125)


def test_a_model_without_blocks_is_answered():
    tx = optim.create(section(layer_decay=0.5), 0.1)
    with pytest.raises(ConfigError, match=r"layer_decay=0\.5: the model has no blocks_0"):
        tx.init({"conv": jnp.ones(3)})


@pytest.mark.parametrize(
    ("values", "alike"),
    [
        ({"name": "adamw"}, True),
        ({"name": "lion"}, True),
        ({"name": "lamb"}, False),
        ({"name": "muon"}, False),
        ({"no_decay": "bias"}, False),
        ({"layer_decay": 0.9}, False),
    ],
)
def test_elementwise_is_what_does_to_a_vector_what_it_does_to_the_tree(values, alike):
    assert optim.is_elementwise(section(**values)) == alike
