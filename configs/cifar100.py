"""ViT-Tiny/4 with RAA + ARR on CIFAR-100.

    python -m dnrt_jax.main --config=configs/cifar100.py --workdir=runs/cifar100

Expected: 71.4% test accuracy (paper, table 1; GELU alone 65.4). Cost: 300 epochs of 50,000 images;
a training step takes 2.19 GFLOP per image: an accelerator is needed.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = "cifar100"
    config.data.mean = (0.5071, 0.4865, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)
    config.arr.weight = 20.0
    return config
