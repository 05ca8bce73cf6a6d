"""ViT-Tiny/16 with RAA + ARR on ImageNet-1k, or on 100 of its classes.

    python -m dnrt_jax.main --config=configs/imagenet.py:imagenet1k --workdir=runs/imagenet1k
    python -m dnrt_jax.main --config=configs/imagenet.py:imagenet100 --workdir=runs/imagenet100

Needs $DATA_DIR/imagenet1k/{train,val}/CLASS/IMAGE. The paper gives no protocol for ImageNet: this
is that of the CIFAR configs at 224 pixels.
Expected: the paper has 73.0% (1k) and 80.9% (100); not run here. Cost: 300 epochs of 1,281,167
images, 7.5 GFLOP each.
"""

from configs import base


def get_config(name="imagenet1k"):
    config = base.get_config()
    config.model.name = "vit_tiny_patch16_224"
    config.data.name = name
    config.data.image_size = 224
    config.data.eval_resize = 256
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    return config
