"""What a trained model answers to test images: responses, activations and shifts by layer."""

import re
from typing import Any, NamedTuple

import jax
import numpy as np

from dnrt_jax import config as schema
from dnrt_jax import experiment as problem
from dnrt_jax import models
from dnrt_jax.data import augment, datasets
from dnrt_jax.runtime.workdir import Run
from dnrt_jax.training import dispatch as feed

BATCH = 100
CHANNELS = 50  # of the paper's figure 2


class Responses(NamedTuple):
    """Of N images, by the name of the layer, in the order of the network.

    aggregated: f32[N, D], what ARR acts on.
    activated: f32[N, 50], of the class token or the mean token, after an MLP's activation.
    shifts: f32[M], w.x + b of RAA at some of the tokens or pixels.
    """

    labels: np.ndarray
    aggregated: dict[str, np.ndarray]
    activated: dict[str, np.ndarray]
    shifts: dict[str, np.ndarray]


def of_run(run: Run, count: int) -> Responses:
    """Those to `count` test images, drawn at random but the same for every run.

    Raises:
      ValueError, FileNotFoundError: one line on the data, which must fit in memory.
    """
    config = run.config
    test = feed.read(config, "test")
    if not isinstance(test, datasets.Dataset):
        raise ValueError(f"{config.data.name}: is no set of images in memory")
    rows = np.random.default_rng(0).permutation(len(test.labels))[:count]
    model: Any = models.create(
        config.model.name,
        num_classes=len(test.class_names),
        act=config.model.act,
        image_size=config.data.image_size,
        **schema.model_kwargs(config),
    )
    transform = augment.eval_transform(**{k: config.data[k] for k in problem.EVAL_FIELDS.split()})

    @jax.jit
    def collect(images):
        _, state = model.apply(
            run.variables, transform(images), mutable=["responses", "intermediates"]
        )
        return {
            "aggregated": _by_layer(state.get("responses", {}), lambda name, x: x),
            "activated": _by_layer(state.get("intermediates", {}), _activated(len(images))),
            "shifts": _by_layer(state.get("intermediates", {}), _some_shifts),
        }

    parts = [collect(test.images[rows[i : i + BATCH]]) for i in range(0, len(rows), BATCH)]
    join = lambda *arrays: np.concatenate([np.asarray(x, np.float32) for x in arrays])
    found = {
        kind: {layer: join(*(part[kind][layer] for part in parts)) for layer in parts[0][kind]}
        for kind in parts[0]
    }
    in_order = lambda layers: {name: layers[name] for name in sorted(layers, key=_natural)}
    return Responses(test.labels[rows], **{kind: in_order(x) for kind, x in found.items()})


def _by_layer(tree: Any, choose) -> dict[str, Any]:
    found = {}
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        if (chosen := choose(names[-1], x)) is not None:
            found["/".join(names[:-1]) or names[-1]] = chosen
    return found


def _activated(batch_size: int):
    def choose(name, x):
        if name != "activated" or x.shape[0] != batch_size:  # TNT's inner MLPs see patches
            return None
        return (x[:, 0] if x.ndim == 3 else x)[:, :CHANNELS]

    return choose


def _some_shifts(name, x):
    return x.reshape(-1)[:: max(1, x.size // 2000)] if name == "shift" else None


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def spread(x: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Root mean square distance of f32[N, D] from the mean of its class, and of these means from
    the mean of all; a channel's share, so that widths compare."""
    means = np.stack([x[labels == k].mean(0) for k in np.unique(labels)])
    index = np.searchsorted(np.unique(labels), labels)
    within = np.sqrt(np.square(x - means[index]).mean())
    return float(within), float(np.sqrt(np.square(means[index] - x.mean(0)).mean()))
