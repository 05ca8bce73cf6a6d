import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_files import below, load

from dnrt_jax import config
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
