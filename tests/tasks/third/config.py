from dnrt_jax.config import default


def get_config():
    config = default("signals:Signals")
    config.model.name = "signals:Net"
    config.train.batch_size = 40  # of 200 samples; the default is 256
    config.optim.lr = 0.02  # the default is for transformers
    config.arr.weight = 1.0
    return config
