"""A task and a model of someone else: which of three frequencies has a noisy signal?"""

import flax.linen as nn
import jax
import numpy as np

from dnrt_jax import RAA, record
from dnrt_jax.fields import Field, integer
from dnrt_jax.tasks.arrays import Arrays, evaluate
from dnrt_jax.tasks.base import Task
from dnrt_jax.training.step import eval_step


class Net(nn.Module):
    num_classes: int
    act: str = "raa"

    @nn.compact
    def __call__(self, x, train=False):
        x = RAA()(nn.Dense(16)(x))
        record(self, x)
        return nn.Dense(self.num_classes)(x)


class Signals(Task):
    FIELDS = {"data.length": Field(32, integer(8), "samples of a signal")}
    class_names = ("slow", "medium", "fast")

    def __init__(self, config):
        self.config = config
        self.train, self.test = self.waves(200, 0), self.waves(50, 1)
        self.num_train, self.batch_size = len(self.train), config.train.batch_size
        self.example = jax.ShapeDtypeStruct((1, config.data.length), np.float32)

    def waves(self, count, seed):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 3, count).astype(np.int32)
        angle = np.arange(self.config.data.length) * (label[:, None] + 1) / 4 + rng.uniform(
            0, 6, (count, 1)
        )
        return Arrays((np.sin(angle) + rng.normal(0, 0.3, angle.shape)).astype(np.float32), label)

    def train_batches(self, mesh):
        return self.train.train_batches(self.batch_size, self.config.seed, mesh)

    def on_device(self, mesh):
        return self.train.on_device(self.batch_size, self.config.seed, mesh)

    def evaluator(self, model, mesh):
        step = jax.jit(eval_step(model, self.config.arr, self.eval_preprocess, 3))

        def run(state):
            values, confusion = evaluate(step, state, self.test.batches(64, mesh), "signals")
            return {f"test/{k}": v for k, v in values.items()} | {"confusion": confusion}

        return run
