"""Formulations of the transformers' layers: equal parameters and values, each fast on a platform.

    | "cpu" | tokens flattened before every dense layer; attention as products |
    | "gpu" | tokens not flattened; cuDNN's attention for float16 and bfloat16, without dropout |
    | "tpu" | tokens not flattened; projections straight to and from heads [B, H, N, D / H] |
    | "tpu5" | the same with the heads in float32, for a TPU up to v5: it computes in nothing else
             | between products, so bfloat16 adds conversions; a v6 loses by it |

They also differ in what the backward pass of `dense_raa` keeps apart, and that of `norm_raa` in
ResNets. The field `formulation` of a model is its platform's; any formulation runs on any platform,
but for cuDNN's attention. That and the projections for TPUs support reverse-mode differentiation
only.
"""

from typing import Literal

Formulation = Literal["cpu", "gpu", "tpu", "tpu5"]
TPU = ("tpu", "tpu5")
