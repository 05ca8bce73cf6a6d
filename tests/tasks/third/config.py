from dnrt_jax.config import default


def get_config():
    config = default("signals:Signals")
    config.model.name = "signals:Net"
    return config
