"""Common settings of the CIFAR experiments with CNNs: a usual protocol, as the paper gives none.

SGD with learning rate 0.1 and momentum 0.9, the rate divided by 5 after 60, 120 and 160 of 200
epochs, one epoch of warm-up, weight decay 5e-4, batch 128, crops of padded images and flips (that
of pytorch-cifar100, whose published numbers agree with the paper's). RAA + ARR; ablations are
overrides: --config.model.act=relu --config.arr.weight=0.
"""

from dnrt_jax.config import default


def get_config(model):
    config = default()
    config.model.name = model
    config.model.act = "raa"

    config.data.image_size = 32
    config.data.eval_resize = 32
    config.data.crop = "pad"
    config.data.flip = 0.5

    config.optim.name = "sgd"
    config.optim.lr = 0.1
    config.optim.schedule = "multistep"
    config.optim.milestones = (60.0, 120.0, 160.0)
    config.optim.gamma = 0.2
    config.optim.warmup_epochs = 1.0
    config.optim.weight_decay = 5e-4
    config.optim.clip = 0.0

    config.train.epochs = 200
    config.train.batch_size = 128
    config.train.checkpoint_epochs = 5.0
    return config
