"""Common settings of the CIFAR experiments with ViTs: the authors' protocol for ViT-Tiny.

AdamW with decay 0.05 on every parameter, batch 256, 300 epochs, 20 of warm-up, clip 1.0, drop path
0.1, RAA + ARR. Ablations are overrides: --config.model.act=gelu --config.arr.weight=0.
"""

from dnrt_jax.config import default


def get_config():
    config = default()
    config.model.name = "vit_tiny_patch4_32"
    config.model.act = "raa"
    config.model.drop_path_rate = 0.1

    config.data.image_size = 32
    config.data.eval_resize = 36
    config.data.crop = "random_resized"
    config.data.flip = 0.5
    config.data.rand_augment = "rand-m9-mstd0.5-inc1"
    config.data.erase = 0.25

    config.optim.name = "adamw"
    config.optim.lr = 2.5e-4
    config.optim.warmup_epochs = 20.0
    config.optim.weight_decay = 0.05
    config.optim.clip = 1.0

    config.train.epochs = 300
    config.train.batch_size = 256
    config.train.checkpoint_epochs = 5.0
    return config
