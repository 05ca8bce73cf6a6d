"""A study for two CPU cores: a small network with RAA + ARR on 20,000 images of CIFAR-10.

    python scripts/study.py

runs all of docs/study.md. One run:

    python -m dnrt_jax.main --config=configs/study.py --workdir=runs/study

Settings, after a colon: vit (flips alone, as in the paper's figure 3, where the model overfits),
long (three times as many epochs), 40k (40,000 images), cnn (a ResNet of 20 layers), full (the
whole augmentation). Expected: see docs/study.md. Cost: about 4 minutes on one core; long 12, 40k 8,
cnn 10.
"""

from configs import cifar10, cifar10_cnn
from dnrt_jax.runtime.errors import ConfigError

SETTINGS = ("vit", "long", "40k", "cnn", "full")


def get_config(setting="vit"):
    if setting not in SETTINGS:
        raise ConfigError(f"configs/study.py:{setting}: choose of {', '.join(SETTINGS)}")
    config = _cnn() if setting == "cnn" else _vit()
    config.data.name = "cifar10-jpeg-20k"
    config.train.batch_size = 128
    config.train.eval_epochs = config.train.checkpoint_epochs = 4.0
    config.eval.batch_size = 500
    if setting == "full":
        config.train.epochs = 8
        return config
    config.data.crop = "none"
    config.data.eval_resize = 32
    config.data.rand_augment = ""
    config.data.erase = 0.0
    if setting == "long":
        config.train.epochs *= 3
        config.optim.warmup_epochs *= 3
        config.train.eval_epochs *= 3
    if setting == "40k":
        config.data.name, config.data.valid_fraction = "cifar10-jpeg", 0.2
    return config


def _vit():
    config = cifar10.get_config()
    config.model.patch_size = 8
    config.model.embed_dim = 64
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.drop_path_rate = 0.0
    config.optim.lr = 2e-3
    config.optim.warmup_epochs = 2.0
    config.train.epochs = 24
    return config


def _cnn():
    config = cifar10_cnn.get_config("cifar_resnet32")
    config.model.stage_sizes = (3, 3, 3)  # of ResNet-20
    config.model.cifar = False  # the stem of ImageNet's, of stride 4: cheap enough for a CPU
    config.optim.schedule = "cosine"
    config.train.epochs = 24
    return config
