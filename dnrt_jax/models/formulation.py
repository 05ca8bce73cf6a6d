"""Formulations of the transformers' layers: equal parameters and values, each fast on a platform.

    | "cpu" | tokens flattened before every dense layer; attention as products |
    | "gpu" | tokens not flattened; cuDNN's attention for float16 and bfloat16, without dropout |
    | "tpu" | tokens not flattened; projections straight to and from heads [B, H, N, D / H] |

They also differ in what the backward pass of `dense_raa` keeps apart, and that of `norm_raa` in
ResNets. The field `formulation` of a model is its platform's; any formulation runs on any platform,
but for cuDNN's attention, which supports reverse-mode differentiation only.
"""

from typing import Literal

Formulation = Literal["cpu", "gpu", "tpu"]
