"""ViT-Tiny/4 with RAA + ARR on CIFAR-10.

    python -m dnrt_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

Expected: 92.1% test accuracy (paper, table 1; GELU alone 89.2). Cost: 300 epochs of 50,000 images;
a training step takes 2.19 GFLOP per image: an accelerator is needed. For a short run on a CPU:

    python -m dnrt_jax.main --config=configs/cifar10.py --workdir=runs/look \
        --config.train.steps=200 --config.train.batch_size=64 --config.optim.warmup_steps=50
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = "cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2023, 0.1994, 0.2010)
    config.arr.weight = 10.0
    return config
