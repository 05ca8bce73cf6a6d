"""A study for two CPU cores: a small ViT with RAA + ARR on 20,000 images of CIFAR-10.

    python scripts/reproduce.py study

runs the whole study. One run, with flips only as in the paper's figure 3, where the model overfits
(configs/study.py:full has the full augmentation):

    python -m dnrt_jax.main --config=configs/study.py:weak --workdir=runs/study

Expected: see docs/reproduce.md. Cost: about 4 minutes on one core, either way; the whole study
about 80 minutes on two.
"""

from configs import cifar10


def get_config(augmentation="weak"):
    config = cifar10.get_config()
    config.model.patch_size = 8
    config.model.embed_dim = 64
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.drop_path_rate = 0.0

    config.data.name = "cifar10-jpeg-20k"
    config.optim.lr = 2e-3
    config.optim.warmup_epochs = 2.0
    config.train.epochs = 8
    config.train.batch_size = 128
    config.train.eval_epochs = 1.0
    config.train.checkpoint_epochs = 4.0
    config.eval.batch_size = 500
    if augmentation == "weak":
        config.data.crop = "none"
        config.data.eval_resize = 32
        config.data.rand_augment = ""
        config.data.erase = 0.0
        config.train.epochs = 24
        config.train.eval_epochs = 2.0
    elif augmentation != "full":
        raise ValueError(f"configs/study.py:{augmentation}: weak or full")
    return config
