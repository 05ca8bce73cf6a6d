import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnrt_jax import activations
from dnrt_jax.runtime.errors import ModelError


class Wrapped(nn.Module):
    act: str

    @nn.compact
    def __call__(self, x):
        return activations.create(self.act)(x)


@pytest.mark.parametrize("name", activations.names())
def test_any_rank_and_dtype_goes_in_and_comes_out(name):
    x = jnp.linspace(-2, 2, 24, dtype=jnp.bfloat16).reshape(2, 3, 1, 4)
    y, variables = Wrapped(name).init_with_output(jax.random.key(0), x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert (name in activations.LAYERS) == bool(variables)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("relu", (0, 1)),
        ("gelu", (-0.158655, 0.841345)),
        ("silu", (-0.268941, 0.731059)),
        ("elu", (-0.632121, 1)),
        ("selu", (-1.111331, 1.050701)),
        ("softplus", (0.313262, 1.313262)),
        ("raa", (-0.158655, 0.841345)),
        ("raa_relu", (0, 1)),
    ],
)
def test_values_at_minus_one_and_one(name, values):
    y, _ = Wrapped(name).init_with_output(jax.random.key(0), jnp.array([-1.0, 1.0]))
    np.testing.assert_allclose(y, values, atol=1e-6)


def test_gdn_divides_by_the_pooled_energy():
    beta, gamma = jnp.array([1.0, 2.0]), jnp.array([[0.1, 0.2], [0.3, 0.4]])
    params = {"params": {"act": {"beta": beta, "gamma": gamma}}}
    y = Wrapped("gdn").apply(params, jnp.array([3.0, 4.0]))
    wanted = [3 / (1 + 0.1 * 9 + 0.2 * 16) ** 0.5, 4 / (2 + 0.3 * 9 + 0.4 * 16) ** 0.5]
    np.testing.assert_allclose(y, wanted, rtol=1e-6)


def test_a_gdn_parameter_below_its_bound_can_come_back():
    def norm(gamma):
        params = {"act": {"beta": jnp.ones(1), "gamma": gamma}}
        return Wrapped("gdn").apply({"params": params}, jnp.array([2.0])).sum()

    below = jnp.array([[-0.5]])
    assert norm(below) == 2.0  # as at the bound
    assert jax.grad(norm)(below) < 0  # descent leads back up
    assert jax.grad(lambda gamma: -norm(gamma))(below) == 0  # and not further down
    assert jax.grad(lambda gamma: -norm(gamma))(jnp.full((1, 1), 0.1)) > 0


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ModelError, match="unknown activation 'gellu'; did you mean 'gelu'"):
        activations.create("gellu")
