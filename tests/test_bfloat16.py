import jax
import jax.numpy as jnp
import numpy as np

from dnrt_jax import bfloat16


def test_a_float32_number_is_the_sum_of_its_three_parts():
    x = jax.random.normal(jax.random.key(0), (1000,)) * 10.0 ** jnp.arange(-20, 20, 0.04)
    parts = jax.jit(bfloat16.parts)(x)
    assert parts.dtype == jnp.bfloat16
    assert parts.shape == (3, 1000)
    np.testing.assert_array_equal(np.asarray(parts, np.float64).sum(0).astype(np.float32), x)
