"""Fine-tunes a ViT-Tiny/16 with public weights, with RAA + ARR, on images of your own.

    python -m dnrt_jax.main --config=configs/finetune.py:flowers --workdir=runs/flowers \
        --config.init_from=vit_tiny_patch16_224.safetensors

Needs $DATA_DIR/flowers/{train,val}/CLASS/IMAGE, where "flowers" is the name after the colon, and a
.safetensors or .pth file of timm, torchvision or the authors. RAA starts as GELU, the head at zero.
Mean and std are those of ImageNet; timm's augreg weights need --config.data.mean=(.5,.5,.5)
--config.data.std=(.5,.5,.5). --config.data.valid_fraction=0.1 holds out a part of the training
images to select the best checkpoint.
Expected: depends on the data. Cost: 30 epochs, 7.5 GFLOP per image.
"""

from dnrt_jax.config import default


def get_config(name="flowers"):
    config = default()
    config.model.name = "vit_tiny_patch16_224"
    config.model.act = "raa"
    config.model.drop_path_rate = 0.1

    config.data.name = name
    config.data.image_size = 224
    config.data.eval_resize = 256
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop = "random_resized"
    config.data.crop_area = (0.35, 1.0)
    config.data.flip = 0.5

    config.arr.weight = 5.0

    config.optim.lr = 5e-5
    config.optim.min_lr = 1e-6
    config.optim.warmup_epochs = 2.0

    config.train.epochs = 30
    config.train.batch_size = 64
    return config
