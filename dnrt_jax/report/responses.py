"""Responses, activations and RAA shifts of a trained model per layer, on test images."""

import re
from typing import Any, NamedTuple

import jax
import numpy as np

from dnrt_jax import tasks
from dnrt_jax.experiment import create_model
from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.workdir import Run
from dnrt_jax.training.diagnostics import layer_names

BATCH = 100
CHANNELS = 50  # of the paper's figure 2


class Responses(NamedTuple):
    """Arrays for N images, by the name of the layer, in the order of the network.

    aggregated: f32[N, D], the responses that ARR regularizes.
    activated: f32[N, 50], after the activation of an MLP, of the class token or the mean token.
    shifts: f32[M], RAA's w.x + b at some of the tokens or pixels.
    with_arr: whether the run was trained with ARR.
    """

    labels: np.ndarray
    aggregated: dict[str, np.ndarray]
    activated: dict[str, np.ndarray]
    shifts: dict[str, np.ndarray]
    with_arr: bool = False


def of_run(run: Run, count: int) -> Responses:
    """Computes the responses to `count` random test images, the same for every run.

    Raises:
      UserError: if the data cannot be read or are not images.
    """
    config = run.config
    task = tasks.find(config.task)(config)
    samples = task.samples("test", seed=0)
    if samples is None:
        raise ConfigError(f"config.task={config.task!r}: has no images to report on")
    images, labels = _first(samples, count)
    model: Any = create_model(config, len(task.class_names))

    @jax.jit
    def collect(images):
        _, state = model.apply(
            run.variables, task.eval_preprocess(images), mutable=["responses", "intermediates"]
        )
        recorded = state.get("responses", {})
        return {
            "aggregated": dict(zip(layer_names(recorded), jax.tree.leaves(recorded), strict=True)),
            "activated": _by_layer(state.get("intermediates", {}), _activated(len(images))),
            "shifts": _by_layer(state.get("intermediates", {}), _some_shifts),
        }

    parts = [collect(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    join = lambda *arrays: np.concatenate([np.asarray(x, np.float32) for x in arrays])
    found = {
        kind: {layer: join(*(part[kind][layer] for part in parts)) for layer in parts[0][kind]}
        for kind in parts[0]
    }
    in_order = lambda layers: {name: layers[name] for name in sorted(layers, key=natural)}
    layers = {kind: in_order(x) for kind, x in found.items()}
    return Responses(labels, **layers, with_arr=config.arr.weight > 0)


def _first(samples: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images and labels of the batches, or all if there are fewer."""
    images, labels = [], []
    for some, of_them in samples:
        images.append(some)
        labels.append(of_them)
        if sum(map(len, labels)) >= count:
            break
    return np.concatenate(images)[:count], np.concatenate(labels)[:count]


def _by_layer(tree: Any, choose) -> dict[str, Any]:
    found = {}
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        if (chosen := choose(names[-1], x)) is not None:
            found["/".join(names[:-1]) or names[-1]] = chosen
    return found


def _activated(batch_size: int):
    def choose(name, x):
        if (
            name != "activated" or x.shape[0] != batch_size
        ):  # the inner MLPs of TNT have a row per patch
            return None
        return (x[:, 0] if x.ndim == 3 else x)[:, :CHANNELS]

    return choose


def _some_shifts(name, x):
    return x.reshape(-1)[:: max(1, x.size // 2000)] if name == "shift" else None


def natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def spread(x: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Root mean square distances, per channel, of f32[N, D] from their class means, and of the
    class means from the overall mean."""
    means = np.stack([x[labels == k].mean(0) for k in np.unique(labels)])
    index = np.searchsorted(np.unique(labels), labels)
    within = np.sqrt(np.square(x - means[index]).mean())
    return float(within), float(np.sqrt(np.square(means[index] - x.mean(0)).mean()))
