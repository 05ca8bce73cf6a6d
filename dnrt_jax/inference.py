"""A trained model with its preprocessing, as one function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dnrt_jax import convert, models
from dnrt_jax.data import augment
from dnrt_jax.runtime.weight_files import Description, StateDict

Variables = Any  # a tree of arrays


def classifier(
    state_dict: StateDict, description: Description
) -> tuple[Callable[[Variables, jax.Array], jax.Array], Variables]:
    """Returns (run, variables): run(variables, images u8[B, eval_resize, eval_resize, C]) gives the
    probabilities f32[B, K].

    Raises:
      WeightsError: if the weights do not fit their description.
    """
    model: Any = models.create(**description.model)
    variables = convert.fit(state_dict, model, len(description.mean), adapt=False)
    transform = augment.eval_transform(
        image_size=description.model["image_size"],
        eval_resize=description.eval_resize,
        mean=description.mean,
        std=description.std,
    )
    run = lambda variables, images: jax.nn.softmax(model.apply(variables, transform(images)))
    return run, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
