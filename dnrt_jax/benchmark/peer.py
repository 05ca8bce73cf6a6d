"""Training and inference against an equivalent PyTorch ViT on the same device.

Both sides start from the same weights, and their logits and losses are compared before the timing.
There is no augmentation. The PyTorch side is torch_vit.py in this folder; torch must be installed.
"""

import argparse
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np

# Two frameworks share the device, so JAX must not preallocate its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from dnrt_jax import convert
from dnrt_jax.benchmark import training
from dnrt_jax.benchmark.timing import Result, compare, interleaved, timed
from dnrt_jax.config import Config
from dnrt_jax.data.order import epoch_order
from dnrt_jax.experiment import Experiment
from dnrt_jax.runtime.errors import ConfigError

NUM_CLASSES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--act", choices=("gelu", "raa"), default="raa")
    parser.add_argument("--arr_weight", type=float, default=20.0, help="0 for none")
    parser.add_argument("--compile", action="store_true", help="torch.compile beside eager")


def run(args: argparse.Namespace) -> Iterator[Result]:
    if not find_spec("torch"):
        raise ConfigError("torch is not installed: pip install torch")
    if jax.default_backend() == "tpu" or jax.device_count() > 1:
        raise ConfigError(
            "compares on one CPU or GPU; CUDA_VISIBLE_DEVICES=0 chooses one of several"
        )
    config = training.config_of("vit_tiny_patch4_32", args.batch_size, args.dtype)
    config.model.act, config.arr.weight = args.act, args.arr_weight
    config.optim.min_lr = config.optim.lr  # constant
    return measure(config, training.default_steps(), args.rounds, compiled=args.compile)


def measure(config: Config, steps: int, rounds: int, *, compiled: bool) -> Iterator[Result]:
    """Rows: differences of logits and losses, then images per second in training and inference."""
    batch_size = config.train.batch_size
    built = training.describe(config, NUM_CLASSES)
    state = built.create()
    weights = convert.to_torch({"params": jax.device_get(state.params)})
    peers = {"eager": Peer(built, weights, steps)}
    if compiled:
        peers["compiled"] = Peer(built, weights, steps, compiled=True)
    train = training.trainer(config, NUM_CLASSES, steps)
    infer = training.predictor(config, NUM_CLASSES)

    eager = peers["eager"]
    yield _difference("logits, torch eager", infer(), eager.infer()[1])
    losses = (
        np.concatenate([side() for _ in range(3)]) for side in (train, lambda: eager.train()[1])
    )
    yield _difference(f"losses of {3 * steps} steps, torch eager", *losses)

    for what, ours, images in (("train", train, batch_size * steps), ("infer", infer, batch_size)):
        theirs = {name: _seconds(getattr(peer, what)) for name, peer in peers.items()}
        seconds = interleaved({"ours": timed(ours), **theirs}, rounds)
        for name in peers:
            rates = (images / seconds[side] for side in ("ours", name))
            yield compare(f"{what}, torch {name}", "images/s", *rates)


def _difference(case: str, ours: np.ndarray, theirs: np.ndarray) -> Result:
    """The largest difference, relative to the largest value."""
    return compare(
        case, "relative", np.abs(ours - theirs).max(keepdims=True) / np.abs(theirs).max()
    )


def _seconds(run: Callable[[], tuple[float, np.ndarray]]) -> Callable[[], float]:
    return lambda: run()[0]


class Peer:
    """The PyTorch side, in a process of its own with its own threads and allocator. Weights, images
    and their order are those of our side.
    """

    def __init__(self, built: Experiment, weights, steps: int, *, compiled: bool = False):
        config, model = built.config, cast(Any, built.model)
        images, labels = training.images_of(config), training.labels_of(config, NUM_CLASSES)
        sizes = ("image_size", "patch_size", "embed_dim", "depth", "num_heads")
        spec = {
            "model": (NUM_CLASSES, model.act, *(getattr(model, size) for size in sizes)),
            "weights": weights,
            "arr_weight": config.arr.weight,
            "rate": config.optim.lr,
            "dtype": config.model.dtype,
            "device": "cpu" if jax.default_backend() == "cpu" else "cuda",
            "compiled": compiled,
            "images": np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
            "labels": labels,
        }
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, spec), daemon=True).start()
        theirs.close()
        self._seed, self._steps, self._taken, self._size = config.seed, steps, 0, len(labels)

    def train(self) -> tuple[float, np.ndarray]:
        """Runs the next steps: seconds and losses f32[steps]."""
        order = epoch_order(self._seed, self._taken, self._size)
        self._taken += self._steps
        return self._ask((order, self._steps))

    def infer(self) -> tuple[float, np.ndarray]:
        """Runs inference: seconds and logits f32[B, K]."""
        return self._ask(None)

    def _ask(self, task):
        self._pipe.send(task)
        try:
            return self._pipe.recv()
        except EOFError:
            raise ConfigError("the PyTorch process failed; its output is above") from None


def _serve(pipe: Connection, spec: dict[str, Any]) -> None:
    """The PyTorch process. A task is (order of the samples, steps), or None for inference."""
    torch: Any = importlib.import_module("torch")
    torch_vit: Any = importlib.import_module("dnrt_jax.benchmark.torch_vit")
    vit = torch_vit.ViT(*spec["model"])
    vit.load_state_dict({name: torch.tensor(value) for name, value in spec["weights"].items()})
    trainer = torch_vit.Trainer(
        vit,
        spec["arr_weight"],
        NUM_CLASSES,
        rate=spec["rate"],
        dtype=getattr(torch, spec["dtype"]),
        device=spec["device"],
    )
    if spec["compiled"]:
        trainer.compile()
    images = torch.tensor(spec["images"], device=spec["device"])
    labels = torch.tensor(spec["labels"], device=spec["device"], dtype=torch.long)
    while True:
        try:
            task = pipe.recv()
        except EOFError:  # our side ended
            return
        start = time.perf_counter()
        if task is None:
            values = trainer.predict(images)
        else:
            order, steps = task
            batch = images[order], labels[order]
            values = torch.stack([trainer.step(*batch) for _ in range(steps)])
        values = values.cpu().numpy()
        pipe.send((time.perf_counter() - start, values))
