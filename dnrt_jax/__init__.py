"""Dynamic Neural Response Tuning (Qiu et al., ICLR 2024): RAA, an activation, and ARR, a loss."""

from dnrt_jax import arr as arr
from dnrt_jax.raa import RAA as RAA
from dnrt_jax.raa import raa as raa
from dnrt_jax.raa import raa_relu as raa_relu
from dnrt_jax.record import record as record

__version__ = "0.1.0"
__all__ = ["RAA", "arr", "raa", "raa_relu", "record"]
