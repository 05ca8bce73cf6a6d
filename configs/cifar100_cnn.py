"""A CNN with RAA + ARR on CIFAR-100; the model is given after a colon.

    python -m dnrt_jax.main --config=configs/cifar100_cnn.py --workdir=runs/resnet18
    python -m dnrt_jax.main --config=configs/cifar100_cnn.py:cifar_vgg11_bn --workdir=runs/vgg11

Models: cifar_alexnet, cifar_vgg11_bn, cifar_resnet18, cifar_mobilenet, cifar_shufflenet.
Expected: 76.5% test accuracy with ResNet-18 (paper, table 2; ReLU alone 75.7); not run here.
Cost: 200 epochs of 50,000 images; a training step of ResNet-18 takes 3.3 GFLOP per image: an
accelerator is needed.
"""

from configs import base_cnn


def get_config(model="cifar_resnet18"):
    config = base_cnn.get_config(model)
    config.data.name = "cifar100"
    config.data.mean = (0.5071, 0.4865, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)
    config.arr.weight = 20.0
    return config
