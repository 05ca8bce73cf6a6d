"""Accelerators that a program can be compiled for where there is none."""

import math
import re
from importlib.util import find_spec
from typing import Any, NamedTuple

from dnrt_jax.runtime.errors import ConfigError

KNOWN = (
    "tpu:v4:2x2x1", "tpu:v5e:2x2", "tpu:v5e:2x4", "tpu:v5p:2x2x1", "tpu:v6e:2x2", "gpu:a100",
    "gpu:h100", "gpu:h200",
)  # fmt: skip
# Of a core. v5e, v5p: "How to Scale Your Model", 2025; v4: Jouppi et al., ISCA 2023. Each also
# follows from the peak and the number of multipliers. v6e: not published.
TPU_HZ = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": None}
# Bytes a second between chips, of a chip in all: Google's pages on each TPU.
TPU_LINK = {"v4": 300e9, "v5e": 200e9, "v5p": 600e9, "v6e": 448e9}
SHAPE = r"[1-9]\d*(x[1-9]\d*){1,2}"
# What a process needs in its environment to compile without a device. Several may do so at once.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "JAX_PLATFORMS": "cpu",  # for the few arrays that are made on the way
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
}


class Card(NamedTuple):
    """A GPU's public parameters; sizes in bytes, bandwidth in bytes a second."""

    name: str
    compute: int
    cores: int
    units: int
    ghz: float
    memory: int
    bandwidth: int
    l2: int
    shared: int

    def config(self) -> str:
        """The text proto that describes the card to XLA."""
        return f"""
          gpu_device_info {{
            threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
            core_count: {self.cores} fpus_per_core: {self.units} clock_rate_ghz: {self.ghz}
            block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            memory_bandwidth: {self.bandwidth} device_memory_size: {self.memory}
            l2_cache_size: {self.l2} shared_memory_per_block: 49152
            shared_memory_per_core: {self.shared}
            shared_memory_per_block_optin: {self.shared - 1024}
            cuda_compute_capability {{ major: {self.compute} minor: 0 }}
            registers_per_core_limit: 65536 registers_per_block_limit: 65536
          }}
          platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
          runtime_version {{ major: 12 minor: 9 }} device_description_str: "{self.name}"
        """


CARDS = {
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 85100068864, 2039040000000, 41943040, 167936
    ),
    "h100": Card(
        "NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 84929347584, 3352320000000, 52428800, 233472
    ),
    "h200": Card("NVIDIA H200", 9, 132, 128, 1.98, 151397597184, 4800000000000, 52428800, 233472),
}


def _stand_in_for(card: Card) -> None:
    """Answers for a card that is not there what JAX asks of it before it uses cuDNN's attention."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    version = lambda text: tuple(map(int, text.split(".")))
    cudnn.check_cudnn_version = lambda: 90800
    cudnn.check_compute_capability = lambda least: (card.compute, 0) >= version(least)
    cudnn.is_cuda_compute_capability_equal = lambda other: (card.compute, 0) == version(other)


def check(target: str) -> None:
    """Raises a ConfigError for an unknown target, or one whose compiler is not installed."""
    kind, _, model = target.partition(":")
    generation, _, shape = model.partition(":")
    is_tpu = kind == "tpu" and generation in TPU_HZ and re.fullmatch(SHAPE, shape)
    if not is_tpu and not (kind == "gpu" and model in CARDS):
        raise ConfigError(f"--target={target}: known are {', '.join(KNOWN)}, and TPUs of any shape")
    if is_tpu and not find_spec("libtpu"):
        raise ConfigError(f"--target={target}: needs libtpu; pip install 'dnrt_jax[aot-tpu]'")
    if not is_tpu and not any(map(_installed, ("xla_cuda12", "xla_cuda13"))):
        raise ConfigError(
            f"--target={target}: needs JAX's CUDA plug-in; pip install 'dnrt_jax[aot-gpu]'"
        )


def _installed(plugin: str) -> bool:
    return find_spec("jax_plugins") is not None and find_spec(f"jax_plugins.{plugin}") is not None


def chips(target: str) -> int:
    """Of a checked target. A chip of TPU v4 is two devices here, its cores."""
    kind, _, model = target.partition(":")
    return 1 if kind == "gpu" else math.prod(map(int, model.partition(":")[2].split("x")))


def devices(target: str) -> list[Any]:
    """Devices of a checked target that programs can be compiled for.

    Raises:
      ConfigError: for a shape that the TPU does not come in.
    """
    from jax.errors import JaxRuntimeError
    from jax.experimental.topologies import get_topology_desc

    kind, _, model = target.partition(":")
    if kind == "gpu":
        _stand_in_for(CARDS[model])
        options = {"target_config": CARDS[model].config(), "topology": "1x1x1"}
        return list(get_topology_desc(platform="cuda", topology_name="", **options).devices)
    alone = {"chips_per_host_bounds": [1, 1, 1]} if chips(target) == 1 else {}
    try:
        return list(get_topology_desc(platform="tpu", topology_name=model, **alone).devices)
    except JaxRuntimeError as error:
        raise ConfigError(f"--target={target}: {str(error).splitlines()[0]}") from None
