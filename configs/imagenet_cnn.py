"""A CNN with RAA + ARR on ImageNet, or on 100 of its classes; the data set is given after a colon.

    python -m dnrt_jax.main --config=configs/imagenet_cnn.py:imagenet100 --workdir=runs/resnet18
    python -m dnrt_jax.main --config=configs/imagenet_cnn.py:imagenet100 --workdir=runs/vgg11 \
        --config.model.name=vgg11_bn

Models: alexnet, vgg11_bn, resnet18, mobilenet_v1, shufflenet_v1. Needs
$DATA_DIR/imagenet100/{train,val}/CLASS/IMAGE. The paper gives no protocol: this is that of the
CNNs on CIFAR at 224 pixels, with random resized crops.
Expected: 86.8% test accuracy with ResNet-18 (paper, table 2; ReLU alone 84.9); not run here.
Cost: 200 epochs of 126,689 images, 10.9 GFLOP each.
"""

from configs import base_cnn


def get_config(name="imagenet100"):
    config = base_cnn.get_config("resnet18")
    config.data.name = name
    config.data.image_size = 224
    config.data.eval_resize = 256
    config.data.crop = "random_resized"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    return config
