"""Which of two equal formulations of the augmentation serves a platform: gathers or products.

A TPU gathers and scatters single elements one by one, and has a unit for products; a CPU and a GPU
gather well. The products grow with the square of the pixels (affine transforms) or with 16 times
the pixels (tables of grey levels): beyond LARGEST a TPU gathers as well.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

LARGEST = 96  # pixels a side


def by_platform(
    image: Array, gathers: Callable[..., Any], products: Callable[..., Any], *args: Any
) -> Any:
    """Returns `products(image, *args)` for images [H, W, C] on a TPU, else `gathers(...)`.

    The platform is that of the devices for which the program is lowered.
    """
    if max(image.shape[:2]) > LARGEST:
        return gathers(image, *args)
    return jax.lax.platform_dependent(image, *args, tpu=products, default=gathers)
