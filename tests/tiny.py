"""A task of someone else, of four numbers a sample and three classes, and models for it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax import record
from dnrt_jax.config import default
from dnrt_jax.tasks.arrays import Arrays, evaluate
from dnrt_jax.tasks.base import Task
from dnrt_jax.training.step import eval_step


class Net(nn.Module):
    num_classes: int
    act: str = "raa"

    @nn.compact
    def __call__(self, x, train=False):
        record(self, x)
        return nn.Dense(self.num_classes)(x)


class Tiny(Task):
    class_names = ("low", "middle", "high")

    def __init__(self, config):
        self.config = config
        label = np.arange(48, dtype=np.int32) % 3
        noise = np.random.default_rng(0).standard_normal((48, 4))
        self.data = Arrays((noise + label[:, None]).astype(np.float32), label)
        self.num_train, self.batch_size = 48, config.train.batch_size
        self.example = jax.ShapeDtypeStruct((1, 4), jnp.float32)

    def train_batches(self, mesh):
        return self.data.train_batches(self.batch_size, self.config.seed, mesh)

    def evaluator(self, model, mesh):
        step = jax.jit(eval_step(model, self.config.arr, self.eval_preprocess, 3))

        def run(state):
            values, confusion = evaluate(step, state, self.data.batches(48, mesh), "samples")
            return {f"test/{k}": v for k, v in values.items()} | {"confusion": confusion}

        return run


def get_config():
    config = default("tiny:Tiny")
    config.model.name = "tiny:Net"
    config.train.batch_size = 8
    return config
