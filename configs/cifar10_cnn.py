"""A CNN with RAA + ARR on CIFAR-10; the model is given after a colon.

    python -m dnrt_jax.main --config=configs/cifar10_cnn.py --workdir=runs/resnet18
    python -m dnrt_jax.main --config=configs/cifar10_cnn.py:cifar_vgg11_bn --workdir=runs/vgg11

Models: cifar_alexnet, cifar_vgg11_bn, cifar_resnet18, cifar_mobilenet, cifar_shufflenet.
Expected: 95.5% test accuracy with ResNet-18 (paper, table 2; ReLU alone 95.0); not run here.
Cost: 200 epochs of 50,000 images; a training step of ResNet-18 takes 3.3 GFLOP per image: an
accelerator is needed.
"""

from configs import base_cnn


def get_config(model="cifar_resnet18"):
    config = base_cnn.get_config(model)
    config.data.name = "cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2023, 0.1994, 0.2010)
    config.arr.weight = 10.0
    return config
