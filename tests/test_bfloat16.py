import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax import bfloat16


def test_a_float32_number_is_the_sum_of_its_three_parts():
    x = jax.random.normal(jax.random.key(0), (1000,)) * 10.0 ** jnp.arange(-20, 20, 0.04)
    parts = jax.jit(bfloat16.parts)(x)
    np.testing.assert_array_equal(sum(np.asarray(part, np.float64) for part in parts), x)
    for part in parts:
        np.testing.assert_array_equal(part.astype(jnp.bfloat16).astype(jnp.float32), part)
